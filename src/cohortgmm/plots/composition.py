"""Cell types of the components of all patients."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cohortgmm.plots.style import (
    ALARM,
    FAINT,
    INK,
    MAX_VECTOR_POINTS,
    MUTED,
    PLAIN,
    SMALL,
    colormap,
    component_colors,
    inch_axes,
    inch_title,
    label_width,
    natural_key,
    new_figure,
    our_style,
    short_label,
    short_labels,
    style_axes,
)

_MAX_TYPES = 40
_ROWS_PER_STRIP = 70
_MAX_STRIPS = 4
_MAX_LABELLED = 600
_TOP = 2.75  # inches from the upper edge to the first row
_STRIP = 1.85  # inches


@our_style()
def plot_composition(table: pd.DataFrame) -> Figure:
    """Heat map of the cell types of all components, and the purity of the components of every patient.

    The heat map has one row per component of any patient. Rows are grouped by the most frequent (dominant) cell type of
    the component and ordered by purity within a group, because the number of a component has no meaning across patients.
    The groups form blocks along the diagonal. A column without a block is a cell type that dominates no component. Two
    dark columns in one block are cell types that the mixtures do not separate. The right side has one line per patient
    with the purities of its components, the patients with the lowest mean purity first, because the rows of the heat map
    are too thin for names.

    Parameters
    ----------
    table
        Columns patient, component, cell_type, n_cells. With one mixture for the whole cohort, all rows belong to one
        patient, and the right side is left out.

    Returns
    -------
    Figure
        Purity is the share of the component's cells that are of its dominant cell type.
    """
    shares, sizes = component_shares(table)
    shares = shares.loc[grouped_order(shares)]
    sizes = sizes.loc[shares.index]
    purity = shares.max(axis=1)
    patients = shares.index.get_level_values("patient").unique()
    several = len(patients) > 1
    labels, _ = _row_labels(shares, sizes, several=several)
    strips = _Strips.arrange(_mean_purity(purity, sizes)) if several else None

    margin = label_width(labels) + 0.45
    heat_width = float(np.clip(0.28 * shares.shape[1], 2.6, 8.0))
    by_rows = (0.05 * len(shares), 3.6) if several else (0.22 * len(shares), 1.0)
    heat_height = max(min(by_rows[0], 10.5 if several else np.inf), by_rows[1], 0.14 * len(labels))
    left = margin + heat_width + 0.35
    below = label_width(short_labels(shares.columns)) + 0.3
    figure = new_figure(
        max(left + (strips.width if strips else 0.0), 6.4),
        _TOP + max(heat_height + below, strips.height + 0.55 if strips else 0.0),
    )
    whose = f"of {len(patients)} patients" if several else f"of {short_label(patients[0], 60)}"
    inch_title(figure, f"Cell types of {len(shares)} components {whose}")
    _draw_purities(inch_axes(figure, margin, 0.75, heat_width, 0.8), purity)
    mesh = _draw_heat(inch_axes(figure, margin, _TOP, heat_width, heat_height), shares, sizes, several=several)
    _draw_key(inch_axes(figure, margin, _TOP - 0.3, 1.6, 0.1), mesh)
    if strips:
        strips.draw(figure, left, purity, sizes)
    return figure


def component_shares(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """Shares of the cell types, (patient, component) × type with frequent types first, and the number of cells.

    With more than 40 types, the rarest are summed as "other types". Components without cells are left out.
    """
    cells = table.groupby(["patient", "component", "cell_type"], observed=True)["n_cells"].sum()
    counts = cells.unstack("cell_type", fill_value=0)
    counts = counts[counts.sum(axis=1) > 0]
    totals = counts.sum().sort_index(key=lambda names: names.astype(str))
    counts = counts[totals[totals > 0].sort_values(ascending=False, kind="stable").index]
    if counts.shape[1] > _MAX_TYPES:
        kept = counts.iloc[:, : _MAX_TYPES - 1]
        counts = kept.assign(**{"other types": counts.iloc[:, _MAX_TYPES - 1 :].sum(axis=1)})
    sizes = counts.sum(axis=1)
    return counts.div(sizes, axis=0), sizes


def grouped_order(shares: pd.DataFrame) -> pd.MultiIndex:
    """Rows by dominant type, in the order of the columns, and by decreasing purity within a type."""
    values = shares.to_numpy()
    return shares.index[np.lexsort((-values.max(axis=1), values.argmax(axis=1)))]


def _mean_purity(purity: pd.Series, sizes: pd.Series) -> pd.Series:
    """Mean purity over the cells of each patient, the lowest first."""
    overall = (purity * sizes).groupby(level="patient").sum() / sizes.groupby(level="patient").sum()
    return overall.loc[sorted(overall.index, key=lambda patient: (overall[patient], natural_key(patient)))]


def _row_labels(shares: pd.DataFrame, sizes: pd.Series, *, several: bool) -> tuple[list[str], np.ndarray]:
    """Labels of groups of rows, and the row at which each group ends. For a single patient, every row is a group."""
    if not several:
        numbers = shares.index.get_level_values("component")
        labels = [f"{number}  ({size:,} cells)" for number, size in zip(numbers, sizes, strict=True)]
        return labels, np.arange(1, len(shares) + 1)
    dominant, counts = np.unique(shares.to_numpy().argmax(axis=1), return_counts=True)
    labels = [f"{short_label(shares.columns[i], 22)} ({n})" for i, n in zip(dominant, counts, strict=True)]
    return labels, np.cumsum(counts)


def _draw_heat(ax: Axes, shares: pd.DataFrame, sizes: pd.Series, *, several: bool) -> QuadMesh:
    n_rows, n_types = shares.shape
    style_axes(ax)
    mesh = ax.pcolormesh(shares.to_numpy(), cmap=colormap("Blues"), vmin=0, vmax=1, rasterized=True)
    ax.set(xlim=(0, n_types), ylim=(n_rows, 0), yticks=[])
    ax.spines[:].set(visible=True)
    ax.set_xticks(np.arange(n_types) + 0.5, short_labels(shares.columns), rotation=90, fontsize=SMALL)
    ax.tick_params(length=0)
    labels, ends = _row_labels(shares, sizes, several=several)
    starts = np.concatenate([[0], ends[:-1]])
    ax.hlines(ends[:-1], 0, n_types, color=MUTED, linewidth=0.5)
    ax.vlines(np.arange(1, n_types), 0, n_rows, color=FAINT, linewidth=0.4)
    colors: Sequence[Any] | np.ndarray = [INK] * len(labels)
    if not several:
        colors = component_colors(shares.index.get_level_values("component")) * (0.6, 0.6, 0.6, 1.0)
    height = ax.get_position().height * ax.figure.get_figheight()
    middles = (starts + ends) / 2
    for label, middle, place, color in zip(
        labels, middles, keep_apart(middles, 0.13 * n_rows / height, 0, n_rows), colors, strict=True
    ):
        ax.annotate(
            label, (0, middle), (-14, place), xycoords="data", textcoords=("offset points", "data"), ha="right",
            va="center", fontsize=SMALL, color=color, annotation_clip=False, fontweight="bold" if not several else None,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 0,
                        "relpos": (1, 0.5)},
        )  # fmt: skip
    return mesh


def keep_apart(positions: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Move ascending positions so that they are at least ``gap`` apart, and within the limits if there is room."""
    moved = np.maximum(np.asarray(positions, dtype=float), low + gap / 2)
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + gap)
    moved[-1] = min(moved[-1], high - gap / 2)
    for i in range(len(moved) - 2, -1, -1):
        moved[i] = min(moved[i], moved[i + 1] - gap)
    return moved


def _draw_key(ax: Axes, mesh: QuadMesh) -> None:
    bar = ax.figure.colorbar(mesh, cax=ax, orientation="horizontal", ticks=[0, 0.5, 1])
    bar.outline.set(edgecolor=MUTED, linewidth=0.5)
    ax.tick_params(labelsize=SMALL - 1, length=2, width=0.5, pad=1)
    ax.set_title("share of the component's cells", fontsize=SMALL, color=INK, loc="left", pad=3)


def _draw_purities(ax: Axes, purity: pd.Series) -> None:
    style_axes(
        ax, title=f"purity: median {purity.median():.2f}", xlabel="share of the dominant type", ylabel="components"
    )
    ax.hist(purity, bins=np.linspace(0, 1, 21), color=PLAIN)
    ax.set_xlim(0, 1)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))


@dataclass(frozen=True)
class _Strips:
    """Lines of the patients, divided into strips side by side.

    Attributes
    ----------
    ranked
        Mean purity by patient, in the order of the lines.
    names
        Labels of the lines; none with more than 600 patients.
    margin, row
        Width of the labels and height of a line, in inches.
    n
        Number of strips.
    """

    ranked: pd.Series
    names: list[str]
    margin: float
    row: float
    n: int

    @classmethod
    def arrange(cls, ranked: pd.Series) -> "_Strips":
        labelled = len(ranked) <= _MAX_LABELLED
        row = 0.15 if labelled else 0.02
        n = int(np.clip(np.ceil(len(ranked) * row / (_ROWS_PER_STRIP * 0.15)), 1, _MAX_STRIPS))
        names = short_labels(ranked.index) if labelled else []
        return cls(ranked, names, label_width(names) + 0.25, row, n)

    @property
    def per_strip(self) -> int:
        return int(np.ceil(len(self.ranked) / self.n))

    @property
    def width(self) -> float:
        return self.n * (self.margin + _STRIP) + 0.2

    @property
    def height(self) -> float:
        return self.per_strip * self.row

    def draw(self, figure: Figure, left: float, purity: pd.Series, sizes: pd.Series) -> None:
        """Draw a dot per component at its purity (area: number of cells), and a line at the mean over the cells."""
        for s in range(self.n):
            span = slice(s * self.per_strip, (s + 1) * self.per_strip)
            rows = self.ranked.iloc[span]
            place = left + s * (self.margin + _STRIP) + self.margin
            ax = inch_axes(figure, place, _TOP, _STRIP - 0.1, len(rows) * self.row)
            style_axes(ax, xlabel="purity of the components", grid="x")
            if s == 0:
                ax.set_title(
                    "patients, least pure first\ndot: a component, area by cells\nline: mean over the cells",
                    fontsize=SMALL, color=INK, loc="left",
                )  # fmt: skip
            position = pd.Series(np.arange(len(rows)) + 0.5, index=rows.index)
            here = purity[purity.index.get_level_values("patient").isin(rows.index)]
            share = sizes[here.index] / sizes.groupby(level="patient").transform("sum")[here.index]
            ax.scatter(
                here, position[here.index.get_level_values("patient")], s=(3 + 60 * share) * min(self.row / 0.15, 1),
                color=PLAIN, alpha=0.6, linewidths=0, rasterized=len(purity) > MAX_VECTOR_POINTS,
            )  # fmt: skip
            reach = 0.42
            ax.vlines(rows, position - reach, position + reach, color=ALARM, linewidth=1.4, zorder=3)
            ax.set(xlim=(-0.02, 1.03), ylim=(len(rows), 0))
            ax.set_yticks(position if self.names else [], self.names[span], fontsize=SMALL)
            ax.tick_params(axis="y", length=0, pad=2)
