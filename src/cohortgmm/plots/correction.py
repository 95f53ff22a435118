"""Figure of what the corrections for noise, missing features, selection and background change for one patient."""

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

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
    fix_limits,
    freeze_layout,
    new_figure,
    our_style,
    point_size,
    short_label,
    style_axes,
)

_PANEL = (4.6, 4.0)  # inches
_LETTERS_PER_INCH = 11.5  # in the font size of the title
_LEGEND_BELOW = 26  # points between axes and legend, for the tick labels and the label of the x axis
_MOST_BINS = 80

#: To show an ellipse, the limits are widened by at most this share of the range of the cells on either side.
_MOST_WIDENED = 0.5


@our_style()
def plot_correction(*, patient: str, x: np.ndarray, correction: Correction, feature_names: list[str]) -> Figure:
    """Compare a patient's mixture with the naive one, which ignores noise, selection and background.

    Parameters
    ----------
    patient
        The patient's id.
    x
        (n, D) cells, NaN where a feature is missing.
    correction
        Both mixtures, the probabilities of the background, and observed and unobserved cells drawn from the mixture.
    feature_names
        Names of the features.

    Returns
    -------
    Figure
        Naive and corrected components. With a background, also the probability that a cell is background. With
        completeness, also the observed cells with unobserved cells sampled from the mixture, and the density with and
        without the unobserved cells in the feature that the selection changes most.
    """
    x = np.asarray(x, dtype=float)[correction.shown]
    plane = x.shape[1] > 1
    panels = [_draw_components if plane else _draw_densities]
    panels += [_draw_background] if correction.background is not None else []
    if correction.unseen is not None:
        panels += ([_draw_unobserved] if plane else []) + [_draw_completed]
    columns = 2 if len(panels) == 4 else len(panels)
    rows = -(-len(panels) // columns)
    figure = new_figure(columns * _PANEL[0] + 0.4, rows * _PANEL[1] + 0.7, constrained=True)
    letters = int(figure.get_figwidth() * _LETTERS_PER_INCH)
    title = f"{short_label(patient, min(60, letters - 1))}: {_summary(correction)}"
    lines = wrap(title, letters, break_long_words=False)  # a line break within \$ would start a formula
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
        parts.append(f"{fit.completeness:.1%} of all cells observed, {fit.n_unobserved:,.0f} unobserved")
    if fit.n_empty:
        parts.append(f"{fit.n_empty:,} cells without features left out")
    return ", ".join(parts)


def _draw_components(ax: Axes, x: np.ndarray, correction: Correction, names: list[str]) -> None:
    """Draw the cells in the first two features, and the one-sigma ellipses of both mixtures."""
    style_axes(ax, title="components at 1 sigma, corrected and naive", xlabel=names[0], ylabel=names[1])
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
    """Widen the limits to show ellipses that extend past a gate, except where the cells would become too small."""
    spread = np.sqrt(np.einsum("kdd->kd", plane_covariances(model)))
    for feature, limits, set_limits in ((0, ax.get_xlim(), ax.set_xlim), (1, ax.get_ylim(), ax.set_ylim)):
        span = limits[1] - limits[0]
        lowest, highest = limits[0] - _MOST_WIDENED * span, limits[1] + _MOST_WIDENED * span
        low, high = (model.means[:, feature] + side * spread[:, feature] for side in (-1.1, 1.1))
        shown = (low >= lowest) & (high <= highest)
        set_limits(np.r_[limits[0], low[shown]].min(), np.r_[limits[1], high[shown]].max())


def _legend_below(ax: Axes, handles: list[Line2D]) -> None:
    """Put a legend under the label of the x axis, where it covers no points."""
    below = offset_copy(ax.transAxes, ax.figure, y=-_LEGEND_BELOW, units="points")
    ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=below, ncols=len(handles),
        borderaxespad=0, frameon=False, fontsize=SMALL,
    )  # fmt: skip


def _ellipses(ax: Axes, model: GaussianMixture, colors: Sequence[Any] | np.ndarray, linestyle: str, gid: str) -> None:
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
    """Draw the histogram of the cells and the densities of both mixtures, for a single feature."""
    style_axes(ax, title="density, corrected and naive", xlabel=names[0], ylabel="density")
    values = x[np.isfinite(x[:, 0]), 0]
    ax.hist(values, bins=_n_bins(len(values)), density=True, color=UNASSIGNED, label="cells")
    grid = np.linspace(*_range(values), 400)
    if correction.naive is not None:
        density = np.exp(correction.naive.log_prob(grid[:, None]))
        ax.plot(grid, density, color=INK, linestyle="--", linewidth=1.0, label="naive")
    density = np.exp(correction.fit.model.without_background().log_prob(grid[:, None]))
    ax.plot(grid, density, color=PLAIN, linewidth=1.6, label="corrected")
    ax.legend(loc="best", frameon=False, fontsize=SMALL)


def _draw_background(ax: Axes, x: np.ndarray, correction: Correction, names: list[str]) -> None:
    """Draw the cells coloured by their probability of being background, and the box of the background."""
    probability, box = correction.background, correction.fit.model.background
    assert probability is not None
    assert box is not None
    plane = x.shape[1] > 1
    title = f"probability of being background ({probability.sum():,.0f} of {len(x):,} cells)"
    style_axes(ax, title=title, xlabel=names[0], ylabel=names[1] if plane else "probability")
    order = np.argsort(probability, kind="stable")
    y = x[:, 1] if plane else probability
    points = ax.scatter(
        x[order, 0], y[order], c=probability[order], s=point_size(len(x)), cmap=colormap("viridis_r"),
        vmin=0, vmax=1, linewidths=0, rasterized=True, gid="background",
    )  # fmt: skip
    fix_limits(ax)
    if plane:
        size = box.upper[:2] - box.lower[:2]
        ax.add_patch(Rectangle(box.lower[:2], *size, fill=False, edgecolor=MUTED, linestyle=":", gid="box"))
    bar = ax.figure.colorbar(points, ax=ax, shrink=0.8)
    bar.ax.tick_params(labelsize=SMALL, length=2.5)
    bar.outline.set_visible(False)


def _draw_unobserved(ax: Axes, x: np.ndarray, correction: Correction, names: list[str]) -> None:
    """Draw the observed cells, and cells sampled from the mixture in place of the unobserved ones."""
    style_axes(ax, title="observed cells, and expected unobserved ones", xlabel=names[0], ylabel=names[1])
    _scatter(ax, x, UNASSIGNED)
    observed, unobserved = _draws(correction)
    drawn = unobserved[: round(len(x) * len(unobserved) / max(len(observed), 1))]
    ax.scatter(drawn[:, 0], drawn[:, 1], s=point_size(len(x)), color=ALARM, alpha=0.5, linewidths=0, rasterized=True)
    fix_limits(ax)
    handles = [
        Line2D([], [], marker="o", linestyle="", color=color, markersize=4, label=label)
        for color, label in ((UNASSIGNED, "observed"), (ALARM, "unobserved, drawn from the mixture"))
    ]
    _legend_below(ax, handles)


def _draw_completed(ax: Axes, x: np.ndarray, correction: Correction, names: list[str]) -> None:
    """Draw the density of the observed cells and that of all cells in the feature that the selection changes most."""
    observed, unobserved = _draws(correction)
    all_draws = np.concatenate([observed, unobserved])
    feature = max(range(x.shape[1]), key=lambda j: _gap(observed[:, j], all_draws[:, j]))
    style_axes(ax, title="density of observed and of all cells", xlabel=names[feature], ylabel="cells per unit")
    values = x[np.isfinite(x[:, feature]), feature]
    edges = np.linspace(*_range(np.concatenate([values, all_draws[:, feature]])), _n_bins(len(values)) + 1)
    width, scale = edges[1] - edges[0], len(values) / max(len(observed), 1)
    ax.hist(values, bins=edges, weights=np.full(len(values), 1 / width), color=UNASSIGNED, label="cells")
    for draws, color, label in ((all_draws, ALARM, "mixture, all"), (observed, PLAIN, "mixture, observed")):
        counts, _ = np.histogram(draws[:, feature], bins=edges)
        ax.stairs(counts * scale / width, edges, color=color, linewidth=1.3, label=label)
    ax.legend(loc="best", frameon=False, fontsize=SMALL)


def _draws(correction: Correction) -> tuple[np.ndarray, np.ndarray]:
    """Observed and unobserved cells, sampled from the mixture."""
    assert correction.seen is not None
    assert correction.unseen is not None
    return correction.seen, correction.unseen


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    """Largest distance between the empirical distribution functions of two samples."""
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
    """Draw cells that lack one of the two features as ticks along the axis of the other."""
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
