"""What every figure shares: colours, type sizes, labels that do not collide, and files that repeat byte for byte."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import zip_longest
from pathlib import Path

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

MAX_VECTOR_POINTS = 1000  # beyond, points are rasterized inside SVG files

# Okabe & Ito (2008), then the colours that stay farthest from all earlier ones, in OKLab, for normal vision and for
# simulated protanopia, deuteranopia and tritanopia (Machado et al. 2009). Far down the list nobody tells all of them
# apart by colour alone, which is why components also carry their number.
COMPONENTS = (
    *("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#6d0031", "#24009e", "#7900ff", "#615524"),
    *("#aa3179", "#8679ff", "#49316d", "#61db79", "#ce18c2", "#ff3d6d", "#00499e", "#6d3d49", "#ff79db", "#86b692"),
    *("#5500ce", "#189200", "#b60000", "#f318f3"),
)
# Paul Tol's muted and light schemes: another family of hues, so that a cell type is not taken for a component.
CELL_TYPES = (
    *("#332288", "#88ccee", "#117733", "#ddcc77", "#cc6677", "#44aa99", "#882255", "#999933", "#aa4499", "#ffaabb"),
    *("#bbcc33", "#ee8866"),
)
UNASSIGNED = "#c4c4c4"

#: What figures set beside matplotlib's own defaults. The salt takes the place of random ids.
_SETTINGS = {"svg.hashsalt": "cohortgmm", "svg.fonttype": "path"}

#: Settings of windows, which no figure file depends on; to ask for the backend alone would load one.
_OF_WINDOWS = ("backend", "date.", "interactive", "timezone", "tk.", "toolbar", "webagg.")


@contextmanager
def our_style() -> Iterator[None]:
    """Draw and write with matplotlib's defaults and our few settings, whatever a matplotlibrc or a notebook has set.

    A context manager and a decorator. A figure is the same everywhere only if it is drawn and written within.
    """
    wanted = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith(_OF_WINDOWS)}
    wanted |= _SETTINGS
    changed = {key: value for key, value in wanted.items() if matplotlib.rcParams[key] != value}
    with matplotlib.rc_context(changed):
        yield


def colormap(name: str) -> matplotlib.colors.Colormap:
    """One of matplotlib's colour maps with 256 colours: a matplotlibrc decides on another number when it is loaded."""
    return matplotlib.colormaps[name].resampled(256)


def component_colors(components: np.ndarray) -> np.ndarray:
    """RGBA colours of components.

    Parameters
    ----------
    components
        (n,) component indices; a negative index means no component and is grey. The colours repeat after 24.

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
    r"""Free text in one line, with white space folded; what the font cannot draw is written as its code.

    So control characters, marks of direction, emoji and scripts that the font lacks stay apart, and no file of a figure
    holds a character that is not allowed in it.

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
    """Free text as a one-line label: :func:`drawable`, the middle cut out beyond ``width``, ``$`` kept literal.

    The middle goes because both ends tell patients of one cohort apart: a site in front, a number behind.
    """
    text = drawable(text)
    if len(text) > width:
        tail = (width - 1) // 2
        text = text[: width - 1 - tail].rstrip() + "…" + text[len(text) - tail :].lstrip()
    return text.replace("$", r"\$")


def short_labels(texts: Iterable[object], width: int = 24) -> list[str]:
    """:func:`short_label` of every text; those that would read alike are cut so that what tells them apart stays."""
    texts = [drawable(text) for text in texts]
    labels = [short_label(text, width) for text in texts]
    alike = defaultdict(set)
    for text, label in zip(texts, labels, strict=True):
        alike[label].add(text)
    head = width // 4
    for i, text in enumerate(texts):
        if len(alike[labels[i]]) > 1:
            first, last = min(alike[labels[i]]), max(alike[labels[i]])
            shared = next(j for j, (a, b) in enumerate(zip_longest(first, last)) if a != b)
            start = max(shared - width // 3, head)
            text = f"{text[:head]}…{text[start:]}"
            labels[i] = short_label(text if len(text) <= width else text[: width - 1] + "…", width)
    return labels


def natural_key(text: object) -> list:
    """Sort key that puts patient 2 before patient 10."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else part) for part in re.split(r"(\d+)", str(text))]


def label_width(labels: list[str], fontsize: float = SMALL) -> float:
    """Width in inches of the widest of some labels."""
    figure = new_figure(1, 1)
    renderer = figure.canvas.get_renderer()
    boxes = [figure.text(0, 0, label, fontsize=fontsize).get_window_extent(renderer) for label in labels]
    return max((box.width for box in boxes), default=0.0) / figure.dpi


def new_figure(width: float, height: float, *, constrained: bool = False) -> Figure:
    """An empty figure, sizes in inches, that belongs to no pyplot state and can measure its texts."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained" if constrained else None)
    FigureCanvasAgg(figure)
    return figure


def inch_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches from the figure's upper left corner."""
    total_width, total_height = figure.get_size_inches()
    return figure.add_axes(
        (left / total_width, 1 - (top + height) / total_height, width / total_width, height / total_height)
    )


def inch_title(figure: Figure, text: str) -> None:
    """Title in the upper left corner of a figure laid out in inches."""
    width, height = figure.get_size_inches()
    figure.text(0.15 / width, 1 - 0.12 / height, text, va="top", fontsize=LARGE, color=INK)


def dress(
    ax: Axes, *, title: str = "", xlabel: str = "", ylabel: str = "", grid: str | None = None, bold: bool = False
) -> None:
    """Give axes the common look: title at the left, thin spines, small ticks, an optional faint grid."""
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
    """Area of a cell's point, in points squared, in a panel of n cells."""
    return float(np.clip(6000 / max(n, 1), 1.0, 12.0))


def fix_limits(ax: Axes) -> None:
    """Limits from what is drawn so far: a huge ellipse that follows must not shrink the cells to a spot."""
    ax.margins(0.06)
    ax.autoscale_view()
    ax.set_autoscale_on(False)


def say_empty(ax: Axes, message: str) -> None:
    """Put a message where a panel has nothing to show."""
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
    """Label points without any label covering another one or leaving the axes.

    The layout of the figure must be final, because the labels are measured.

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
        (n, 4) colours of the texts; ink if None.
    boxed
        Whether labels get a white box and may sit on their point.

    Returns
    -------
    list of Annotation
        The labels for which a place was found, in order.
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


# Offsets from a point in points (1/72 inch), near ones first.
_PLACES = [
    (reach * right, reach * up)
    for reach in (7, 12, 18, 25, 33, 42)
    for up in (0.6, -0.6, 1, -1, 0)
    for right in (1, -1, 0)
    if (right, up) != (0, 0)
]


def _free_place(note: Annotation, taken: list[Bbox], places: list[tuple[float, float]]) -> Bbox | None:
    """Move a label to the first free place inside its axes; its box there, or None if there is no such place."""
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
    """Lay the figure out once and for good: a layout repeated at every save would drift by rounding."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


@our_style()
def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure to a ``.svg`` or ``.png`` file, the same bytes every time.

    Parameters
    ----------
    figure
        The figure.
    path
        Where to; the suffix decides the format.

    Raises
    ------
    ConfigError
        If the suffix is neither ``.svg`` nor ``.png``.
    """
    path = Path(path)
    # Dates, versions and random ids would make every rerun look like a new result.
    metadata = {".svg": {"Date": None, "Creator": None}, ".png": {"Software": None}}
    if path.suffix.lower() not in metadata:
        raise ConfigError(f"figures are written as .svg or .png, not {path.name!r}: change the suffix")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, metadata=metadata[path.suffix.lower()])
