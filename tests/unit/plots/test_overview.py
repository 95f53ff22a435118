import numpy as np
import pandas as pd
import pytest

from cohortgmm.plots.criteria import NOTHING_HELD_OUT
from cohortgmm.plots.overview import plot_overview, spread
from cohortgmm.plots.style import ALARM


def panel(figure, title):
    (found,) = [ax for ax in figure.axes if ax.get_title(loc="left").startswith(title)]
    return found


def draw(cohort):
    return plot_overview(cohort["diagnostics"], cohort["weights"])


def offsets(ax):
    return np.concatenate([np.asarray(dots.get_offsets()) for dots in ax.collections])


def test_bars_count_the_chosen_k(cohort20):
    bars = panel(draw(cohort20), "chosen k").patches
    drawn = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in bars}
    assert drawn == cohort20["diagnostics"]["k"].value_counts().to_dict()


def test_fits_that_did_not_converge_stand_out(cohort20):
    ax = panel(draw(cohort20), "EM iterations: 1 did not converge")
    converged, not_converged = (dots.get_offsets() for dots in ax.collections)
    assert len(converged) == 19
    assert not_converged[:, 1].tolist() == cohort20["diagnostics"].query("not converged")["n_iter"].tolist()


def test_every_weight_is_drawn_and_the_smallest_of_a_patient_marked(cohort):
    usual, smallest = panel(draw(cohort), "component weights").collections[:2]
    weights = cohort["weights"].groupby("patient")["weight"]
    np.testing.assert_allclose(np.sort(smallest.get_offsets()[:, 1]), np.sort(weights.min()))
    assert len(usual.get_offsets()) + len(smallest.get_offsets()) == len(cohort["weights"])


def test_a_dead_component_is_still_drawn(cohort20):
    cohort20["weights"].loc[0, "weight"] = 0.0
    ax = panel(draw(cohort20), "component weights")
    assert len(offsets(ax)) == len(cohort20["weights"])
    assert offsets(ax)[:, 1].min() > ax.get_ylim()[0] > 0


def test_outlying_patients_are_named_and_lie_above_the_diagonal(cohort20):
    figure = draw(cohort20)
    ax = panel(figure, "fit to training")
    named = {text.get_text() for text in ax.texts}
    assert {"P0", "D_3"} & named == {"P0"}
    assert len([name for name in named if "Hôpita" in name or "site" in name or name == "P0"]) == 3
    (diagonal,) = ax.findobj(lambda a: a.get_gid() == "diagonal")
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    table = cohort20["diagnostics"][["train_nll", "heldout_nll"]].to_numpy()
    np.testing.assert_allclose(np.sort(offsets(ax), axis=0), np.sort(table, axis=0))


def test_one_broken_fit_does_not_squeeze_the_others(cohort20):
    cohort20["diagnostics"].loc[0, "heldout_nll"] = 1e6
    ax = panel(draw(cohort20), "fit to training")
    y = ax.transAxes.inverted().transform(ax.transData.transform(offsets(ax)))[:, 1]
    assert y.max() < 1
    assert np.ptp(np.sort(y)[:17]) > 0.1


def test_floored_patients_are_marked(cohort20):
    ax = panel(draw(cohort20), "largest condition number: 7 patients at the covariance floor")
    free, floored = ax.collections
    table = cohort20["diagnostics"]
    expected = table.loc[table["n_floored"] > 0, "max_condition"]
    np.testing.assert_allclose(np.sort(floored.get_offsets()[:, 1]), np.sort(expected))
    assert len(free.get_offsets()) == 13
    assert ax.get_yscale() == "log"
    worst = table.loc[table["max_condition"].idxmax(), "patient"]
    assert ax.texts[0].get_text()[:3] == worst[:3]


def test_nothing_held_out_is_said(cohort20):
    cohort20["diagnostics"]["heldout_nll"] = np.nan
    ax = panel(draw(cohort20), "fit to training")
    assert [text.get_text() for text in ax.texts] == [NOTHING_HELD_OUT]
    assert not ax.collections


def test_overview_is_legible(cohort, assert_legible):
    assert_legible(draw(cohort))


def test_overview_repeats_byte_for_byte(cohort20, assert_repeatable):
    assert_repeatable(lambda: draw(cohort20))


@pytest.mark.parametrize("n", [1, 2, 50])
def test_spread_stays_by_its_group_and_apart(n):
    x = spread(pd.Series([4] * n), pd.Series(np.zeros(n)))
    assert len(np.unique(x.round(6))) == n
    assert np.abs(x - 4).max() <= 0.35


def test_alarm_colour_is_reserved(cohort20):
    from matplotlib.colors import to_hex

    ax = panel(draw(cohort20), "cells per patient")
    assert {to_hex(color) for dots in ax.collections for color in dots.get_facecolor()}.isdisjoint({ALARM})
