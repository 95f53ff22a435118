"""Scores against k, for one patient and for the cohort: they show why a k was chosen."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cohortgmm.errors import DataError
from cohortgmm.plots.style import (
    ALARM,
    FAINT,
    INK,
    LARGE,
    MISSING,
    MUTED,
    NORMAL,
    PLAIN,
    SMALL,
    colormap,
    freeze_layout,
    inch_axes,
    inch_title,
    label_width,
    natural_key,
    new_figure,
    our_style,
    short_label,
    short_labels,
    show_message,
    style_axes,
)


@dataclass(frozen=True)
class Criterion:
    """Labels of a column of scores. Lower is better in every column."""

    name: str
    axis: str
    difference: str


CRITERIA = {
    "aic": Criterion("AIC", "AIC (2 × nats)", "ΔAIC (2 × nats)"),
    "bic": Criterion("BIC", "BIC (2 × nats)", "ΔBIC (2 × nats)"),
    "heldout_nll": Criterion("held-out NLL", "NLL (nats per cell)", "Δ held-out NLL (nats per cell)"),
}
NOTHING_HELD_OUT = "nothing held out"
FLOOR_NOTE = "covariance at the floor: likelihood not reliable"

_ROWS_PER_STRIP = 70
_MAX_STRIPS = 4
_MAX_LABELLED = 600


def criterion_name(metric: str) -> str:
    """Name of a criterion in figures, from :data:`CRITERIA`; for an unknown criterion, its key."""
    return CRITERIA[metric].name if metric in CRITERIA else short_label(metric)


@our_style()
def plot_criteria(scores: pd.DataFrame, *, patient: str, metric: str, best_k: int) -> Figure:
    """AIC, BIC and held-out NLL of one patient against k.

    Parameters
    ----------
    scores
        The table of scores, with the rows of this patient among others.
    patient
        The patient's id.
    metric
        The criterion that chose k: ``"aic"``, ``"bic"`` or ``"heldout_nll"``.
    best_k
        The k that was chosen.

    Returns
    -------
    Figure
        Three panels. The chosen k is marked in all of them, and the panel of the criterion that chose it has a frame.

    Raises
    ------
    DataError
        If the table has no row of the patient.
    """
    figure = new_figure(9.0, 3.1, constrained=True)
    axes = figure.subplots(1, 3)
    draw_criteria(axes, scores, patient=patient, metric=metric, best_k=best_k)
    title = f"{short_label(patient, 60)}: k = {best_k} by {criterion_name(metric)}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=LARGE, color=INK)
    figure.legend(handles=criteria_legend(), loc="outside lower left", ncols=5, frameon=False, fontsize=SMALL)
    freeze_layout(figure)
    return figure


def draw_criteria(axes: np.ndarray, scores: pd.DataFrame, *, patient: str, metric: str, best_k: int) -> None:
    """Draw the panels of :func:`plot_criteria` into three axes."""
    scores = scores[scores["patient"] == patient].sort_values("k")
    if scores.empty:
        raise DataError(f"no scores of patient {patient!r}: pass the score table that holds this patient's rows")
    for ax, column in zip(axes, CRITERIA, strict=True):
        _draw_criterion(ax, scores, column, best_k=best_k, deciding=column == metric)


def criteria_legend() -> list[Line2D]:
    """Legend handles of the panels of criteria."""
    dot: dict[str, Any] = {"linestyle": "none", "color": PLAIN}
    return [
        Line2D([], [], marker="D", markersize=6, markeredgecolor=INK, linestyle="none", color=ALARM, label="chosen k"),
        Line2D([], [], marker="o", markersize=9, markerfacecolor="none", **dot | {"color": MUTED}, label="minimum"),
        Line2D([], [], marker="^", markersize=4.5, **dot, label="not converged"),
        Line2D([], [], marker="x", markersize=4.5, **dot | {"color": MUTED}, label="skipped"),
        Line2D([], [], marker="o", markersize=4.5, markerfacecolor="white", **dot, label=FLOOR_NOTE),
    ]


def _draw_criterion(ax: Axes, scores: pd.DataFrame, column: str, *, best_k: int, deciding: bool) -> None:
    criterion = CRITERIA[column]
    title = f"{criterion.name} (decides)" if deciding else criterion.name
    style_axes(ax, title=title, xlabel="k", ylabel=criterion.axis, grid="y", bold=deciding)
    ax.set_gid(f"criterion-{column}")
    if deciding:
        ax.spines[:].set(visible=True, color=INK, linewidth=1.6)
    k = scores["k"].to_numpy(dtype=float)
    value = scores[column].to_numpy(dtype=float)
    there = np.isfinite(value)
    if column == "heldout_nll" and not there.any():
        show_message(ax, NOTHING_HELD_OUT)
        ax.set(xlabel="", ylabel="")
        return
    ax.plot(k[there], value[there], color=PLAIN, linewidth=1.2, zorder=2)
    floored = scores["n_floored"].fillna(0).to_numpy() > 0
    converged = scores["converged"].fillna(False).to_numpy(dtype=bool)
    for marker, group in (("o", converged), ("^", ~converged)):
        for face, those in ((PLAIN, group & ~floored & there), ("white", group & floored & there)):
            ax.plot(k[those], value[those], marker, markersize=4.5, color=PLAIN, markerfacecolor=face, zorder=3)
    if there.any():
        lowest = np.nanargmin(value)
        ax.plot(
            k[lowest], value[lowest], "o", markersize=9, markerfacecolor="none", color=MUTED, zorder=4, gid="minimum"
        )
    chosen = k == best_k
    ax.axvline(best_k, color=ALARM, linewidth=1.8, alpha=0.5, zorder=1, gid="chosen-line")
    # The diamond is drawn on the x axis: over the point of the chosen k, it would hide whether that point is hollow.
    ax.plot(
        k[chosen], np.zeros(chosen.sum()), "D", markersize=6, color=ALARM, markeredgecolor=INK, zorder=5, gid="chosen",
        transform=ax.get_xaxis_transform(), clip_on=False,
    )  # fmt: skip
    ax.plot(
        k[~there], np.full((~there).sum(), 0.06), "x", markersize=4.5, color=MUTED, gid="skipped",
        transform=ax.get_xaxis_transform(),
    )  # fmt: skip
    ax.set_xlim(k.min() - 0.5, k.max() + 0.5)
    ax.margins(y=0.12)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5))
    if column != "heldout_nll":
        ax.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,.10g}"))


@our_style()
def plot_cohort_criteria(scores: pd.DataFrame, selection: pd.DataFrame, *, metric: str) -> Figure:
    """Heat map of the scores of all patients, one row per patient and one block of columns per criterion.

    The colour is the score minus the patient's lowest score, so that rows of patients with few and many cells can be
    compared. Patients are ordered by their chosen k, then by name. Many patients are divided into several strips side by
    side; with more than 600, the rows are thinner and have no names.

    Parameters
    ----------
    scores
        The table of scores.
    selection
        The table of choices. A chosen k at the edge of the candidates is marked in another colour.
    metric
        The criterion that chose k: ``"aic"``, ``"bic"`` or ``"heldout_nll"``.

    Returns
    -------
    Figure
        Its height grows with the number of patients.
    """
    ks = np.sort(scores["k"].unique())
    differences = {column: score_differences(scores, column) for column in CRITERIA}
    chosen = selection.set_index("patient")
    patients = sorted(differences["aic"].index, key=lambda p: (chosen["k"].get(p, np.inf), natural_key(p)))
    labelled = len(patients) <= _MAX_LABELLED
    row = 0.15 if labelled else 0.03
    n_strips = int(np.clip(np.ceil(len(patients) * row / (_ROWS_PER_STRIP * 0.15)), 1, _MAX_STRIPS))
    per_strip = int(np.ceil(len(patients) / n_strips))
    labels = short_labels(patients, 28) if labelled else []
    margin = label_width(labels) + 0.3
    block = max(0.16 * len(ks), 1.7 if n_strips == 1 else 0.9)
    strip = margin + 3 * (block + 0.12)
    head = 1.35
    width = max(n_strips * strip + 0.15, margin + 6.0, 6.4)
    figure = new_figure(width, head + per_strip * row + 0.5)
    inch_title(figure, f"Scores of {len(patients)} patients against k, chosen by {criterion_name(metric)}")
    meshes = {}
    for s in range(n_strips):
        span = slice(s * per_strip, (s + 1) * per_strip)
        rows = patients[span]
        for b, (column, table) in enumerate(differences.items()):
            ax = inch_axes(figure, s * strip + margin + b * (block + 0.12), head, block, len(rows) * row)
            limit = color_limit(table)
            meshes[column] = _draw_block(ax, table.reindex(index=rows, columns=ks), chosen, limit)
            _dress_block(ax, column, labels[span] if b == 0 else [], ks, deciding=column == metric)
    _draw_keys(figure, meshes, differences, left=margin, step=max(block + 0.12, 1.82))
    return figure


def score_differences(scores: pd.DataFrame, column: str) -> pd.DataFrame:
    """Score minus the patient's lowest score: patients (in the order of the table) × k, NaN without a score."""
    table = scores.pivot(index="patient", columns="k", values=column).astype(float)
    table = table.reindex(scores["patient"].unique())
    return table.sub(table.min(axis=1), axis=0)


def color_limit(differences: pd.DataFrame) -> float:
    """Difference at which the colour saturates: the median of those above zero, so that small ones are visible."""
    values = differences.to_numpy()
    values = values[np.isfinite(values) & (values > 0)]
    return float(np.median(values)) if values.size else 1.0


def _draw_block(ax: Axes, table: pd.DataFrame, chosen: pd.DataFrame, limit: float) -> QuadMesh:
    n_rows, n_ks = table.shape
    ax.patch.set(facecolor=MISSING, hatch="//////", edgecolor="white", linewidth=0)
    mesh = ax.pcolormesh(
        np.ma.masked_invalid(table.to_numpy()), cmap=colormap("Blues_r"), vmin=0, vmax=limit, edgecolors="white",
        linewidth=0.3 if n_rows <= 200 else 0, rasterized=True,
    )  # fmt: skip
    ax.set(xlim=(0, n_ks), ylim=(n_rows, 0))
    best = (table == 0).to_numpy().nonzero()
    ax.scatter(
        best[1] + 0.5, best[0] + 0.5, s=16, marker="o", c="none", edgecolors="white", linewidths=0.7, gid="minimum"
    )
    k = np.array([chosen["k"].get(patient, np.nan) for patient in table.index], dtype=float)
    edge = np.array([bool(chosen["at_edge"].get(patient, False)) for patient in table.index])
    column = np.array([np.flatnonzero(table.columns == value)[0] if value in table.columns else np.nan for value in k])
    for color, those, gid in ((INK, ~edge, "chosen"), (ALARM, edge, "chosen-at-edge")):
        those = those & np.isfinite(column)
        ax.scatter(
            column[those] + 0.5, np.flatnonzero(those) + 0.5, s=16, marker="o", c=color, edgecolors="white",
            linewidths=0.8, gid=gid,
        )  # fmt: skip
    return mesh


def _dress_block(ax: Axes, column: str, labels: list[str], ks: np.ndarray, *, deciding: bool) -> None:
    style_axes(ax)
    ax.set_title(
        CRITERIA[column].name, fontsize=NORMAL, color=INK, loc="center", pad=14, fontweight="bold" if deciding else None
    )
    ax.spines[:].set(visible=True, color=INK if deciding else FAINT, linewidth=1.6 if deciding else 0.6)
    step = int(np.ceil(len(ks) / 12))
    ax.set_xticks(np.arange(0, len(ks), step) + 0.5, [str(k) for k in ks[::step]], fontsize=SMALL - 1)
    ax.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False, pad=1, length=0)
    ax.set_yticks(np.arange(len(labels)) + 0.5, labels, fontsize=SMALL)
    ax.tick_params(axis="y", length=0, pad=2)


def _draw_keys(
    figure: Figure, meshes: dict[str, QuadMesh], differences: dict[str, pd.DataFrame], *, left: float, step: float
) -> None:
    """Draw the colour bars and the legend of the markers between the title and the first row."""
    for i, (column, mesh) in enumerate(meshes.items()):
        ax = inch_axes(figure, left + i * step, 0.62, 1.5, 0.1)
        extend = "max" if np.nanmax(differences[column].to_numpy(), initial=0) > mesh.get_clim()[1] else "neither"
        bar = figure.colorbar(mesh, cax=ax, orientation="horizontal", extend=extend)
        bar.outline.set(edgecolor=MUTED, linewidth=0.5)
        bar.locator = MaxNLocator(nbins=4)
        ax.tick_params(labelsize=SMALL - 1, length=2, width=0.5, pad=1)
        ax.set_title(CRITERIA[column].difference, fontsize=SMALL, color=INK, loc="left", pad=3)
    dot: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 4.5, "markeredgecolor": "white"}
    handles = [
        Line2D([], [], color=INK, label="chosen k", **dot),
        Line2D([], [], color=ALARM, label="chosen k at the edge of the candidates", **dot),
        Line2D([], [], markerfacecolor="none", label="minimum (white ring)", **dot | {"markeredgecolor": MUTED}),
        Line2D(
            [],
            [],
            linestyle="none",
            marker="s",
            markersize=6,
            color=MISSING,
            markeredgecolor=MUTED,
            label="skipped or no score",
        ),
    ]
    figure.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.0, 0.1 / figure.get_figheight()), ncols=4, frameon=False,
        fontsize=SMALL, handletextpad=0.2,
    )  # fmt: skip
