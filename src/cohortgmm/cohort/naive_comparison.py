"""A patient's mixture compared with a naive one, which ignores noise, missing features, selection and background."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cohortgmm.cohort.annotation import draw_cells
from cohortgmm.cohort.cells import MIN_CELLS_PER_COMPONENT, PatientCells, derived_seed
from cohortgmm.cohort.fit_arguments import fit_arguments
from cohortgmm.errors import CohortgmmError
from cohortgmm.mixture import GaussianMixture, MixtureFit, NoiseOfRandomCells, fit_mixture

#: Number of cells drawn from the mixture for the figure, observed and unobserved ones together.
_DRAWN = 20_000


@dataclass(frozen=True, eq=False)
class Correction:
    """A mixture fitted to incomplete data, and the naive mixture that it is compared with.

    Attributes
    ----------
    fit
        The fit to incomplete data.
    shown
        (m,) positions of the cells in the figure.
    naive
        Mixture with the same number of components, fitted without any correction to the cells that have all features;
        None if there are too few of them or the fit fails.
    background
        (m,) probability that a cell in the figure is background; None without background.
    seen, unseen
        Observed and unobserved cells, drawn with noise from the fitted mixture in their fitted proportion; None without
        completeness.
    """

    fit: MixtureFit
    shown: np.ndarray
    naive: GaussianMixture | None
    background: np.ndarray | None = None
    seen: np.ndarray | None = None
    unseen: np.ndarray | None = None


def correction_of(
    cells: PatientCells, fit: MixtureFit, options: Mapping[str, Any], *, max_cells: int, seed: int
) -> Correction:
    """Compare a mixture fitted to incomplete data with a naive one, which ignores that the data are incomplete.

    Parameters
    ----------
    cells
        The cells of the patient.
    fit
        The final fit of the patient.
    options
        See :func:`cohortgmm.cohort.fit_options.fit_options`.
    max_cells
        Largest number of cells in the figure; the naive mixture is fitted to the same cells.
    seed
        Seed of the run.
    """
    arguments = fit_arguments(options, cells)
    shown = draw_cells(len(cells.x), max_cells, seed)
    model, x = fit.model, cells.x[shown]
    background = None
    if model.background is not None:
        background = model.background_probability(x, cells.noise_of(shown))
    seen = unseen = None
    if arguments["completeness"] is not None:
        seen, unseen = _draw(model, cells, arguments, fit.completeness, seed)
    return Correction(fit, shown, _naive(cells, x, model, seed), background, seen, unseen)


def _naive(cells: PatientCells, x: np.ndarray, model: GaussianMixture, seed: int) -> GaussianMixture | None:
    complete = x[~np.isnan(x).any(axis=1)]
    k = model.n_components
    if len(complete) < MIN_CELLS_PER_COMPONENT * k:
        return None
    try:
        fit = fit_mixture(
            complete,
            k,
            covariance_type=model.covariance_type,
            n_init=10,
            random_state=derived_seed(seed, cells.patient, k),
        )
    except CohortgmmError:
        return None
    return fit.model


def _draw(
    model: GaussianMixture, cells: PatientCells, arguments: Mapping[str, Any], share_seen: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    noise = arguments["noise_at"]
    if noise is None and cells.noise is not None:
        noise = NoiseOfRandomCells(cells.noise, seed)
    draw = {"noise": noise, "completeness": arguments["completeness"]}
    n_seen = max(1, round(_DRAWN * share_seen))
    seen, unseen = (model.sample_observed(n_seen, seed, inverted=inverted, **draw).x for inverted in (False, True))
    return seen, unseen
