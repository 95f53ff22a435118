"""The M-step: the parameters that maximise the expected log-likelihood."""

import numpy as np

from cohortgmm.errors import SingularCovarianceError
from cohortgmm.mixture.density.parameters import Parameters
from cohortgmm.mixture.em.constraints import Constraints, Frozen
from cohortgmm.mixture.estep.moments import Moments
from cohortgmm.mixture.observations.background import Background

#: A component with less than this expected number of cells is dead: its weight is set to zero and stays there.
_DEAD = 1e-10


def m_step(
    moments: Moments, model: Parameters, constraints: Constraints, *, suspected: np.ndarray | None = None
) -> tuple[Parameters, np.ndarray]:
    """Compute the parameters of the highest expected log-likelihood within the constraints.

    Parameters
    ----------
    moments
        From an E-step.
    model
        The mixture that the moments were computed with.
    constraints
        Floor and frozen parameters; with ``strict``, a component that dies is an error like a singular covariance.
    suspected
        See :func:`cohortgmm.mixture.numerics.gaussian.floor_covariances`.

    Returns
    -------
    model : Parameters
        The new mixture.
    floored : ndarray of bool
        (K,) components whose covariance was raised to the floor or that died.
    """
    frozen = constraints.frozen
    dead = moments.nk < _DEAD
    refused = dead & ~frozen.covariances
    if constraints.strict and refused.any():
        raise SingularCovarianceError(int(np.argmax(refused)), len(dead), 0.0, constraints.floor)
    nk = np.where(dead, 1.0, moments.nk)[:, None]
    shift = np.where(frozen.means[:, None], 0.0, moments.first / nk)
    if moments.second.ndim == 2:
        covariances = moments.second / nk - shift**2
    else:
        covariances = moments.second / nk[:, :, None] - shift[:, :, None] * shift[:, None, :]
        covariances = 0.5 * (covariances + covariances.transpose(0, 2, 1))
    weights, background = _weights(moments, model, frozen, dead)
    means = np.where(frozen.means[:, None], model.means, model.means + shift)
    covariances, factors, floored = constraints.project(covariances, model, suspected)
    return Parameters.from_factors(weights, means, covariances, factors, background), floored | dead


def _weights(
    moments: Moments, model: Parameters, frozen: Frozen, dead: np.ndarray
) -> tuple[np.ndarray, Background | None]:
    """Weights of the components and the background with its amplitude, in proportion to their expected cells."""
    background, rest = model.background, 1.0
    nk = np.where(dead | frozen.weights, 0.0, moments.nk)
    if frozen.weights.any():
        rest = max(0.0, 1.0 - float(model.weights[frozen.weights].sum()))
    if background is not None:
        # An amplitude of zero stays exactly zero.
        if background.adjust_amp and background.amp > 0 and not frozen.weights.all():
            n_background = max(0.0, moments.n + moments.n_unobserved - float(moments.nk.sum()))
            background = background.with_amp(rest * n_background / max(n_background + nk.sum(), _DEAD))
        rest = max(0.0, rest - background.amp)
    if nk.sum() < _DEAD:  # no free component has cells: the weights keep their proportions
        nk = np.where(frozen.weights, 0.0, model.weights)
    if nk.sum() == 0:
        return model.weights, model.background
    return np.where(frozen.weights, model.weights, rest * nk / nk.sum()), background
