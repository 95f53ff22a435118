"""Overview of the cohort: sizes, chosen k, convergence, overfitting, condition numbers and weights."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from cohortgmm.plots.criteria import NOTHING_HELD_OUT
from cohortgmm.plots.style import (
    ALARM,
    FAINT,
    INK,
    LARGE,
    MAX_VECTOR_POINTS,
    MUTED,
    PLAIN,
    SMALL,
    freeze_layout,
    label_points,
    natural_key,
    new_figure,
    our_style,
    short_labels,
    show_message,
    style_axes,
)

_MAX_NAMED = 60  # most patients whose names fit under the panel of weights
_N_OUTLIERS = 6  # most patients named in a panel


@our_style()
def plot_overview(diagnostics: pd.DataFrame, weights: pd.DataFrame) -> Figure:
    """Six panels that show all patients.

    Parameters
    ----------
    diagnostics
        Table with one row per patient, as in ``qc/diagnostics.tsv``.
    weights
        Table with one row per patient and component, as in ``qc/weights.tsv``.

    Returns
    -------
    Figure
        The chosen k, the number of cells, the EM iterations, training against held-out NLL and the largest condition
        number per patient, and the weight of every component. Patients with the largest gap between training and
        held-out NLL, or with the largest condition numbers, are named.
    """
    patients = diagnostics["patient"].tolist()
    names = dict(zip(patients, short_labels(patients), strict=True))
    figure = new_figure(11.0, 9.6 if len(patients) <= _MAX_NAMED else 8.8, constrained=True)
    figure.suptitle(f"Models of {len(patients)} patients", x=0.01, ha="left", fontsize=LARGE, color=INK)
    grid = figure.add_gridspec(3, 6, height_ratios=(1, 1.25, 1.1))
    _draw_chosen_k(figure.add_subplot(grid[0, :2]), diagnostics)
    _draw_cells(figure.add_subplot(grid[0, 2:4]), diagnostics)
    _draw_iterations(figure.add_subplot(grid[0, 4:]), diagnostics)
    heldout, condition = figure.add_subplot(grid[1, :3]), figure.add_subplot(grid[1, 3:])
    worst = (_draw_heldout(heldout, diagnostics), _draw_condition(condition, diagnostics))
    _draw_weights(figure.add_subplot(grid[2, :]), weights, names)
    freeze_layout(figure)
    for ax, points in zip((heldout, condition), worst, strict=True):
        drawn = np.concatenate([dots.get_offsets() for dots in ax.collections] or [np.empty((0, 2))])
        labels = [names[patient] for patient in points["patient"]]
        label_points(ax, points["x"].to_numpy(), points["y"].to_numpy(), labels, avoid=(drawn[:, 0], drawn[:, 1]))
    return figure


def _draw_chosen_k(ax: Axes, diagnostics: pd.DataFrame) -> None:
    style_axes(ax, title="chosen k", xlabel="k", ylabel="patients", grid="y")
    counts = diagnostics["k"].value_counts().sort_index()
    ax.bar(counts.index, counts, width=0.8, color=PLAIN)
    _k_axis(ax, diagnostics["k"])
    _count_axes(ax.yaxis)


def _draw_cells(ax: Axes, diagnostics: pd.DataFrame) -> None:
    style_axes(ax, title="cells per patient", xlabel="chosen k", ylabel="cells", grid="y")
    x, y = spread(diagnostics["k"], diagnostics["n_cells"]), diagnostics["n_cells"].to_numpy()
    ax.scatter(x, y, s=12, color=PLAIN, linewidths=0, rasterized=len(x) > MAX_VECTOR_POINTS)
    ax.set_yscale("log")
    _plain_log(ax)
    _k_axis(ax, diagnostics["k"])


def _draw_iterations(ax: Axes, diagnostics: pd.DataFrame) -> None:
    converged = diagnostics["converged"].to_numpy(dtype=bool)
    title = "EM iterations" if converged.all() else f"EM iterations: {(~converged).sum()} did not converge"
    style_axes(ax, title=title, xlabel="chosen k", ylabel="iterations", grid="y")
    x, y = spread(diagnostics["k"], diagnostics["n_iter"]), diagnostics["n_iter"].to_numpy()
    many = len(x) > MAX_VECTOR_POINTS
    ax.scatter(x[converged], y[converged], s=12, color=PLAIN, linewidths=0, label="converged", rasterized=many)
    ax.scatter(x[~converged], y[~converged], s=22, marker="^", color=ALARM, linewidths=0, label="not converged")
    ax.set_ylim(0, max(1.1 * y.max(), 1))
    _k_axis(ax, diagnostics["k"])
    _count_axes(ax.yaxis)
    if not converged.all():
        ax.legend(fontsize=SMALL, frameon=False, handletextpad=0.1, loc="best")


def _draw_heldout(ax: Axes, diagnostics: pd.DataFrame) -> pd.DataFrame:
    """Draw the panel and return the patients with the largest gaps, with their positions, the largest first."""
    style_axes(ax, title="fit to training and to held-out cells")
    points = diagnostics.assign(x=diagnostics["train_nll"], y=diagnostics["heldout_nll"])
    points = points[np.isfinite(points["x"]) & np.isfinite(points["y"])]
    if points.empty:
        show_message(ax, NOTHING_HELD_OUT)
        return points
    ax.set(xlabel="training NLL (nats per cell)", ylabel="held-out NLL (nats per cell)")
    ax.grid(color=FAINT, linewidth=0.5)
    _scatter_floored(ax, points["x"], points["y"], points["n_floored"] > 0)
    ax.margins(0.12)
    ends = np.array(ax.get_xlim())
    ax.plot(ends, ends, color=MUTED, linewidth=0.8, zorder=1, gid="diagonal")
    ax.set_xlim(ends)
    linear = 1.5 * np.abs(ends).max()
    if points["y"].max() > 20 * linear:
        # Otherwise a single failed fit would set the scale, and all others would lie on the diagonal.
        ax.set_yscale("symlog", linthresh=linear, linscale=2)
        ax.set_ylim(min(ends[0], points["y"].min() - 0.1 * linear), 3 * points["y"].max())
        ax.axhline(linear, color=MUTED, linewidth=0.8, linestyle=":")
        ax.annotate("log scale above this line", (0, linear), (4, -3), xycoords=ax.get_yaxis_transform(),
                    textcoords="offset points", va="top", fontsize=SMALL, color=MUTED)  # fmt: skip
    gap = points["y"] - points["x"]
    scale = max((gap - gap.median()).abs().median(), 1e-9)
    worst = points.assign(gap=gap).sort_values("gap", ascending=False, kind="stable")
    return worst[worst["gap"] > gap.median() + 3 * scale].head(_N_OUTLIERS)


def _draw_condition(ax: Axes, diagnostics: pd.DataFrame) -> pd.DataFrame:
    """Draw the panel and return the patients with the largest numbers, with their positions, the largest first."""
    points = diagnostics.sort_values("max_condition", kind="stable").reset_index(drop=True)
    points = points.assign(x=points.index + 1, y=points["max_condition"].clip(lower=1))
    floored = points["n_floored"] > 0
    n = f": {floored.sum()} patients at the covariance floor" if floored.any() else ""
    style_axes(
        ax, title=f"largest condition number{n}", xlabel="patients, in order of the condition number",
        ylabel="largest / smallest eigenvalue", grid="y",
    )  # fmt: skip
    _scatter_floored(ax, points["x"], points["y"], floored)
    ax.set_yscale("log")
    ax.margins(x=0.04, y=0.15)
    _count_axes(ax.xaxis)
    if floored.any():
        ax.legend(fontsize=SMALL, frameon=False, handletextpad=0.1, loc="upper left")
    return points.iloc[::-1].head(3)


def _scatter_floored(ax: Axes, x: pd.Series, y: pd.Series, floored: pd.Series) -> None:
    shared: dict[str, Any] = {"linewidths": 1, "rasterized": len(x) > MAX_VECTOR_POINTS}
    ax.scatter(x[~floored], y[~floored], s=12, color=PLAIN, label="no covariance at the floor", **shared)
    hollow: dict[str, Any] = {"facecolors": "white", "edgecolors": ALARM}
    ax.scatter(x[floored], y[floored], s=16, label="a covariance at the floor", **hollow, **shared)


def _draw_weights(ax: Axes, weights: pd.DataFrame, names: dict[str, str]) -> None:
    """Draw the weights on a logarithmic axis, patients ordered by k, with every other group of equal k shaded."""
    style_axes(ax, title="component weights, the smallest of every patient in orange", ylabel="weight", grid="y")
    by_patient = {patient: np.sort(group.to_numpy()) for patient, group in weights.groupby("patient")["weight"]}
    order = sorted(by_patient, key=lambda patient: (len(by_patient[patient]), natural_key(patient)))
    ks = np.array([len(by_patient[patient]) for patient in order])
    size = 14 if len(order) <= _MAX_NAMED else 6
    x = np.repeat(np.arange(len(order)), ks)
    y = np.concatenate([by_patient[patient] for patient in order])
    smallest = np.concatenate([np.arange(k) == 0 for k in ks])
    # A logarithmic axis would leave out a component with weight 0.
    y = np.maximum(y, np.min(y[y > 0]) / 3)
    dots: dict[str, Any] = {"s": size, "linewidths": 0, "rasterized": len(x) > MAX_VECTOR_POINTS}
    ax.scatter(x[~smallest], y[~smallest], color=PLAIN, alpha=0.8, **dots)
    ax.scatter(x[smallest], y[smallest], color=ALARM, **dots)
    for i, k in enumerate(np.unique(ks)):
        first, last = np.flatnonzero(ks == k)[[0, -1]]
        if i % 2:
            ax.axvspan(first - 0.5, last + 0.5, color=FAINT, alpha=0.5, linewidth=0, zorder=0)
        narrow = (last - first + 1) / len(order) < 0.06
        ax.text(
            (first + last) / 2, 0.98, f"{k}" if narrow else f"k = {k}", transform=ax.get_xaxis_transform(), ha="center",
            va="top", fontsize=SMALL, color=INK,
        )  # fmt: skip
    ax.set(yscale="log", xlim=(-0.5, len(order) - 0.5), ylim=(y.min() / 1.5, max(y.max() * 2.2, 1.5)))
    _plain_log(ax)
    if len(order) <= _MAX_NAMED:
        ax.set_xticks(range(len(order)), [names.get(p, "?") for p in order], rotation=90, fontsize=SMALL)
    else:
        ax.set_xticks([])
        ax.set_xlabel(f"{len(order)} patients, in order of k and name", fontsize=SMALL + 1, color=INK)


def spread(group: pd.Series, value: pd.Series) -> np.ndarray:
    """Positions for a strip chart: the group plus an offset of at most 0.35, which the rank of the value determines."""
    rank = value.groupby(group.to_numpy()).rank(method="first").to_numpy() - 1
    size = value.groupby(group.to_numpy()).transform("size").to_numpy()
    # With steps of the golden ratio, values that are close have distant offsets in groups of every size.
    offset = (rank * 0.6180339887 + 0.5) % 1 - 0.5
    return group.to_numpy(dtype=float) + np.where(size > 1, 0.7 * offset, 0.0)


def _k_axis(ax: Axes, k: pd.Series) -> None:
    ax.set_xlim(k.min() - 0.7, k.max() + 0.7)
    _count_axes(ax.xaxis)


def _count_axes(*axes: Axis) -> None:
    for axis in axes:
        axis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def _plain_log(ax: Axes) -> None:
    """Label a logarithmic y axis with numbers such as 0.05; if the range is short, also between powers of ten."""
    low, high = ax.get_ylim()
    few = np.log10(high / low) < 1.5
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,.10g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
