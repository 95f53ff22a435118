"""Tables of a made-up cohort, and a measure of labels that collide."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.text import Annotation, Text

KS = (2, 3, 4, 5, 6)
NAMES = ("P{0}", "Hôpital Saint-Louis / cohort B, patient {0} (baseline, week 00)", "site {0}/donor ${0}$", "D_{0}")


def make_cohort(n_patients: int) -> dict[str, pd.DataFrame]:
    """Scores, selection by BIC, diagnostics, weights and composition; k = 6 is skipped for every fifth patient."""
    rng = np.random.default_rng(n_patients)
    tables = {name: [] for name in ("scores", "selection", "diagnostics", "weights", "composition")}
    for i in range(n_patients):
        patient, best = NAMES[i % 4].format(i), int(rng.integers(2, 6))
        for k in KS:
            bic = 5000.0 + 40 * (k - best) ** 2 + rng.uniform(0, 5)
            row = {"aic": bic - 30 * k, "bic": bic, "heldout_nll": bic / 300, "n_floored": int(k > 4), "status": "ok"}
            if k == 6 and i % 5 == 0:
                row = {"aic": np.nan, "bic": np.nan, "heldout_nll": np.nan, "n_floored": np.nan, "status": "skipped"}
            tables["scores"].append({"patient": patient, "k": k, "converged": True, **row})
        tables["selection"].append({"patient": patient, "k": best, "metric": "bic", "at_edge": best == 2})
        train = rng.uniform(10, 20)
        gap = 30.0 if i < 3 else rng.uniform(0.5, 2)
        tables["diagnostics"].append(
            {"patient": patient, "n_cells": int(rng.integers(60, 900)), "k": best, "n_iter": int(rng.integers(1, 99)),
             "converged": i != 1, "train_nll": train, "heldout_nll": train + gap, "nll_gap": gap,
             "max_condition": 10 ** rng.uniform(1, 6), "n_floored": int(i % 3 == 0)}
        )  # fmt: skip
        for component, weight in enumerate(rng.dirichlet(np.ones(best))):
            tables["weights"].append({"patient": patient, "component": component, "weight": weight})
            for cell_type, n in zip(("T", "B", "NK", "Mono $x$"), rng.integers(1, 60, 4), strict=True):
                row = {"patient": patient, "component": component, "cell_type": cell_type, "n_cells": int(n)}
                tables["composition"].append(row)
    return {name: pd.DataFrame(rows) for name, rows in tables.items()}


@pytest.fixture(params=[1, 3, 20, 200])
def cohort(request):
    return make_cohort(request.param)


@pytest.fixture
def cohort20():
    return make_cohort(20)


def text_boxes(figure) -> list[tuple[str, object]]:
    """Every visible text of a figure and its box in pixels, without the leader lines of annotations."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    # Matplotlib keeps labels of ticks that lie outside the limits, and does not draw them.
    axes = figure.findobj(Axes)
    ticks = [(axis, axis._update_ticks()) for ax in axes for axis in (ax.xaxis, ax.yaxis)]
    hidden = {
        id(label)
        for axis, drawn in ticks
        for tick in [*axis.majorTicks, *axis.minorTicks]
        if tick not in drawn
        for label in (tick.label1, tick.label2)
    }
    boxes = []
    for text in figure.findobj(Text):
        if text.get_text().strip() and text.get_visible() and id(text) not in hidden:
            if isinstance(text, Annotation):
                text.update_positions(renderer)
            boxes.append((text.get_text(), Text.get_window_extent(text, renderer)))
    return boxes


@pytest.fixture
def assert_legible():
    """No two texts overlap by more than half a pixel, and none is cut by the edge of the figure."""

    def check(figure):
        boxes = [(name, box) for name, box in text_boxes(figure) if box.width and box.height]
        assert boxes
        page = figure.bbox.padded(0.5)
        for name, box in boxes:
            assert page.x0 <= box.x0 <= box.x1 <= page.x1, name
            assert page.y0 <= box.y0 <= box.y1 <= page.y1, name
        for (name, box), (other, other_box) in itertools.combinations(boxes, 2):
            assert not box.padded(-0.5).overlaps(other_box.padded(-0.5)), f"{name!r} collides with {other!r}"

    return check


@pytest.fixture
def assert_repeatable(tmp_path):
    """The same figure drawn twice, each saved twice, gives the same bytes."""
    from cohortgmm.plots.style import save_figure

    def check(draw):
        for suffix in ("svg", "png"):
            files = []
            for figure in (draw(), draw()):
                for _ in range(2):
                    path = tmp_path / f"{len(files)}.{suffix}"
                    save_figure(figure, path)
                    files.append(path.read_bytes())
            assert len(files[0]) > 1000
            assert all(file == files[0] for file in files[1:])

    return check
