"""Style of all figures: colours, font sizes, placement of labels, and files that are the same byte for byte every time."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import matplotlib
import matplotlib.colors
import matplotlib.font_manager
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from cohortgmm.errors import ConfigError
from cohortgmm.storage.atomic import atomic_path

SMALL, NORMAL, LARGE = 7.0, 8.0, 11.0  # points
DPI = 160  # of PNG files and of the rasterized points inside SVG files

INK = "#222222"
MUTED = "#8a8a8a"
FAINT = "#dddddd"
MISSING = "#e4e4e4"
PLAIN = "#0072b2"
ALARM = "#d55e00"

MAX_VECTOR_POINTS = 1000  # more points than this are rasterized inside SVG files

# The palette of Okabe & Ito (2008). Each further colour is the one farthest from all earlier ones in OKLab, for normal
# vision and for simulated protanopia, deuteranopia and tritanopia (Machado et al. 2009). The last colours are hard to
# distinguish, so components are also labelled with their number.
COMPONENTS = (
    *("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#6d0031", "#24009e", "#7900ff", "#615524"),
    *("#aa3179", "#8679ff", "#49316d", "#61db79", "#ce18c2", "#ff3d6d", "#00499e", "#6d3d49", "#ff79db", "#86b692"),
    *("#5500ce", "#189200", "#b60000", "#f318f3"),
)
# Paul Tol's muted and light schemes. Their hues differ from those of the components, so that a cell type is not mistaken
# for a component.
CELL_TYPES = (
    *("#332288", "#88ccee", "#117733", "#ddcc77", "#cc6677", "#44aa99", "#882255", "#999933", "#aa4499", "#ffaabb"),
    *("#bbcc33", "#ee8866"),
)
UNASSIGNED = "#c4c4c4"

#: Settings that differ from matplotlib's defaults. With a fixed salt, the ids in SVG files are not random.
_SETTINGS = {"svg.hashsalt": "cohortgmm", "svg.fonttype": "path"}

#: Settings of interactive windows, on which no figure file depends. They are not read, because reading ``backend``
#: would load a backend.
_OF_WINDOWS = ("backend", "date.", "interactive", "timezone", "tk.", "toolbar", "webagg.")


@contextmanager
def our_style() -> Iterator[None]:
    """Use matplotlib's defaults and the settings of this module, whatever a matplotlibrc or a notebook has set.

    It is a context manager and a decorator. A figure is the same on every machine if it is drawn and written within it.
    """
    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith(_OF_WINDOWS)}
    wanted: dict[str, Any] = defaults | _SETTINGS
    changed = {key: value for key, value in wanted.items() if matplotlib.rcParams[key] != value}
    with matplotlib.rc_context(changed):
        yield


def colormap(name: str) -> matplotlib.colors.Colormap:
    """One of matplotlib's colour maps with 256 colours, whatever number of colours a matplotlibrc sets."""
    return matplotlib.colormaps[name].resampled(256)


def component_colors(components: np.ndarray) -> np.ndarray:
    """RGBA colours of components.

    Parameters
    ----------
    components
        (n,) component indices. A negative index means no component and gives grey. The colours repeat after 24.

    Returns
    -------
    ndarray
        (n, 4) float64. A component has the same colour in every panel and figure.
    """
    components = np.asarray(components, dtype=int)
    palette = matplotlib.colors.to_rgba_array([*COMPONENTS, UNASSIGNED])
    return palette[np.where(components < 0, len(COMPONENTS), components % len(COMPONENTS))]


@cache
def _glyphs() -> frozenset[int]:
    """Code points that the font of the figures can draw."""
    with our_style():
        path = matplotlib.font_manager.findfont("DejaVu Sans")
    return frozenset(matplotlib.font_manager.get_font(path).get_charmap())


def drawable(text: object) -> str:
    r"""Free text on one line, where every character that the font cannot draw is written as its code.

    Runs of white space become one space. Control characters, direction marks, emoji and scripts that the font lacks are
    therefore still distinguishable, and no figure file contains a character that its format does not allow.

    Examples
    --------
    >>> drawable("P\t1 \x07 \U0001f9ec é")
    'P 1 \\x07 \\U0001f9ec é'
    """
    text = " ".join(str(text).split())
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if char.isprintable() and ord(char) in _glyphs() else char.encode("unicode_escape").decode()
        for char in text
    )


def short_label(text: object, width: int = 24) -> str:
    """A label of at most ``width`` characters: the :func:`drawable` text with its middle cut out, ``$`` kept literal.

    The middle is cut because the ends usually distinguish the patients of a cohort: a site at the start, a number at
    the end.
    """
    text = drawable(text)
    if len(text) > width:
        tail = (width - 1) // 2
        text = text[: width - 1 - tail].rstrip() + "…" + text[len(text) - tail :].lstrip()
    return text.replace("$", r"\$")


def short_labels(texts: Iterable[object], width: int = 24) -> list[str]:
    """:func:`short_label` of every text; where labels would be equal, the part in which the texts differ is kept."""
    drawn = [drawable(text) for text in texts]
    labels = [short_label(text, width) for text in drawn]
    alike: defaultdict[str, set[str]] = defaultdict(set)
    for text, label in zip(drawn, labels, strict=True):
        alike[label].add(text)
    head = width // 4
    for i, text in enumerate(drawn):
        if len(alike[labels[i]]) > 1:
            first, last = min(alike[labels[i]]), max(alike[labels[i]])
            shared = next(j for j, (a, b) in enumerate(zip_longest(first, last)) if a != b)
            start = max(shared - width // 3, head)
            text = f"{text[:head]}…{text[start:]}"
            labels[i] = short_label(text if len(text) <= width else text[: width - 1] + "…", width)
    return labels


def natural_key(text: object) -> list[tuple[bool, int | str]]:
    """Sort key that orders numbers within texts by value: patient 2 comes before patient 10."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else part) for part in re.split(r"(\d+)", str(text))]


def label_width(labels: list[str], fontsize: float = SMALL) -> float:
    """Width in inches of the widest of some labels."""
    figure = new_figure(1, 1)
    renderer = figure.canvas.get_renderer()
    boxes = [figure.text(0, 0, label, fontsize=fontsize).get_window_extent(renderer) for label in labels]
    return max((box.width for box in boxes), default=0.0) / figure.dpi


def new_figure(width: float, height: float, *, constrained: bool = False) -> Figure:
    """An empty figure of a size in inches. It is not registered with pyplot, and its texts can be measured."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained" if constrained else None)
    FigureCanvasAgg(figure)
    return figure


def inch_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes whose place is given in inches from the upper left corner of the figure."""
    total_width, total_height = figure.get_size_inches()
    return figure.add_axes(
        (left / total_width, 1 - (top + height) / total_height, width / total_width, height / total_height)
    )


def inch_title(figure: Figure, text: str) -> None:
    """Title in the upper left corner of a figure laid out in inches."""
    width, height = figure.get_size_inches()
    figure.text(0.15 / width, 1 - 0.12 / height, text, va="top", fontsize=LARGE, color=INK)


def style_axes(
    ax: Axes,
    *,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    grid: Literal["both", "x", "y"] | None = None,
    bold: bool = False,
) -> None:
    """Apply the common style: title at the left, thin spines, small ticks, an optional faint grid."""
    weight = "bold" if bold else "normal"
    ax.set_title(title, fontsize=NORMAL + 1, fontweight=weight, color=INK, loc="left", pad=5)
    ax.set_xlabel(xlabel, fontsize=NORMAL, color=INK)
    ax.set_ylabel(ylabel, fontsize=NORMAL, color=INK)
    ax.tick_params(which="both", labelsize=SMALL, color=MUTED, labelcolor=INK, length=2.5, width=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    for spine in ax.spines.values():
        spine.set(color=MUTED, linewidth=0.7)
    if grid:
        ax.grid(axis=grid, color=FAINT, linewidth=0.5)
    ax.set_axisbelow(True)


def point_size(n: int) -> float:
    """Area of the marker of a cell, in points squared, in a panel with n cells."""
    return float(np.clip(6000 / max(n, 1), 1.0, 12.0))


def fix_limits(ax: Axes) -> None:
    """Fix the limits to what is drawn so far, so that a very large ellipse drawn later does not change the scale."""
    ax.margins(0.06)
    ax.autoscale_view()
    ax.set_autoscale_on(False)


def show_message(ax: Axes, message: str) -> None:
    """Show a message in a panel without data."""
    ax.set(xticks=[], yticks=[])
    ax.text(0.5, 0.5, message, transform=ax.transAxes, ha="center", va="center", fontsize=NORMAL, color=MUTED)


def label_points(
    ax: Axes,
    x: np.ndarray,
    y: np.ndarray,
    labels: list[str],
    *,
    avoid: tuple[np.ndarray, np.ndarray] | None = None,
    colors: np.ndarray | None = None,
    boxed: bool = False,
) -> list[Annotation]:
    """Label points so that no label covers another one or leaves the axes.

    The layout of the figure must be final, because the sizes of the labels are measured.

    Parameters
    ----------
    ax
        Axes with final limits.
    x, y
        (n,) positions in data units, the most important first.
    labels
        n texts.
    avoid
        x and y of points that no label may cover.
    colors
        (n, 4) colours of the texts; dark grey if None.
    boxed
        Whether labels have a white box and may cover their own point.

    Returns
    -------
    list of Annotation
        The labels for which a place was found, in the given order.
    """
    style = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8} if boxed else None
    line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 1}
    pixels = ax.figure.dpi / 72
    points = np.empty((0, 2)) if avoid is None else ax.transData.transform(np.column_stack(avoid))
    taken = [Bbox([point, point]).padded(2 * pixels) for point in points]
    placed = []
    for i, label in enumerate(labels):
        color = INK if colors is None else colors[i]
        note = ax.annotate(
            label, (x[i], y[i]), (0, 0), textcoords="offset points", va="center", fontsize=SMALL, color=color,
            bbox=style, arrowprops=line, zorder=6,
        )  # fmt: skip
        box = _free_place(note, taken, [(0, 0), *_PLACES] if boxed else _PLACES)
        if box is None:
            note.remove()
            continue
        taken.append(box)
        placed.append(note)
    return placed


# Offsets of a label from its point, in points (1/72 inch), the nearest first.
_PLACES: list[tuple[float, float]] = [
    (reach * right, reach * up)
    for reach in (7, 12, 18, 25, 33, 42)
    for up in (0.6, -0.6, 1, -1, 0)
    for right in (1, -1, 0)
    if (right, up) != (0, 0)
]


def _free_place(note: Annotation, taken: list[Bbox], places: list[tuple[float, float]]) -> Bbox | None:
    """Move a label to the first free place inside its axes and return its box; None if no place is free."""
    renderer = note.figure.canvas.get_renderer()
    frame = note.axes.bbox
    for right, up in places:
        note.set(position=(right, up), ha=("center", "left", "right")[int(np.sign(right))])
        note.update_positions(renderer)
        box = Text.get_window_extent(note, renderer).padded(1.5 * renderer.points_to_pixels(1))
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        if inside and not any(box.overlaps(other) for other in taken):
            return box
    return None


def freeze_layout(figure: Figure) -> None:
    """Compute the layout once and keep it: computed again at every save, it would differ by rounding errors."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


@our_style()
def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure to a ``.svg`` or ``.png`` file; equal figures give equal bytes.

    Parameters
    ----------
    figure
        The figure.
    path
        The file to write. Its suffix decides the format.

    Raises
    ------
    ConfigError
        If the suffix is neither ``.svg`` nor ``.png``.
    """
    path = Path(path)
    # With a date, a version or random ids, the file of every rerun would look like a new result.
    metadata = {".svg": {"Date": None, "Creator": None}, ".png": {"Software": None}}
    if path.suffix.lower() not in metadata:
        raise ConfigError(f"figures are written as .svg or .png, not {path.name!r}: change the suffix")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, metadata=metadata[path.suffix.lower()])
