"""Fitting a patient: one candidate k on the training cells, and the final mixture of the chosen k."""

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cohortgmm.cohort.cells import MIN_CELLS_PER_COMPONENT, PatientCells, derived_seed
from cohortgmm.cohort.fit_arguments import check_observed, fit_arguments
from cohortgmm.cohort.shared_weights import is_corrected, patient_weights
from cohortgmm.cohort.tables import SCORE_COLUMNS, Row
from cohortgmm.errors import DataError
from cohortgmm.mixture import (
    Frozen,
    GaussianMixture,
    MixtureFit,
    aic,
    bic,
    fit_mixture,
    n_free_parameters,
    one_blas_thread,
)
from cohortgmm.storage.atomic import atomic_path
from cohortgmm.storage.marks import mark_archive

logger = logging.getLogger(__name__)


def missing_cells(
    n_train: int, n_features: int, k: int, covariance_type: str, *, default_range: bool, n_empty: int = 0
) -> str:
    """Why a patient has too few cells for k components; empty if it has enough.

    A candidate that was asked for needs two training cells per component. A candidate of the default range needs as
    many as its covariances have rank (D + 1 for full ones) and at least ten, so that no likelihood rests on the floor.
    The ``n_empty`` of the training cells that have no feature do not count.
    """
    per_component = MIN_CELLS_PER_COMPONENT
    if default_range and k > 1:
        per_component = max(10, n_features + 1) if covariance_type == "full" else 10
    n_told = n_train - n_empty
    if n_told >= per_component * k:
        return ""
    which = f"training cells with features, of {n_train}," if n_empty else "training cells"
    return f"{n_told} {which} are fewer than {per_component} per component"


def fit_candidate(
    cells: PatientCells,
    k: int,
    options: Mapping[str, Any],
    *,
    seed: int,
    default_range: bool = False,
    n_threads: int = 1,
) -> tuple[Row, MixtureFit | None]:
    """Fit k components to a patient's training cells and score them.

    Parameters
    ----------
    cells
        The patient.
    k
        Number of components.
    options
        See :func:`cohortgmm.cohort.fit_arguments.fit_arguments`.
    seed
        Seed of the run; the fit's own follows from it, the patient and k.
    default_range
        Whether k comes from the default range (see :func:`missing_cells`).
    n_threads
        Threads of the fit.

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
    n_empty = int(np.count_nonzero(cells.train & ~cells.has_features))
    reason = missing_cells(n_train, d, k, options["covariance_type"], default_range=default_range, n_empty=n_empty)
    if reason:
        logger.info("patient %s, k=%d: skipped, %s", cells.patient, k, reason)
        return row | {"n_iter": 0, "converged": False, "n_floored": 0, "status": "skipped", "reason": reason}, None
    started = time.perf_counter()
    arguments = fit_arguments(options, cells)
    check_observed(arguments["completeness"], cells)
    fit = _fit(cells, cells.train, k, arguments, seed, n_threads)
    n_scored = n_train - fit.n_empty
    total = fit.log_likelihood * n_scored
    p = _n_parameters(fit.model, arguments)
    with one_blas_thread():  # as the fit: the same digits however many threads the job has
        heldout = heldout_nll(fit, cells) if n_train < n else math.nan
    row |= {
        "log_likelihood": total,
        "aic": aic(total, p),
        "bic": bic(total, p, n_scored),
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


def final_fit(
    cells: PatientCells,
    k: int,
    selected: MixtureFit,
    refit: str,
    options: Mapping[str, Any],
    *,
    seed: int,
    n_threads: int = 1,
) -> MixtureFit:
    """The mixture of the chosen k: the selection's own, or with ``refit="full"`` one fitted to all cells.

    Either way, it counts all of the patient's cells, of which some may be empty, and those unobserved beside them. That
    of a cohort whose cells are corrected comes with the weights of every patient.
    """
    n_empty = int(np.count_nonzero(~cells.has_features))
    n_unobserved = (len(cells.x) - n_empty) * (1.0 - selected.completeness) / selected.completeness
    fit = selected if cells.train.all() else replace(selected, n_empty=n_empty, n_unobserved=n_unobserved)
    if refit == "full" and not cells.train.all():
        logger.info("patient %s, k=%d: refit on all %d cells", cells.patient, k, len(cells.x))
        everyone = np.ones(len(cells.x), dtype=bool)
        fit = _fit(cells, everyone, k, fit_arguments(options, cells), seed, n_threads)
    if cells.owner is None:
        return fit
    arguments = fit_arguments(options, cells)
    if not is_corrected(cells, fit.model, arguments):
        return fit
    logger.info("weights of %d patients, k=%d", len(cells.patients), k)
    weights = patient_weights(cells, fit.model, arguments, seed=seed, n_threads=n_threads)
    return replace(fit, patient_weights=weights)


def _fit(
    cells: PatientCells, rows: np.ndarray, k: int, arguments: Mapping[str, Any], seed: int, n_threads: int
) -> MixtureFit:
    x = cells.x if rows.all() else cells.x[rows]
    _check_features(cells, rows, Frozen.read(arguments["frozen"], k))
    seed_of_fit = derived_seed(seed, cells.patient, k)
    return fit_mixture(x, k, noise=cells.noise_of(rows), random_state=seed_of_fit, n_threads=n_threads, **arguments)


def _check_features(cells: PatientCells, rows: np.ndarray, frozen: Frozen) -> None:
    """Refuse a feature that none of the fitted cells has, by its name, where components are to be fitted in it."""
    never = np.flatnonzero(np.isnan(cells.measured()[rows]).all(axis=0))
    if frozen.all_components or len(never) in (0, cells.x.shape[1]):
        return
    hint = ", fit the patients together (component_sharing global) or map them onto a reference"
    raise DataError(
        f"{cells.name_of(never[0])} is missing in all {np.count_nonzero(rows)} fitted cells: leave it out"
        f"{hint if cells.owner is None else ''}"
    )


def heldout_nll(fit: MixtureFit, cells: PatientCells) -> float:
    """Mean negative log-likelihood of the cells held out that have any features, in nats, among cells that are seen."""
    out = ~cells.train & cells.has_features
    if not out.any():
        return math.nan
    return float(np.log(fit.completeness) - np.mean(fit.model.log_prob(cells.x[out], cells.noise_of(out))))


def _n_parameters(model: GaussianMixture, arguments: Mapping[str, Any]) -> int:
    frozen = Frozen.read(arguments["frozen"], model.n_components)
    fitted = model.background is not None and model.background.adjust_amp
    return n_free_parameters(
        model.n_components,
        model.n_features,
        model.covariance_type,
        n_frozen=frozen.n_parameters,
        background=fitted,
    )


def write_fit(path: str | os.PathLike, fit: MixtureFit | None, mark: str = "") -> None:
    """Write a fit, with what it was made with; for a candidate that was skipped, a file that holds no mixture."""
    with atomic_path(path) as temporary:
        np.savez(temporary, **({"skipped": np.array(True)} if fit is None else fit.arrays()))
        if mark:
            mark_archive(temporary, mark)


def load_fits(parts: Sequence[PatientCells], paths: Sequence[str | os.PathLike]) -> dict[str, MixtureFit]:
    """Final mixtures by patient."""
    return {part.patient: MixtureFit.load(path) for part, path in zip(parts, paths, strict=True)}
