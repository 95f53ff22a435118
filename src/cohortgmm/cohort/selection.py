"""Fitting the candidates for k, scoring them, choosing one, and the mixture that follows from the choice."""

import csv
import json
import logging
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cohortgmm.cohort.cells import PatientCells, derived_seed
from cohortgmm.errors import DataError
from cohortgmm.files import atomic_path
from cohortgmm.mixture.criteria import aic, bic, n_free_parameters
from cohortgmm.mixture.em import MixtureFit, fit_mixture

logger = logging.getLogger(__name__)

#: Columns of the score tables and the type of each.
SCORE_COLUMNS: dict[str, type] = {
    "patient": str,
    "k": int,
    "n_train": int,
    "n_val": int,
    "log_likelihood": float,
    "aic": float,
    "bic": float,
    "train_nll": float,
    "heldout_nll": float,
    "nll_gap": float,
    "n_iter": int,
    "converged": bool,
    "seconds": float,
    "status": str,
    "n_floored": int,
    "reason": str,
}

SELECTION_COLUMNS = (
    "patient",
    "k",
    "metric",
    "score",
    "n_candidates",
    "at_edge",
    "runner_up_k",
    "margin",
    "k_aic",
    "k_bic",
    "k_heldout_nll",
)

METRICS = ("aic", "bic", "heldout_nll")

#: A covariance needs two cells.
MIN_CELLS_PER_COMPONENT = 2

Row = dict[str, Any]


def missing_cells(n_train: int, n_features: int, k: int, covariance_type: str, *, default_range: bool) -> str:
    """Why a patient has too few cells for k components; empty if it has enough.

    A candidate that was asked for needs two training cells per component. A candidate of the default range needs as
    many as its covariances have rank (D + 1 for full ones) and at least ten, so that no likelihood rests on the floor.
    """
    per_component = MIN_CELLS_PER_COMPONENT
    if default_range and k > 1:
        per_component = max(10, n_features + 1) if covariance_type == "full" else 10
    if n_train >= per_component * k:
        return ""
    return f"{n_train} training cells are fewer than {per_component} per component"


def fit_candidate(
    cells: PatientCells, k: int, options: Mapping[str, Any], *, seed: int, default_range: bool = False
) -> tuple[Row, MixtureFit | None]:
    """Fit k components to a patient's training cells and score them.

    Parameters
    ----------
    cells
        The patient.
    k
        Number of components.
    options
        Keyword arguments of :func:`cohortgmm.fit_mixture`.
    seed
        Seed of the run; the fit's own follows from it, the patient and k.
    default_range
        Whether k comes from the default range (see :func:`missing_cells`).

    Returns
    -------
    row : dict
        The columns of :data:`SCORE_COLUMNS`: ``log_likelihood`` is the total over the training cells, AIC and BIC
        are in-sample on them, NLLs are nats per cell. A candidate with too few cells has ``status`` "skipped".
    fit : MixtureFit or None
        None if skipped.
    """
    n_train, (n, d) = cells.n_train, cells.x.shape
    row: Row = dict.fromkeys(SCORE_COLUMNS, math.nan)
    row |= {"patient": cells.patient, "k": k, "n_train": n_train, "n_val": n - n_train, "status": "ok", "reason": ""}
    reason = missing_cells(n_train, d, k, options["covariance_type"], default_range=default_range)
    if reason:
        logger.info("patient %s, k=%d: skipped, %s", cells.patient, k, reason)
        return row | {"n_iter": 0, "converged": False, "n_floored": 0, "status": "skipped", "reason": reason}, None
    started = time.perf_counter()
    fit = fit_mixture(cells.x[cells.train], k, random_state=derived_seed(seed, cells.patient, k), **options)
    total = fit.log_likelihood * n_train
    p = n_free_parameters(k, d, options["covariance_type"])
    heldout = -float(np.mean(fit.model.log_prob(cells.x[~cells.train]))) if n_train < n else math.nan
    row |= {
        "log_likelihood": total,
        "aic": aic(total, p),
        "bic": bic(total, p, n_train),
        "train_nll": -fit.log_likelihood,
        "heldout_nll": heldout,
        "nll_gap": heldout + fit.log_likelihood,
        "n_iter": fit.n_iter,
        "converged": fit.converged,
        "n_floored": int(fit.floored.sum()),
    }
    row["seconds"] = round(time.perf_counter() - started, 6)
    logger.info(
        "patient %s, k=%d: %d cells, log-likelihood %.6g per cell after %d iterations%s",
        *(cells.patient, k, n_train, fit.log_likelihood, fit.n_iter, "" if fit.converged else ", not converged"),
    )
    return row, fit


def select_k(rows: Sequence[Row], metric: str) -> Row:
    """Choose the k of the lowest score; the smaller k on a tie.

    Parameters
    ----------
    rows
        Scores of one patient.
    metric
        ``"aic"``, ``"bic"`` or ``"heldout_nll"``.

    Returns
    -------
    dict
        The columns of :data:`SELECTION_COLUMNS`; ``at_edge`` says that the largest candidate fitted was chosen from
        several, so that the range may be too narrow; ``margin`` is the score's distance to the runner-up.

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
    # With nothing held out a single candidate has no held-out score; it is chosen all the same.
    ranked = sorted(fitted, key=lambda row: (math.isnan(row[metric]), row[metric], row["k"]))
    best, runner_up = ranked[0], ranked[1] if len(ranked) > 1 else None
    return {
        "patient": patient,
        "k": best["k"],
        "metric": metric,
        "score": best[metric],
        "n_candidates": len(fitted),
        "at_edge": len(fitted) > 1 and best["k"] == fitted[-1]["k"],
        "runner_up_k": runner_up["k"] if runner_up else "",
        "margin": runner_up[metric] - best[metric] if runner_up else math.nan,
    } | {f"k_{name}": _best_k(fitted, name) for name in METRICS}


def _best_k(fitted: Iterable[Row], metric: str) -> int | str:
    scored = [row for row in fitted if not math.isnan(row[metric])]
    return min(scored, key=lambda row: (row[metric], row["k"]))["k"] if scored else ""


def final_fit(
    cells: PatientCells, k: int, selected: MixtureFit, refit: str, options: Mapping[str, Any], *, seed: int
) -> MixtureFit:
    """The mixture of the chosen k: the selection's own, or with ``refit="full"`` one fitted to all cells."""
    if refit == "none" or cells.train.all():
        return selected
    logger.info("patient %s, k=%d: refit on all %d cells", cells.patient, k, len(cells.x))
    return fit_mixture(cells.x, k, random_state=derived_seed(seed, cells.patient, k), **options)


def write_fit(path: str | os.PathLike, fit: MixtureFit | None) -> None:
    """Write a fit; for a candidate that was skipped, a file that holds no mixture."""
    with atomic_path(path) as temporary:
        if fit is None:
            np.savez(temporary, skipped=True)
        else:
            fit.save(temporary)


def write_table(path: str | os.PathLike, columns: Iterable[str], rows: Iterable[Row]) -> None:
    """Write rows as tab-separated values; floats keep all their digits."""
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: str | os.PathLike) -> list[dict[str, str]]:
    """Rows of a table as text."""
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def write_score(path: str | os.PathLike, row: Row) -> None:
    """Write one row of scores as JSON; what is not a number becomes null."""
    clean = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(clean, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_scores(path: str | os.PathLike) -> list[Row]:
    """Rows of a score table in their types (:data:`SCORE_COLUMNS`)."""
    parse = {bool: lambda text: text == "True"}
    return [{name: parse.get(kind, kind)(row[name]) for name, kind in SCORE_COLUMNS.items()} for row in read_rows(path)]


def by_patient(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows grouped by patient, in their order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["patient"], []).append(row)
    return groups


def read_score(path: str | os.PathLike) -> Row:
    """Read what :func:`write_score` wrote."""
    row = json.loads(Path(path).read_text())
    return {key: math.nan if value is None else value for key, value in row.items()}
