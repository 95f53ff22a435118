"""The two steps of EM and the sufficient statistics that pass between them."""

from dataclasses import dataclass

import numpy as np

from cohortgmm.errors import SingularCovarianceError
from cohortgmm.mixture.gaussian import floor_covariances, log_gaussian, whiten
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.tiles import tile_slices

#: A component that is responsible for less than this many cells is dead: its weight is set to zero for good.
_DEAD = 1e-10


@dataclass
class Moments:
    """Expected sufficient statistics of the cells under a mixture.

    Deviations are taken from the means the expectation was made with, so that no digits are lost when the means
    are large against the covariances. Moments of parts of the data add up.

    Attributes
    ----------
    nk
        (K,) expected number of cells of every component.
    first
        (K, D) sum of responsibility × deviation.
    second
        (K, D, D) sum of responsibility × deviation × deviationᵀ, or its diagonal (K, D).
    log_likelihood
        Total log-likelihood of the cells in nats.
    n
        Number of cells.
    """

    nk: np.ndarray
    first: np.ndarray
    second: np.ndarray
    log_likelihood: float
    n: int


def expect(x: np.ndarray, model: GaussianMixture) -> Moments:
    """E-step: expected moments of cells x (n, D) under the mixture, tile by tile."""
    k, d = model.means.shape
    diagonal = model.covariance_type == "diag"
    nk, first = np.zeros(k), np.zeros((k, d))
    second = np.zeros((k, d) if diagonal else (k, d, d))
    log_likelihood = 0.0
    with np.errstate(divide="ignore"):
        log_weights = np.log(model.weights)[:, None]
    for rows in tile_slices(len(x), k * d):
        white = whiten(np.asarray(x[rows], dtype=np.float64), model.means, model.factors)
        joint = log_gaussian(white, model.factors)
        joint += log_weights
        peak = joint.max(axis=0)
        resp = np.exp(joint - peak)
        total = resp.sum(axis=0)
        resp /= total
        log_likelihood += float(np.sum(peak + np.log(total)))
        nk += resp.sum(axis=1)
        weighted = white * resp[:, :, None]
        first += weighted.sum(axis=1)
        second += np.einsum("knd,knd->kd", weighted, white) if diagonal else weighted.transpose(0, 2, 1) @ white
    lower = model.factors.lower
    if diagonal:
        return Moments(nk, first * lower, second * lower**2, log_likelihood, len(x))
    back = lower.transpose(0, 2, 1)
    return Moments(nk, (first[:, None, :] @ back)[:, 0], lower @ second @ back, log_likelihood, len(x))


def maximize(moments: Moments, means: np.ndarray, floor: float, *, strict: bool) -> tuple[GaussianMixture, np.ndarray]:
    """M-step: the mixture of the highest expected likelihood with no eigenvalue below ``floor``.

    Parameters
    ----------
    moments
        From :func:`expect`.
    means
        (K, D) means the moments were taken about.
    floor, strict
        See :func:`cohortgmm.mixture.gaussian.floor_covariances`; ``strict`` also refuses dead components.

    Returns
    -------
    model : GaussianMixture
        The new mixture.
    floored : ndarray of bool
        (K,) components whose covariance was clamped at the floor or that died.
    """
    dead = moments.nk < _DEAD
    if strict and dead.any():
        raise SingularCovarianceError(int(np.argmax(dead)), len(dead), 0.0, floor)
    nk = np.where(dead, 1.0, moments.nk)[:, None]
    shift = moments.first / nk
    if moments.second.ndim == 2:
        covariances = moments.second / nk - shift**2
    else:
        covariances = moments.second / nk[:, :, None] - shift[:, :, None] * shift[:, None, :]
        covariances = 0.5 * (covariances + covariances.transpose(0, 2, 1))
    covariances, floored = floor_covariances(covariances, floor, strict=strict)
    weights = np.where(dead, 0.0, moments.nk)
    return GaussianMixture(weights / weights.sum(), means + shift, covariances), floored | dead
