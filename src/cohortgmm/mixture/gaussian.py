"""Covariances as the core uses them: whitening factors, log-densities, and the floor under their spectrum."""

from dataclasses import dataclass

import numpy as np

from cohortgmm.errors import SingularCovarianceError

LOG_2PI = float(np.log(2.0 * np.pi))

#: Smallest ratio of eigenvalues that a double-precision Cholesky factor still resolves with some digits.
_RELATIVE_FLOOR = 1e-13

#: ``singularity_handling="robust"`` floors the spectrum at this fraction of the mean variance of the features.
_ROBUST_FRACTION = 1e-2


@dataclass(frozen=True)
class Factors:
    """Cholesky factors of the covariances and of their inverses.

    Attributes
    ----------
    lower
        L with L Lᵀ = Σ: lower triangular (K, D, D), or standard deviations (K, D).
    whitener
        W with W Wᵀ = Σ⁻¹, so that (x − μ) W is white: upper triangular (K, D, D), or (K, D).
    half_log_det
        ½ log det Σ, shape (K,).
    """

    lower: np.ndarray
    whitener: np.ndarray
    half_log_det: np.ndarray

    @property
    def is_diagonal(self) -> bool:
        return self.lower.ndim == 2


def factorize(covariances: np.ndarray) -> Factors:
    """Factor full (K, D, D) covariances or diagonal (K, D) variances.

    Raises
    ------
    numpy.linalg.LinAlgError
        If one of them is not positive definite.
    """
    if covariances.ndim == 2:
        if not np.all(covariances > 0):
            raise np.linalg.LinAlgError("variances must be positive")
        scale = np.sqrt(covariances)
        return Factors(scale, 1.0 / scale, np.log(scale).sum(axis=1))
    lower = np.linalg.cholesky(covariances)
    whitener = np.linalg.inv(lower).transpose(0, 2, 1)
    return Factors(lower, whitener, np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(axis=1))


def whiten(x: np.ndarray, means: np.ndarray, factors: Factors) -> np.ndarray:
    """Deviations of x (n, D) from every mean in units of its covariance, shape (K, n, D)."""
    # The mean is subtracted before the product: x W − μ W would lose the digits that far outliers need.
    deviation = x[None, :, :] - means[:, None, :]
    if factors.is_diagonal:
        deviation *= factors.whitener[:, None, :]
        return deviation
    return deviation @ factors.whitener


def log_gaussian(white: np.ndarray, factors: Factors) -> np.ndarray:
    """Log-density of every component at whitened deviations (K, n, D), shape (K, n), in nats."""
    squared_distance = np.einsum("knd,knd->kn", white, white)
    constant = factors.half_log_det + 0.5 * white.shape[2] * LOG_2PI
    return -0.5 * squared_distance - constant[:, None]


def covariance_floor(x: np.ndarray, eps: float, singularity_handling: str) -> float:
    """Smallest eigenvalue a fitted covariance may have.

    ``eps`` itself, except with ``"robust"``: then at least 1 % of the mean variance of the features of x (n, D).
    """
    if singularity_handling == "robust":
        return max(eps, _ROBUST_FRACTION * float(np.mean(np.var(x, axis=0, dtype=np.float64))))
    return eps


def floor_covariances(covariances: np.ndarray, floor: float, *, strict: bool) -> tuple[np.ndarray, np.ndarray]:
    """Raise the eigenvalues of covariances to at least ``floor``.

    Clamping the spectrum is the maximum of the likelihood under the constraint Σ ≥ floor·I, so EM stays monotone,
    which adding ``floor`` to the diagonal does not guarantee (a floor relative to the largest eigenvalue, see below,
    moves with the covariance: only there the likelihood may fall).

    Parameters
    ----------
    covariances
        (K, D, D) symmetric, or (K, D) variances, finite.
    floor
        Smallest eigenvalue allowed; 1e-13 of a covariance's largest eigenvalue is used where that is more.
    strict
        Raise instead of clamping.

    Returns
    -------
    covariances : ndarray
        Positive definite, same shape; rows that needed no clamping are returned as they were.
    floored : ndarray of bool
        (K,) which components were clamped.

    Raises
    ------
    SingularCovarianceError
        With ``strict``, naming the first component below the floor.
    """
    n_components, n_features = covariances.shape[:2]
    if covariances.ndim == 2:
        smallest = covariances.min(axis=1)
        floors = np.full(n_components, floor)
        floored = ~(smallest >= floors)
        result = np.maximum(covariances, floor)
    else:
        try:
            # Positive definite after subtracting the floor: every eigenvalue is above it, and no spectrum is needed.
            # The trace bounds the largest eigenvalue.
            bounds = np.maximum(floor, _RELATIVE_FLOOR * np.trace(covariances, axis1=1, axis2=2))
            np.linalg.cholesky(covariances - bounds[:, None, None] * np.eye(n_features))
            return covariances, np.zeros(n_components, dtype=bool)
        except np.linalg.LinAlgError:
            pass
        values, vectors = np.linalg.eigh(covariances)
        smallest = values[:, 0]
        floors = np.maximum(floor, _RELATIVE_FLOOR * values[:, -1])
        floored = ~(smallest >= floors)
        clamped = np.maximum(values, floors[:, None])
        result = covariances.copy()
        vectors = vectors[floored]
        rebuilt = (vectors * clamped[floored][:, None, :]) @ vectors.transpose(0, 2, 1)
        result[floored] = 0.5 * (rebuilt + rebuilt.transpose(0, 2, 1))
    if strict and floored.any():
        worst = int(np.argmax(floored))
        raise SingularCovarianceError(worst, n_components, float(smallest[worst]), float(floors[worst]))
    return result, floored
