"""Fitting a patient: the candidates on the training cells, and the final mixture of the chosen k."""

import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cohortgmm.cohort.cells import MIN_CELLS_PER_COMPONENT, PatientCells, derived_seed
from cohortgmm.cohort.fit_arguments import check_observed, fit_arguments
from cohortgmm.cohort.fit_options import fit_options
from cohortgmm.cohort.patient_result import PatientResult, n_fit_cells
from cohortgmm.cohort.selection import select_k
from cohortgmm.cohort.shared_weights import needs_fitted_weights, patient_weights
from cohortgmm.cohort.tables import SCORE_COLUMNS, Row
from cohortgmm.display import format_text
from cohortgmm.errors import CohortgmmError, ConvergenceWarning, DataError
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

if TYPE_CHECKING:  # a fit job does not load pydantic
    from cohortgmm.config import GmmConfig

logger = logging.getLogger(__name__)


def missing_cells(
    n_train: int, n_features: int, k: int, covariance_type: str, *, default_range: bool, n_empty: int = 0
) -> str:
    """Reason why a patient has too few cells for k components; empty if it has enough.

    A candidate that the user named needs two training cells per component. A candidate of the default range needs at
    least ten and, with full covariances, at least D + 1: with fewer, covariances are singular and the likelihood
    depends on their floor.

    Parameters
    ----------
    n_train, n_empty
        Number of training cells, and number of training cells without any feature, which do not count.
    n_features, k, covariance_type
        Number of features, number of components, and type of the covariances.
    default_range
        Whether k comes from the default range.
    """
    per_component = MIN_CELLS_PER_COMPONENT
    if default_range and k > 1:
        per_component = max(10, n_features + 1) if covariance_type == "full" else 10
    n_used = n_train - n_empty
    if n_used >= per_component * k:
        return ""
    which = f"training cells with features, of {n_train}," if n_empty else "training cells"
    return f"{n_used} {which} are fewer than {per_component} per component"


def fit_candidate(
    cells: PatientCells,
    k: int,
    options: Mapping[str, Any],
    *,
    seed: int,
    default_range: bool = False,
    n_threads: int = 1,
) -> tuple[Row, MixtureFit | None]:
    """Fit a mixture of k components to a patient's training cells and compute its scores.

    Parameters
    ----------
    cells
        The cells of the patient.
    k
        Number of components.
    options
        See :func:`cohortgmm.cohort.fit_options.fit_options`.
    seed
        Seed of the run; the seed of the fit follows from it, the patient and k.
    default_range
        Whether k comes from the default range (see :func:`missing_cells`).
    n_threads
        Threads of the fit.

    Returns
    -------
    row : dict
        The columns of :data:`SCORE_COLUMNS`. ``log_likelihood`` is the sum over the training cells, on which AIC and BIC
        are computed too; negative log-likelihoods are nats per cell. With too few cells, ``status`` is "skipped".
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
    with one_blas_thread():  # as in the fit, so that the digits do not depend on the threads of the job
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
    """The final mixture: the chosen candidate or, with ``refit="full"``, a new fit with the chosen k to all cells.

    Its numbers of empty and of unobserved cells refer to all cells of the patient. With shared components and
    incomplete data, it also holds the weights of every patient.

    Parameters
    ----------
    cells
        The cells of the patient.
    k
        The chosen number of components.
    selected
        The fit of the candidate with this k.
    refit, options, seed, n_threads
        See :func:`fit_candidate`; ``refit`` as in the configuration.
    """
    n_empty = int(np.count_nonzero(~cells.has_features))
    n_unobserved = (len(cells.x) - n_empty) * (1.0 - selected.completeness) / selected.completeness
    fit = selected if cells.train.all() else replace(selected, n_empty=n_empty, n_unobserved=n_unobserved)
    if refit == "full" and not cells.train.all():
        logger.info("patient %s, k=%d: refit on all %d cells", cells.patient, k, len(cells.x))
        all_rows = np.ones(len(cells.x), dtype=bool)
        fit = _fit(cells, all_rows, k, fit_arguments(options, cells), seed, n_threads)
    if cells.owner is None:
        return fit
    arguments = fit_arguments(options, cells)
    if not needs_fitted_weights(cells, fit.model, arguments):
        return fit
    logger.info("fitting the weights of %d patients, k=%d", len(cells.patients or ()), k)
    weights = patient_weights(cells, fit.model, arguments, seed=seed, n_threads=n_threads)
    return replace(fit, patient_weights=weights)


def _fit(
    cells: PatientCells, rows: np.ndarray, k: int, arguments: Mapping[str, Any], seed: int, n_threads: int
) -> MixtureFit:
    x = cells.x if rows.all() else cells.x[rows]
    _check_features(cells, rows, Frozen.from_argument(arguments["frozen"], k))
    seed_of_fit = derived_seed(seed, cells.patient, k)
    return fit_mixture(x, k, noise=cells.noise_of(rows), random_state=seed_of_fit, n_threads=n_threads, **arguments)


def _check_features(cells: PatientCells, rows: np.ndarray, frozen: Frozen) -> None:
    """Refuse a feature that is missing in all fitted cells, unless all means and covariances are frozen."""
    never = np.flatnonzero(np.isnan(cells.measured()[rows]).all(axis=0))
    if frozen.all_components or len(never) in (0, cells.x.shape[1]):
        return
    hint = ", fit the patients together (component_sharing global) or map them onto a reference"
    raise DataError(
        f"{cells.name_of(never[0])} is missing in all {np.count_nonzero(rows)} fitted cells: leave it out"
        f"{hint if cells.owner is None else ''}"
    )


def heldout_nll(fit: MixtureFit, cells: PatientCells) -> float:
    """Mean negative log-likelihood, in nats, of the held-out cells with features, given that they are observed."""
    out = ~cells.train & cells.has_features
    if not out.any():
        return math.nan
    return float(np.log(fit.completeness) - np.mean(fit.model.log_prob(cells.x[out], cells.noise_of(out))))


def _n_parameters(model: GaussianMixture, arguments: Mapping[str, Any]) -> int:
    frozen = Frozen.from_argument(arguments["frozen"], model.n_components)
    fitted = model.background is not None and model.background.adjust_amp
    return n_free_parameters(
        model.n_components,
        model.n_features,
        model.covariance_type,
        n_frozen=frozen.n_parameters,
        background=fitted,
    )


def write_fit(path: str | os.PathLike[str], fit: MixtureFit | None, mark: str = "") -> None:
    """Write a fit and the mark of its inputs and options. For a skipped candidate (None), the file holds no mixture."""
    with atomic_path(path) as temporary:
        arrays: dict[str, Any] = {"skipped": np.array(True)} if fit is None else dict(fit.arrays())
        np.savez(temporary, **arrays)
        if mark:
            mark_archive(temporary, mark)


def fit_units(units: Iterable[PatientCells], gmm: "GmmConfig", seed: int, n_workers: int = 1) -> list[PatientResult]:
    """Fit patients, or the whole cohort, with the same result as the jobs of the pipeline.

    Parameters
    ----------
    units
        The cells of every unit of fitting.
    gmm
        The arguments of the fit.
    seed
        Seed of the run.
    n_workers
        Number of patients that are fitted at the same time, or of threads that fit the cohort.

    Raises
    ------
    CohortgmmError
        If a fit fails; the message names the patient and k.
    """
    options = fit_options(gmm)

    def fit(cells: PatientCells) -> PatientResult:
        return _fit_unit(cells, gmm, options, seed, 1 if cells.owner is None else n_workers)

    # Both apply to the threads of the fits too. One BLAS thread makes the digits independent of the machine. The
    # warning is suppressed, because the caller warns once about all fits that have not converged.
    with one_blas_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if n_workers == 1:
            return list(_reported(map(fit, units), gmm))
        with ThreadPoolExecutor(n_workers) as pool:  # numpy releases the interpreter lock in its products
            return list(_reported(pool.map(fit, units), gmm))


def _fit_unit(
    cells: PatientCells, gmm: "GmmConfig", options: Mapping[str, Any], seed: int, n_threads: int
) -> PatientResult:
    rows, fits, k = [], dict[int, Any](), None
    try:
        for k in gmm.candidates:
            row, fits[k] = fit_candidate(
                cells, k, options, seed=seed, default_range=gmm.k_comps is None, n_threads=n_threads
            )
            rows.append(row)
        k = select_k(rows, gmm.k_selection_metric)["k"]
        final = final_fit(cells, k, _as_stored(fits[k]), gmm.refit, options, seed=seed, n_threads=n_threads)
    except CohortgmmError as error:
        title = f"patient {cells.patient!r}" if cells.owner is None else cells.patient
        error.args = (f"{title}, k={k}: {error}",)
        raise
    return PatientResult(cells.patient, _as_stored(final), len(cells.x), n_fit_cells(cells.train, gmm.refit), rows)


def _as_stored(fit: MixtureFit) -> MixtureFit:
    """The fit as read from a file: with factors computed from the covariances, so that all digits are the same."""
    model = fit.model
    plain = GaussianMixture.from_factors(model.weights, model.means, model.covariances, None, model.background)
    return replace(fit, model=plain)


def _reported(results: Iterable[PatientResult], gmm: "GmmConfig") -> Iterator[PatientResult]:
    """Yield the results; with ``verbose``, print a line about each of them as soon as it is finished."""
    for result in results:
        if gmm.verbose:
            fit, n_candidates = result.fit, sum(row["status"] == "ok" for row in result.scores)
            state = f"{fit.n_iter} iterations" if fit.converged else "not converged"
            print(
                f"[fit_gmm] {format_text(result.name)}: k={fit.model.n_components} by {gmm.k_selection_metric} of "
                f"{n_candidates} candidates, {state}",
                file=sys.stderr,
            )
        yield result
