import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba

from cohortgmm.plots.criteria import (
    FLOOR_NOTE,
    NOTHING_HELD_OUT,
    color_limit,
    plot_cohort_criteria,
    plot_criteria,
    score_differences,
)

COLUMNS = ("aic", "bic", "heldout_nll")


def artist(ax, gid):
    (found,) = ax.findobj(lambda a: a.get_gid() == gid)
    return found


def one_patient(cohort, **options):
    first = cohort["selection"].iloc[0]
    options = {"patient": first["patient"], "metric": "bic", "best_k": int(first["k"])} | options
    return plot_criteria(cohort["scores"], **options), options


def test_chosen_k_and_own_minimum_are_marked_in_every_panel(cohort20):
    figure, options = one_patient(cohort20, best_k=3)
    scores = cohort20["scores"].loc[lambda t: t["patient"] == options["patient"]].set_index("k")
    for ax, column in zip(figure.axes, COLUMNS, strict=True):
        assert artist(ax, "chosen").get_xdata().tolist() == [3]
        assert set(artist(ax, "chosen-line").get_xdata()) == {3}
        minimum = artist(ax, "minimum")
        assert (minimum.get_xdata()[0], minimum.get_ydata()[0]) == (scores[column].idxmin(), scores[column].min())


def test_points_are_the_scores_and_hollow_at_the_floor(cohort20):
    figure, options = one_patient(cohort20)
    scores = cohort20["scores"].loc[lambda t: (t["patient"] == options["patient"]) & (t["status"] == "ok")]
    for ax, column in zip(figure.axes, COLUMNS, strict=True):
        drawn = {
            (x, y): line.get_markerfacecolor()
            for line in ax.lines
            if line.get_marker() in ("o", "^") and line.get_gid() is None
            for x, y in line.get_xydata()
        }
        assert drawn.keys() == set(zip(scores["k"], scores[column], strict=True))
        hollow = {x for (x, _), face in drawn.items() if to_rgba(face) == to_rgba("white")}
        assert hollow == set(scores.loc[scores["n_floored"] > 0, "k"]) == {5}
    assert FLOOR_NOTE in [text.get_text() for text in figure.legends[0].get_texts()]


def test_skipped_k_is_crossed(cohort20):
    figure, _ = one_patient(cohort20)
    assert [artist(ax, "skipped").get_xdata().tolist() for ax in figure.axes] == [[6]] * 3


@pytest.mark.parametrize("metric", COLUMNS)
def test_only_the_deciding_panel_is_emphasised(cohort20, metric):
    figure, _ = one_patient(cohort20, metric=metric)
    widths = [ax.spines["top"].get_linewidth() * ax.spines["top"].get_visible() for ax in figure.axes]
    assert [width > 1 for width in widths] == [column == metric for column in COLUMNS]
    assert ["(decides)" in ax.get_title(loc="left") for ax in figure.axes] == [column == metric for column in COLUMNS]


def test_nothing_held_out_is_said(cohort20):
    cohort20["scores"]["heldout_nll"] = np.nan
    figure, _ = one_patient(cohort20)
    assert [NOTHING_HELD_OUT in [t.get_text() for t in ax.texts] for ax in figure.axes] == [False, False, True]
    assert plot_cohort_criteria(cohort20["scores"], cohort20["selection"], metric="bic") is not None


def test_criteria_are_legible_and_repeatable(cohort20, assert_legible, assert_repeatable):
    assert_legible(one_patient(cohort20)[0])
    assert_repeatable(lambda: one_patient(cohort20)[0])


def test_score_differences_and_limit():
    scores = pd.DataFrame({"patient": ["b", "b", "b", "a", "a"], "k": [2, 3, 4, 2, 3], "aic": [5, 3, 13, np.nan, 7.0]})
    table = score_differences(scores, "aic")
    expected = pd.DataFrame({2: [2, np.nan], 3: [0, 0.0], 4: [10, np.nan]}, index=["b", "a"])
    np.testing.assert_array_equal(table, expected)
    assert table.index.tolist() == ["b", "a"]
    assert color_limit(table) == 6.0
    assert color_limit(table * np.nan) == 1.0


def blocks(figure):
    return [ax for ax in figure.axes if ax.yaxis_inverted()]


def test_heat_map_shows_every_difference_and_chosen_k(cohort):
    figure = plot_cohort_criteria(cohort["scores"], cohort["selection"], metric="bic")
    chosen = cohort["selection"].set_index("patient")
    panels = blocks(figure)
    assert len(panels) % 3 == 0
    n_edge = 0
    for b, column in enumerate(COLUMNS):
        drawn = np.concatenate([ax.collections[0].get_array().filled(np.nan) for ax in panels[b::3]])
        table = score_differences(cohort["scores"], column)
        key = lambda rows: sorted(map(tuple, np.nan_to_num(rows, nan=-1.0)))  # noqa: E731
        assert key(drawn) == key(table.to_numpy())
        marks = []
        for ax in panels[b::3]:
            for dots in ax.findobj(PathCollection):
                if dots.get_gid() in ("chosen", "chosen-at-edge"):
                    marks += (dots.get_offsets()[:, 0] - 0.5 + 2).tolist()
                    n_edge += len(dots.get_offsets()) * (dots.get_gid() == "chosen-at-edge")
        assert sorted(marks) == sorted(chosen["k"])
    assert n_edge == 3 * chosen["at_edge"].sum()


def test_deciding_blocks_hold_the_chosen_k_at_difference_of_its_score(cohort20):
    figure = plot_cohort_criteria(cohort20["scores"], cohort20["selection"], metric="bic")
    ax = blocks(figure)[1]
    values = ax.collections[0].get_array()
    for dots in ax.collections[1:]:
        if dots.get_gid() in ("chosen", "chosen-at-edge", "minimum"):
            for x, y in dots.get_offsets():
                assert values[int(y), int(x)] == 0


def test_cohort_criteria_are_legible(cohort, assert_legible):
    figure = plot_cohort_criteria(cohort["scores"], cohort["selection"], metric="bic")
    assert_legible(figure)
    for ax in figure.axes:
        box = ax.get_tightbbox()
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
    n_labels = sum(len(ax.get_yticklabels()) for ax in blocks(figure))
    assert n_labels == cohort["selection"].shape[0]


def test_cohort_criteria_repeat_byte_for_byte(cohort20, assert_repeatable):
    assert_repeatable(lambda: plot_cohort_criteria(cohort20["scores"], cohort20["selection"], metric="bic"))


def test_600_patients_and_more_go_without_names(cohort20):
    scores = pd.concat([cohort20["scores"].assign(patient=lambda t, i=i: t["patient"] + f"-{i}") for i in range(40)])
    figure = plot_cohort_criteria(scores, cohort20["selection"], metric="bic")
    assert sum(len(ax.get_yticks()) for ax in figure.axes if ax.collections and ax.yaxis_inverted()) == 0
    assert figure.get_figheight() < 20
