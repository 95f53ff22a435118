"""What the corrections for noise, gaps, selection and background change, for one patient."""

from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.transforms import offset_copy

from cohortgmm.cohort.naive_comparison import Correction
from cohortgmm.mixture import GaussianMixture
from cohortgmm.plots.patient import ellipse_axes, plane_covariances
from cohortgmm.plots.style import (
    ALARM,
    INK,
    LARGE,
    MUTED,
    PLAIN,
    SMALL,
    UNASSIGNED,
    colormap,
    component_colors,
    dress,
    fix_limits,
    freeze_layout,
    new_figure,
    our_style,
    point_size,
    short_label,
)

_PANEL = (4.6, 4.0)  # inches
_LETTERS_PER_INCH = 11.5  # of the title
_LEGEND_BELOW = 26  # points, for the numbers and the label of the x axis
_MOST_BINS = 80

#: Limits are widened by this share of what the cells span, on either side, to show an ellipse.
_MOST_WIDENED = 0.5


@our_style()
def plot_correction(*, patient: str, x: np.ndarray, correction: Correction, feature_names: list[str]) -> Figure:
    """A patient's mixture beside one that disregards what is wrong with the cells.

    Parameters
    ----------
    patient
        The patient's id.
    x
        (n, D) cells, NaN where a feature is missing.
    correction
        What is compared.
    feature_names
        Names of the features.

    Returns
    -------
    Figure
        Naive and corrected components; with a background, how probably each cell belongs to it; with completeness,
        the cells that are seen and those expected to be unseen, and the density of both in the feature that the
        selection changes most.
    """
    x = np.asarray(x, dtype=float)[correction.shown]
    plane = x.shape[1] > 1
    panels = [_draw_components if plane else _draw_densities]
    panels += [_draw_background] if correction.background is not None else []
    if correction.unseen is not None:
        panels += ([_draw_unseen] if plane else []) + [_draw_completed]
    columns = 2 if len(panels) == 4 else len(panels)
    rows = -(-len(panels) // columns)
    figure = new_figure(columns * _PANEL[0] + 0.4, rows * _PANEL[1] + 0.7, constrained=True)
    letters = int(figure.get_figwidth() * _LETTERS_PER_INCH)
    title = f"{short_label(patient, min(60, letters - 1))}: {_summary(correction)}"
    lines = wrap(title, letters, break_long_words=False)  # a break within \$ would make a formula
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=LARGE, color=INK)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    names = [short_label(name) for name in feature_names]
    for ax, draw in zip(axes, panels, strict=False):
        draw(ax, x, correction, names)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    freeze_layout(figure)
    return figure


def _summary(correction: Correction) -> str:
    fit = correction.fit
    parts = [f"k = {fit.model.n_components}"]
    if fit.model.background is not None:
        parts.append(f"background {fit.model.background.amp:.1%}")
    if correction.unseen is not None:
        parts.append(f"{fit.completeness:.1%} of all cells seen, {fit.n_unobserved:,.0f} not")
    if fit.n_empty:
        parts.append(f"{fit.n_empty:,} cells without features left out")
    return ", ".join(parts)


def _draw_components(ax: Axes, x: np.ndarray, correction: Correction, names: list[str]) -> None:
    """Cells in the first two features, and the ellipses at one sigma of both mixtures."""
    dress(ax, title="components at 1 sigma, corrected and naive", xlabel=names[0], ylabel=names[1])
    _scatter(ax, x, UNASSIGNED)
    _rug(ax, x)
    fix_limits(ax)
    model = correction.fit.model
    _show_ellipses(ax, model)
    colors = component_colors(np.arange(model.n_components))
    handles = [Line2D([], [], color=INK, linewidth=1.6, label="corrected")]
    if correction.naive is not None:
        _ellipses(ax, correction.naive, [INK] * model.n_components, "--", "naive")
        handles.append(Line2D([], [], color=INK, linewidth=1.0, linestyle="--", label="naive"))
    _ellipses(ax, model, colors, "-", "corrected")
    _legend_below(ax, handles)


def _show_ellipses(ax: Axes, model: GaussianMixture) -> None:
    """Widen the limits to the ellipses, which may reach past a gate; those that would shrink the cells stay cut off."""
    spread = np.sqrt(np.einsum("kdd->kd", plane_covariances(model)))
    for feature, limits, set_limits in ((0, ax.get_xlim(), ax.set_xlim), (1, ax.get_ylim(), ax.set_ylim)):
        span = limits[1] - limits[0]
        lowest, highest = limits[0] - _MOST_WIDENED * span, limits[1] + _MOST_WIDENED * span
        low, high = (model.means[:, feature] + side * spread[:, feature] for side in (-1.1, 1.1))
        shown = (low >= lowest) & (high <= highest)
        set_limits(np.r_[limits[0], low[shown]].min(), np.r_[limits[1], high[shown]].max())


def _legend_below(ax: Axes, handles: list[Line2D]) -> None:
    """A legend under the label of the x axis: within the axes it would cover points."""
    below = offset_copy(ax.transAxes, ax.figure, y=-_LEGEND_BELOW, units="points")
    ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=below, ncols=len(handles),
        borderaxespad=0, frameon=False, fontsize=SMALL,
    )  # fmt: skip


def _ellipses(ax: Axes, model: GaussianMixture, colors, linestyle: str, gid: str) -> None:
    axes = np.array([ellipse_axes(covariance) for covariance in plane_covariances(model)])
    ax.add_collection(
        EllipseCollection(
            axes[:, 0], axes[:, 1], axes[:, 2], units="xy", offsets=model.means[:, :2], offset_transform=ax.transData,
            facecolors="none", edgecolors=colors, linewidths=1.0 if linestyle == "--" else 1.6, linestyles=linestyle,
            zorder=4, gid=gid,
        ),
        autolim=False,
    )  # fmt: skip


def _draw_densities(ax: Axes, x: np.ndarray, correction: Correction, names: list[str]) -> None:
    """The same with a single feature."""
    dress(ax, title="density, corrected and naive", xlabel=names[0], ylabel="density")
    values = x[np.isfinite(x[:, 0]), 0]
    ax.hist(values, bins=_n_bins(len(values)), density=True, color=UNASSIGNED, label="cells")
    grid = np.linspace(*_range(values), 400)
    if correction.naive is not None:
        density = np.exp(correction.naive.log_prob(grid[:, None]))
        ax.plot(grid, density, color=INK, linestyle="--", linewidth=1.0, label="naive")
    density = np.exp(correction.fit.model.signal().log_prob(grid[:, None]))
    ax.plot(grid, density, color=PLAIN, linewidth=1.6, label="corrected")
    ax.legend(loc="best", frameon=False, fontsize=SMALL)


def _draw_background(ax: Axes, x: np.ndarray, correction: Correction, names: list[str]) -> None:
    """Cells by their probability of being background, and its box."""
    plane = x.shape[1] > 1
    title = f"probability of being background ({correction.background.sum():,.0f} of {len(x):,} cells)"
    dress(ax, title=title, xlabel=names[0], ylabel=names[1] if plane else "probability")
    order = np.argsort(correction.background, kind="stable")
    y = x[:, 1] if plane else correction.background
    points = ax.scatter(
        x[order, 0], y[order], c=correction.background[order], s=point_size(len(x)), cmap=colormap("viridis_r"),
        vmin=0, vmax=1, linewidths=0, rasterized=True, gid="background",
    )  # fmt: skip
    fix_limits(ax)
    box = correction.fit.model.background
    if plane:
        size = box.upper[:2] - box.lower[:2]
        ax.add_patch(Rectangle(box.lower[:2], *size, fill=False, edgecolor=MUTED, linestyle=":", gid="box"))
    bar = ax.figure.colorbar(points, ax=ax, shrink=0.8)
    bar.ax.tick_params(labelsize=SMALL, length=2.5)
    bar.outline.set_visible(False)


def _draw_unseen(ax: Axes, x: np.ndarray, correction: Correction, names: list[str]) -> None:
    """Cells that were seen, and cells drawn in the place of those that were not."""
    dress(ax, title="cells, and where unseen ones are expected", xlabel=names[0], ylabel=names[1])
    _scatter(ax, x, UNASSIGNED)
    unseen = correction.unseen[: round(len(x) * len(correction.unseen) / max(len(correction.seen), 1))]
    ax.scatter(unseen[:, 0], unseen[:, 1], s=point_size(len(x)), color=ALARM, alpha=0.5, linewidths=0, rasterized=True)
    fix_limits(ax)
    handles = [
        Line2D([], [], marker="o", linestyle="", color=color, markersize=4, label=label)
        for color, label in ((UNASSIGNED, "seen"), (ALARM, "unseen, drawn from the mixture"))
    ]
    _legend_below(ax, handles)


def _draw_completed(ax: Axes, x: np.ndarray, correction: Correction, names: list[str]) -> None:
    """Density of the cells, and of all cells, seen or not, in the feature that the selection changes most."""
    everyone = np.concatenate([correction.seen, correction.unseen])
    feature = max(range(x.shape[1]), key=lambda j: _gap(correction.seen[:, j], everyone[:, j]))
    dress(ax, title="observed and completed density", xlabel=names[feature], ylabel="cells per unit")
    values = x[np.isfinite(x[:, feature]), feature]
    edges = np.linspace(*_range(np.concatenate([values, everyone[:, feature]])), _n_bins(len(values)) + 1)
    width, scale = edges[1] - edges[0], len(values) / max(len(correction.seen), 1)
    ax.hist(values, bins=edges, weights=np.full(len(values), 1 / width), color=UNASSIGNED, label="cells")
    for draws, color, label in ((everyone, ALARM, "mixture, all"), (correction.seen, PLAIN, "mixture, seen")):
        counts, _ = np.histogram(draws[:, feature], bins=edges)
        ax.stairs(counts * scale / width, edges, color=color, linewidth=1.3, label=label)
    ax.legend(loc="best", frameon=False, fontsize=SMALL)


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    """Largest distance between the distribution functions of two samples."""
    if not (len(a) and len(b)):
        return 0.0
    places = np.quantile(b, np.linspace(0, 1, 101))
    shares = (np.searchsorted(np.sort(values), places) / len(values) for values in (a, b))
    return float(np.abs(np.subtract(*shares)).max())


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _n_bins(n: int) -> int:
    return int(np.clip(2.5 * np.sqrt(n), 10, _MOST_BINS))


def _scatter(ax: Axes, x: np.ndarray, color: str) -> None:
    ax.scatter(
        x[:, 0], x[:, 1], s=point_size(len(x)), color=color, linewidths=0, rasterized=True, zorder=1, gid="cells"
    )


def _rug(ax: Axes, x: np.ndarray) -> None:
    """Cells that lack one of the two features, at the edge."""
    for feature, other in ((0, 1), (1, 0)):
        values = x[np.isnan(x[:, other]) & ~np.isnan(x[:, feature]), feature]
        if len(values):
            at = np.full(len(values), 0.01)
            along = ax.get_xaxis_transform() if feature == 0 else ax.get_yaxis_transform()
            places = (values, at) if feature == 0 else (at, values)
            ax.scatter(
                *places, marker="|" if feature == 0 else "_", s=14, linewidths=0.4, color=MUTED, transform=along,
                rasterized=True, gid=f"missing-{other}",
            )  # fmt: skip
