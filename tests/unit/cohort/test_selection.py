"""The lowest score wins, the smaller k on a tie, and the row says how sure that is."""

import math

import pytest

from cohortgmm.cohort.selection import criteria_by_k, select_k
from cohortgmm.cohort.tables import SELECTION_COLUMNS
from cohortgmm.errors import DataError

NAN = math.nan


def rows(aic, *, bic=None, heldout=None, skipped=()):
    """Scores of k = 1, 2, ...; those of ``skipped`` were not fitted."""
    n = len(aic)
    return [
        {
            "patient": "P1",
            "k": k,
            "aic": aic[k - 1],
            "bic": (bic or [0.0] * n)[k - 1],
            "heldout_nll": (heldout or [NAN] * n)[k - 1],
            "status": "skipped" if k in skipped else "ok",
            "n_floored": k,
            "reason": f"3 training cells are fewer than 2 per component ({k})" if k in skipped else "",
        }
        for k in range(1, n + 1)
    ]


def test_the_row_of_a_choice():
    choice = select_k(rows([5.0, 2.0, 3.5], bic=[1.0, 2.0, 3.0], heldout=[9.0, 8.0, 7.0]), "aic")
    assert tuple(choice) == SELECTION_COLUMNS
    assert choice == {
        "patient": "P1",
        "k": 2,
        "metric": "aic",
        "score": 2.0,
        "n_candidates": 3,
        "at_edge": False,
        "n_floored": 2,
        "runner_up_k": 3,
        "margin": 1.5,
        "k_aic": 2,
        "k_bic": 1,
        "k_heldout_nll": 3,
    }


@pytest.mark.parametrize(("metric", "k"), [("aic", 2), ("bic", 1), ("heldout_nll", 3)])
def test_each_criterion_chooses_its_own(metric, k):
    scores = rows([5.0, 2.0, 3.5], bic=[1.0, 2.0, 3.0], heldout=[9.0, 8.0, 7.0])
    assert select_k(scores, metric)["k"] == k


@pytest.mark.parametrize("order", [1, -1])
def test_the_smaller_k_wins_a_tie(order):
    choice = select_k(rows([4.0, 2.0, 2.0, 2.0])[::order], "aic")
    assert (choice["k"], choice["runner_up_k"], choice["margin"], choice["k_aic"]) == (2, 3, 0.0, 2)


def test_the_edge_is_the_largest_that_was_fitted():
    assert select_k(rows([3.0, 2.0, 1.0]), "aic")["at_edge"] is True
    assert select_k(rows([3.0, 2.0, 1.0], skipped=[3]), "aic")["at_edge"] is True
    assert select_k(rows([1.0, 2.0]), "aic")["at_edge"] is False  # the smallest has no smaller to try
    assert select_k(rows([1.0]), "aic")["at_edge"] is False


def test_a_candidate_without_a_score_comes_last():
    choice = select_k(rows([1.0, 1.0, 1.0], heldout=[NAN, 5.0, 4.0]), "heldout_nll")
    assert (choice["k"], choice["runner_up_k"], choice["margin"], choice["k_heldout_nll"]) == (3, 2, 1.0, 3)


def test_a_single_candidate_is_chosen_without_a_score():
    choice = select_k(rows([7.0]), "heldout_nll")
    assert (choice["k"], choice["n_candidates"], choice["runner_up_k"]) == (1, 1, "")
    assert math.isnan(choice["score"])
    assert math.isnan(choice["margin"])
    assert (choice["k_aic"], choice["k_heldout_nll"]) == (1, "")


def test_skipped_candidates_play_no_part():
    choice = select_k(rows([5.0, 0.0, 4.0], skipped=[2]), "aic")
    assert (choice["k"], choice["n_candidates"], choice["k_aic"]) == (3, 2, 3)


def test_without_any_fit_the_patient_is_named():
    with pytest.raises(DataError) as caught:
        select_k(rows([NAN, NAN], skipped=[1, 2]), "aic")
    assert str(caught.value) == (
        "patient 'P1' has too few cells for every k (3 training cells are fewer than 2 per component (1) at k=1): "
        "add a smaller k to k_comps, or set on_small_patient to drop"
    )


def test_the_criteria_that_a_k_is_the_best_by():
    scores = rows([5.0, 2.0, 3.5], bic=[1.0, 2.0, 3.0], heldout=[9.0, 8.0, 7.0])
    assert criteria_by_k(scores) == {1: ["bic"], 2: ["aic"], 3: ["heldout_nll"]}
    scores = rows([5.0, 2.0, 3.5], bic=[1.0, 0.0, 3.0], skipped=[3])
    assert criteria_by_k(scores) == {1: ["heldout_nll"], 2: ["aic", "bic"], 3: []}  # nothing is held out: the smallest
    with pytest.raises(DataError, match="patient 'P1' has too few cells for every k"):
        criteria_by_k(rows([5.0, 2.0], skipped=[1, 2]))
