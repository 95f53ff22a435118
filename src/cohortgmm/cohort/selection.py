"""Choosing k from the scores of a patient's candidates."""

import math
from collections.abc import Iterable, Sequence

from cohortgmm.cohort.tables import Row
from cohortgmm.errors import DataError

METRICS = ("aic", "bic", "heldout_nll")


def select_k(rows: Sequence[Row], metric: str) -> Row:
    """Choose the k with the lowest score; if scores are equal, the smaller k.

    Parameters
    ----------
    rows
        Scores of one patient.
    metric
        ``"aic"``, ``"bic"`` or ``"heldout_nll"``.

    Returns
    -------
    dict
        The columns of :data:`SELECTION_COLUMNS`. ``at_edge``: the largest or the smallest of several candidates was chosen
        (k = 1 is no edge), so that the range may be too narrow. ``n_floored``: number of components of the chosen fit at
        the covariance floor. ``margin``: difference between the scores of the runner-up and of the chosen k.

    Raises
    ------
    DataError
        If no candidate was fitted.
    """
    patient = rows[0]["patient"]
    fitted = sorted((row for row in rows if row["status"] == "ok"), key=lambda row: row["k"])
    if not fitted:
        raise DataError(
            f"patient {patient!r} has too few cells for every k ({rows[0]['reason']} at k={rows[0]['k']}): "
            "add a smaller k to k_comps, or set on_small_patient to drop"
        )
    # A single candidate is chosen even without a held-out score.
    ranked = sorted(fitted, key=lambda row: (math.isnan(row[metric]), row[metric], row["k"]))
    best, runner_up = ranked[0], ranked[1] if len(ranked) > 1 else None
    return {
        "patient": patient,
        "k": best["k"],
        "metric": metric,
        "score": best[metric],
        "n_candidates": len(fitted),
        "at_edge": len(fitted) > 1 and (best["k"] == fitted[-1]["k"] or best["k"] == fitted[0]["k"] > 1),
        "n_floored": best["n_floored"],
        "runner_up_k": runner_up["k"] if runner_up else "",
        "margin": runner_up[metric] - best[metric] if runner_up else math.nan,
    } | {f"k_{name}": _best_k(fitted, name) for name in METRICS}


def criteria_by_k(rows: Sequence[Row]) -> dict[int, list[str]]:
    """Criteria by which each k is the best.

    Parameters
    ----------
    rows
        Scores of one patient.

    Raises
    ------
    DataError
        If no candidate was fitted.
    """
    found: dict[int, list[str]] = {row["k"]: [] for row in rows}
    for metric in METRICS:
        found[select_k(rows, metric)["k"]].append(metric)
    return found


def _best_k(fitted: Iterable[Row], metric: str) -> int | str:
    scored = [row for row in fitted if not math.isnan(row[metric])]
    return min(scored, key=lambda row: (row[metric], row["k"]))["k"] if scored else ""
