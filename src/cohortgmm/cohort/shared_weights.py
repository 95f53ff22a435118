"""Weights of the patients in a shared mixture for incomplete data; they describe all cells, observed or not."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from cohortgmm.cohort.cells import PatientCells, derived_seed
from cohortgmm.errors import CohortgmmError
from cohortgmm.mixture import GaussianMixture, NoiseOfRandomCells, fit_mixture


def needs_fitted_weights(cells: PatientCells, model: GaussianMixture, arguments: Mapping[str, Any]) -> bool:
    """Whether mean responsibilities are biased estimates of the weights.

    Noise and missing features bias mean responsibilities towards the weights of the cohort; with gates, they describe
    the observed cells only.
    """
    return (
        cells.noise is not None
        or arguments["completeness"] is not None
        or model.background is not None
        or bool(np.isnan(cells.x).any())
    )


def with_weights(model: GaussianMixture, weights: np.ndarray) -> GaussianMixture:
    """A shared mixture with the weights (K,) of one patient; the background has one minus their sum."""
    background = model.background
    if background is not None:
        background = replace(background, amp=float(np.clip(1.0 - weights.sum(), 0.0, 1.0)), amp_min=0.0, amp_max=1.0)
    return GaussianMixture.from_factors(weights, model.means, model.covariances, model.factors, background)


def patient_weights(
    cells: PatientCells, model: GaussianMixture, arguments: Mapping[str, Any], *, seed: int, n_threads: int = 1
) -> np.ndarray:
    """Weights of every patient in the shared mixture, fitted to all cells of the patient.

    Parameters
    ----------
    cells
        The cells of the cohort.
    model
        The shared mixture.
    arguments
        See :func:`cohortgmm.cohort.fit_arguments.fit_arguments`; frozen weights stay as they are in ``model``.
    seed
        Seed of the run; the seed of each fit follows from it, the patient and k.
    n_threads
        Threads of each fit.

    Returns
    -------
    ndarray
        (P, K); one minus the sum of a row is the patient's share of background.

    Raises
    ------
    CohortgmmError
        If a fit fails; the message names the patient.
    """
    kept = (arguments["frozen"] or {}).get("amp", [])
    arguments = {
        **arguments,
        "initial": model,
        "background": None,  # to use the background of `initial`
        "frozen": {"amp": kept, "mean": "all", "covar": "all"},
        "split_merge": 0,
        "n_threads": n_threads,
    }
    patients = cells.patients or ()
    weights = np.empty((len(patients), model.n_components))
    for i, patient in enumerate(patients):
        rows = np.flatnonzero(cells.owner == i)
        try:
            weights[i] = fit_mixture(
                cells.x[rows],
                model.n_components,
                noise=cells.noise_of(rows),
                random_state=derived_seed(seed, patient, model.n_components),
                **{**arguments, "noise_at": _noise_at(cells, rows, arguments, seed)},
            ).model.weights
        except CohortgmmError as error:
            error.args = (f"weights of patient {patient!r}: {error}",)
            raise
    return weights


def _noise_at(cells: PatientCells, rows: np.ndarray, arguments: Mapping[str, Any], seed: int) -> Any:
    """Noise of a patient's unobserved cells; None for the noise of randomly drawn cells of the patient.

    If no cell of the patient has finite noise, it is the noise of randomly drawn cells of the cohort.
    """
    if arguments["noise_at"] is not None or arguments["completeness"] is None or cells.noise is None:
        return arguments["noise_at"]
    finite = np.isfinite(cells.noise[rows]).all(axis=tuple(range(1, cells.noise.ndim)))
    return None if finite.any() else NoiseOfRandomCells(cells.noise, seed)
