"""A patient's mixture compared with one that ignores noise, missing features, selection and background."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cohortgmm.cohort.annotation import draw_cells
from cohortgmm.cohort.cells import MIN_CELLS_PER_COMPONENT, PatientCells, derived_seed
from cohortgmm.cohort.fit_arguments import fit_arguments
from cohortgmm.errors import CohortgmmError
from cohortgmm.mixture import GaussianMixture, MixtureFit, NoiseOfRandomCells, fit_mixture

#: Number of cells drawn from the mixture for the figure, observed or not.
_DRAWN = 20_000


@dataclass(frozen=True, eq=False)
class Correction:
    """A mixture fitted to incomplete data, and what it is compared with.

    Attributes
    ----------
    fit
        The fit to incomplete data.
    shown
        (m,) positions of the cells in the figure.
    naive
        Mixture with the same number of components, fitted to the complete cells only and without any correction; None if
        there are too few.
    background
        (m,) probability that these cells are background; None without background.
    seen, unseen
        Cells drawn from the fitted mixture, with noise: observed and unobserved ones, in their proportion; None without
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
    """Compare a mixture fitted to incomplete data with one that ignores this.

    Parameters
    ----------
    cells
        The patient.
    fit
        Its final mixture.
    options
        See :func:`cohortgmm.cohort.fit_options.fit_options`.
    max_cells
        Largest number of cells in the figure, and of those that the mixture for comparison is fitted to.
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
