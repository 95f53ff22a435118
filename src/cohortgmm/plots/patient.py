"""Figure of one patient: the choice of k, the components among the cells, and the cell types of the components."""

import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Patch

from cohortgmm.mixture import GaussianMixture
from cohortgmm.plots.criteria import criteria_legend, criterion_name, draw_criteria
from cohortgmm.plots.style import (
    CELL_TYPES,
    INK,
    LARGE,
    SMALL,
    UNASSIGNED,
    component_colors,
    fix_limits,
    freeze_layout,
    label_points,
    new_figure,
    our_style,
    point_size,
    short_label,
    style_axes,
)

_MIN_LABELLED_WEIGHT = 0.005
_MAX_NAMED_TYPES = len(CELL_TYPES)


@our_style()
def plot_patient(
    *,
    patient: str,
    x: np.ndarray,
    components: np.ndarray,
    model: GaussianMixture,
    scores: pd.DataFrame,
    metric: str,
    best_k: int,
    feature_names: list[str],
    umap: np.ndarray | None = None,
    cell_types: pd.Categorical | pd.Series | None = None,
    shown: np.ndarray | None = None,
) -> Figure:
    """Scores against k, components among the cells and cell types of the components of one patient, on one page.

    Parameters
    ----------
    patient
        The patient's id.
    x
        (n, D) cells in the fitted features. The first two features are drawn; if there is only one, its histogram.
    components
        (n,) component of every cell; a negative number means none.
    model
        The patient's mixture.
    scores
        The table of scores, with the rows of this patient among others.
    metric
        The criterion that chose k: ``"aic"``, ``"bic"`` or ``"heldout_nll"``.
    best_k
        The k that was chosen.
    feature_names
        Names of the features, such as ``["PC1", "PC2"]``.
    umap
        (n, 2) UMAP coordinates, NaN for cells that were not embedded; None leaves the panel out.
    cell_types
        n cell types; None leaves the panel of cell types out. With the categories of the whole cohort, frequent ones
        first, a type has the same colour in the figures of all patients.
    shown
        Rows of ``x`` that are drawn as points; None draws all. Numbers in texts always refer to all cells.

    Returns
    -------
    Figure
        A component has the same colour and number (counted from 0, as in the data) in all panels.

    Raises
    ------
    DataError
        If the table of scores has no row of the patient.
    """
    components = np.asarray(components, dtype=int)
    drawn = np.arange(len(components)) if shown is None else shown
    k = model.n_components
    with_types = cell_types is not None
    bars_height = 0.75 + 0.2 * max(k, 5)
    heights = [2.3, 4.4] + ([bars_height] if with_types else [])
    figure = new_figure(10.0, sum(heights) + 1.1, constrained=True)
    title = f"{short_label(patient, 60)}: {len(components):,} cells, k = {best_k} by {criterion_name(metric)}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=LARGE, color=INK)
    rows = figure.subfigures(len(heights), 1, height_ratios=heights)
    draw_criteria(rows[0].subplots(1, 3), scores, patient=patient, metric=metric, best_k=best_k)
    rows[0].legend(handles=criteria_legend(), loc="outside lower left", ncols=5, frameon=False, fontsize=SMALL)
    panels = np.atleast_1d(rows[1].subplots(1, 1 if umap is None else 2))
    if x.shape[1] > 1:
        _draw_features(panels[0], x[drawn], components[drawn], model, feature_names)
    else:
        _draw_one_feature(panels[0], x[drawn, 0], components[drawn], model, feature_names)
    if umap is not None:
        _draw_umap(panels[1], np.asarray(umap, dtype=float)[drawn], components[drawn])
    if with_types:
        _draw_composition(rows[2].subplots(), components, pd.Categorical(cell_types), model.weights)
    freeze_layout(figure)
    _label_components(panels[0], model)
    return figure


def ellipse_axes(covariance: np.ndarray) -> tuple[float, float, float]:
    """Full width and height of the one-sigma ellipse of a (2, 2) covariance, and the angle of its width in degrees."""
    values, vectors = np.linalg.eigh(covariance)
    major = vectors[:, 1]
    minor_length, major_length = 2 * np.sqrt(np.maximum(values, 0))
    return float(major_length), float(minor_length), float(np.degrees(np.arctan2(major[1], major[0])))


def plane_covariances(model: GaussianMixture) -> np.ndarray:
    """(K, 2, 2) covariances of the components in the first two features."""
    if model.covariance_type == "full":
        return model.covariances[:, :2, :2]
    return model.covariances[:, :2, None] * np.eye(2)


def _draw_features(
    ax: Axes, x: np.ndarray, components: np.ndarray, model: GaussianMixture, feature_names: list[str]
) -> None:
    """Draw the cells, and the one- and two-sigma ellipses of the components in the first two features."""
    xlabel, ylabel = (short_label(name) for name in feature_names[:2])
    style_axes(ax, title=f"components in {xlabel} and {ylabel}: 1 and 2 sigma", xlabel=xlabel, ylabel=ylabel)
    _scatter_cells(ax, x[:, :2], components)
    fix_limits(ax)
    outline = [patheffects.Stroke(linewidth=2.4, foreground="white", alpha=0.7), patheffects.Normal()]
    colors = component_colors(np.arange(model.n_components))
    for k, covariance in enumerate(plane_covariances(model)):
        width, height, angle = ellipse_axes(covariance)
        for sigma, linewidth in ((1, 1.5), (2, 0.9)):
            ellipse = Ellipse(
                model.means[k, :2], sigma * width, sigma * height, angle=angle, facecolor="none", edgecolor=colors[k],
                linewidth=linewidth, zorder=3, path_effects=outline, gid=f"component-{k}-sigma-{sigma}",
            )  # fmt: skip
            ax.add_patch(ellipse)


def _draw_one_feature(
    ax: Axes, x: np.ndarray, components: np.ndarray, model: GaussianMixture, feature_names: list[str]
) -> None:
    """Draw a histogram of the cells by component, and the density of every component."""
    style_axes(ax, title="components", xlabel=short_label(feature_names[0]), ylabel="density")
    numbers = np.unique(components)
    finite = np.isfinite(x)
    edges = np.histogram_bin_edges(x[finite], bins="auto")
    parts = [x[finite & (components == number)] for number in numbers]
    share = [np.full(len(part), 1 / (finite.sum() * (edges[1] - edges[0]))) for part in parts]
    ax.hist(parts, bins=edges, weights=share, stacked=True, color=list(component_colors(numbers)), alpha=0.6)
    grid = np.linspace(edges[0], edges[-1], 400)
    density = np.exp(model.joint_log_prob(grid[:, None] - model.means[:, None, :]))
    for k, color in enumerate(component_colors(np.arange(model.n_components))):
        ax.plot(grid, density[k], color=color, linewidth=1.2, gid=f"component-{k}")


def _draw_umap(ax: Axes, umap: np.ndarray, components: np.ndarray) -> None:
    embedded = np.isfinite(umap).all(axis=1)
    left_out = f" ({(~embedded).sum():,} of {len(umap):,} cells not embedded)" if not embedded.all() else ""
    style_axes(ax, title=f"components on the UMAP{left_out}", xlabel="UMAP 1", ylabel="UMAP 2")
    ax.set(xticks=[], yticks=[])
    _scatter_cells(ax, umap[embedded], components[embedded])


def _scatter_cells(ax: Axes, x: np.ndarray, components: np.ndarray) -> None:
    """Draw the cells coloured by component, in random order so that no component covers the others."""
    order = np.random.default_rng(0).permutation(len(x))
    size = point_size(len(x))
    ax.scatter(
        x[order, 0], x[order, 1], s=size, c=component_colors(components[order]), alpha=0.65, linewidths=0,
        rasterized=True, zorder=2, gid="cells",
    )  # fmt: skip


def _label_components(ax: Axes, model: GaussianMixture) -> None:
    """Label the components whose mean is within the limits with number and weight, except weights below 0.5 %."""
    order = np.argsort(-model.weights, kind="stable")
    one_feature = model.n_features == 1
    means = model.means[:, :2]
    if one_feature:
        means = np.column_stack([means[:, 0], np.exp(model.joint_log_prob(np.zeros((model.n_components, 1, 1)))[:, 0])])
    low, high = np.transpose([ax.get_xlim(), ax.get_ylim()])
    seen = ((means >= low) & (means <= high)).all(axis=1)
    order = order[(model.weights[order] >= _MIN_LABELLED_WEIGHT) & seen[order]]
    labels = [f"{k}: {model.weights[k]:.1%}" for k in order]
    # Darker than the ellipses, as texts in pale colours are hard to read.
    colors = component_colors(order) * (0.6, 0.6, 0.6, 1.0)
    label_points(ax, means[order, 0], means[order, 1], labels, colors=colors, boxed=True)


def _draw_composition(ax: Axes, components: np.ndarray, cell_types: pd.Categorical, weights: np.ndarray) -> None:
    """Draw a bar per component with the shares of its cell types."""
    counts = type_counts(components, cell_types, len(weights))
    size = counts.sum(axis=1)
    share = counts.div(size.where(size > 0, 1), axis=0)
    style_axes(ax, title="cell types of the components", xlabel="share of the component's cells", ylabel="component")
    # The index of the category determines the colour, so that it is the same in the figures of all patients.
    palette = dict(zip(map(str, cell_types.categories), CELL_TYPES, strict=False))
    colors = [palette.get(name, UNASSIGNED) for name in share]
    start = np.zeros(len(share))
    for column, color in zip(share, colors, strict=True):
        ax.barh(share.index, share[column], left=start, color=color, height=0.82, edgecolor="white", linewidth=0.5)
        for k in np.flatnonzero(share[column] >= 0.12):
            ax.text(
                start[k] + share[column].iloc[k] / 2, k, short_label(column, 14), ha="center", va="center",
                fontsize=SMALL - 1, color=_text_color(color),
            )  # fmt: skip
        start += share[column].to_numpy()
    ax.set_yticks(
        range(len(weights)),
        [f"{k}  ({weight:.1%}, {n:,} cells)" for k, weight, n in zip(share.index, weights, size, strict=True)],
    )
    for label, color in zip(ax.get_yticklabels(), component_colors(np.arange(len(weights))), strict=True):
        label.set_color(color * (0.6, 0.6, 0.6, 1.0))
        label.set_fontweight("bold")
    ax.set(xlim=(0, 1), ylim=(len(weights) - 0.5, -0.5))
    ax.tick_params(axis="y", length=0)
    handles = [Patch(color=color, label=short_label(name, 22)) for name, color in zip(share, colors, strict=True)]
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=SMALL)


def type_counts(components: np.ndarray, cell_types: pd.Categorical, n_components: int) -> pd.DataFrame:
    """Cells per component and cell type, types in the order of the categories; those after the twelfth are "other"."""
    names = pd.Series(cell_types.astype(object)).where(~pd.isna(cell_types), "other").map(str)
    named = [name for name in map(str, cell_types.categories[:_MAX_NAMED_TYPES]) if name != "other"]
    names = names.where(names.isin(named), "other")
    kept = [name for name in named if (names == name).any()]
    counts = pd.crosstab(np.asarray(components), names.to_numpy())
    columns = kept + (["other"] if "other" in counts.columns else [])
    return counts.reindex(index=range(n_components), columns=columns, fill_value=0)


def _text_color(background: str) -> str:
    red, green, blue = (int(background[i : i + 2], 16) for i in (1, 3, 5))
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 140 else INK
