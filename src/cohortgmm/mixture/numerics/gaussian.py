"""Covariances as the core uses them: whitening factors, log-densities, and the floor under their spectrum."""

from dataclasses import dataclass

import numpy as np

from cohortgmm.errors import FitError, SingularCovarianceError

LOG_2PI = float(np.log(2.0 * np.pi))

#: Smallest ratio of eigenvalues that a double-precision Cholesky factor still resolves with some digits.
_RELATIVE_FLOOR = 1e-13

#: Triangular matrices up to this size are inverted directly, larger ones by halves.
_DIRECT_INVERSE = 24

#: ``singularity_handling="robust"`` floors the spectrum at this fraction of the mean variance of the features.
_ROBUST_FRACTION = 1e-2


@dataclass(frozen=True)
class Factors:
    """Square roots of the covariances and of their inverses.

    Attributes
    ----------
    root
        A with A Aᵀ = Σ (K, D, D), or standard deviations (K, D).
    whitener
        W with W Wᵀ = Σ⁻¹, so that (x − μ) W is white (K, D, D), or (K, D).
    half_log_det
        ½ log det Σ, shape (K,).
    """

    root: np.ndarray
    whitener: np.ndarray
    half_log_det: np.ndarray

    @property
    def is_diagonal(self) -> bool:
        return self.root.ndim == 2


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
    whitener = np.ascontiguousarray(_inverse_of_lower(lower).transpose(0, 2, 1))
    return Factors(lower, whitener, np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(axis=1))


def _inverse_of_lower(lower: np.ndarray) -> np.ndarray:
    """Inverses of lower triangular matrices (K, D, D), by halves: three times faster than a general inverse."""
    d = lower.shape[1]
    if d <= _DIRECT_INVERSE:
        return np.linalg.inv(lower)
    half = d // 2
    top, bottom = _inverse_of_lower(lower[:, :half, :half]), _inverse_of_lower(lower[:, half:, half:])
    inverse = np.zeros_like(lower)
    inverse[:, :half, :half] = top
    inverse[:, half:, half:] = bottom
    inverse[:, half:, :half] = -(bottom @ lower[:, half:, :half]) @ top
    return inverse


def whiten(deviation: np.ndarray, factors: Factors) -> np.ndarray:
    """Deviations (K, n, D) from the means in units of their covariances, same shape."""
    # The argument is a deviation because the difference x W − μ W would lose digits for far outliers.
    if factors.is_diagonal:
        return deviation * factors.whitener[:, None, :]
    return deviation @ factors.whitener


def covariance_floor(variances: np.ndarray | None, eps: float, singularity_handling: str) -> float:
    """Smallest eigenvalue a fitted covariance may have.

    This is ``eps``; with ``"robust"``, it is at least 1 % of the mean of the ``variances`` (D,) of the features.
    ``variances`` may be None without ``"robust"``.
    """
    if singularity_handling == "robust":
        return max(eps, _ROBUST_FRACTION * float(np.mean(variances)))
    return eps


def floor_covariances(
    covariances: np.ndarray, floor: float, *, strict: bool, suspected: np.ndarray | None = None
) -> tuple[np.ndarray, Factors, np.ndarray]:
    """Raise the eigenvalues of covariances to at least ``floor``, and factor the result.

    Clamping the eigenvalues maximizes the likelihood under the constraint Σ ≥ floor·I, so EM stays monotone. Adding
    ``floor`` to the diagonal does not guarantee that. The floor relative to the largest eigenvalue (see ``floor``)
    changes with the covariance; the likelihood may fall if that floor is the larger one.

    Parameters
    ----------
    covariances
        (K, D, D) symmetric, or (K, D) variances.
    floor
        Smallest eigenvalue allowed; 1e-13 of a covariance's largest eigenvalue is used where that is more.
    strict
        Raise instead of clamping.
    suspected
        (K,) components that are probably below the floor; giving them saves time and does not change the result.

    Returns
    -------
    covariances : ndarray
        Positive definite, same shape; rows that needed no clamping are returned as they were.
    factors : Factors
        Of the covariances returned.
    floored : ndarray of bool
        (K,) which components were clamped.

    Raises
    ------
    SingularCovarianceError
        With ``strict``, naming the first component below the floor.
    FitError
        If a covariance is not finite.
    """
    n_components = len(covariances)
    if not np.isfinite(covariances).all():
        raise FitError("a covariance is beyond the range of numbers: rescale the data")
    if covariances.ndim == 2:
        floored = ~(covariances.min(axis=1) >= floor)
        if strict and floored.any():
            raise _singular(floored, covariances.min(axis=1), np.full(n_components, floor))
        covariances = np.maximum(covariances, floor)
        return covariances, factorize(covariances), floored
    floored = np.zeros(n_components, dtype=bool)
    factors, suspects = _factors_above(covariances, _floors(covariances, floor), suspected)
    if not len(suspects):
        return covariances, factors, floored
    values, vectors = np.linalg.eigh(covariances[suspects])
    floors = np.maximum(floor, _RELATIVE_FLOOR * values[:, -1])
    below = ~(values[:, 0] >= floors)
    floored[suspects] = below
    if strict and below.any():
        smallest, limits = np.full((2, n_components), floor)
        smallest[suspects], limits[suspects] = values[:, 0], floors
        raise _singular(floored, smallest, limits)
    values = np.maximum(values, floors[:, None])
    scale = np.sqrt(values)[:, None, :]
    factors.root[suspects] = vectors * scale
    factors.whitener[suspects] = vectors / scale
    factors.half_log_det[suspects] = 0.5 * np.log(values).sum(axis=1)
    covariances = covariances.copy()
    rebuilt = (vectors[below] * values[below][:, None, :]) @ vectors[below].transpose(0, 2, 1)
    covariances[floored] = 0.5 * (rebuilt + rebuilt.transpose(0, 2, 1))
    return covariances, factors, floored


def _factors_above(
    covariances: np.ndarray, floors: np.ndarray, suspected: np.ndarray | None
) -> tuple[Factors, np.ndarray]:
    """Factors, and the components that may be below the floor.

    A component is above the floor if 1 / tr Σ⁻¹ = 1 / ‖W‖², a lower bound of λ_min, is above it. The factors of
    suspected components are those of the unit matrix.
    """
    suspected = np.zeros(len(floors), dtype=bool) if suspected is None else suspected
    try:
        factors = factorize(_without(covariances, suspected))
    except np.linalg.LinAlgError:
        suspected = suspected | ~np.array([_is_definite(matrix) for matrix in covariances])
        factors = factorize(_without(covariances, suspected))
    inverse_bound = np.einsum("kij,kij->k", factors.whitener, factors.whitener)
    return factors, np.flatnonzero(suspected | ~(inverse_bound <= 1.0 / floors))


def _without(covariances: np.ndarray, suspected: np.ndarray) -> np.ndarray:
    if not suspected.any():
        return covariances
    return np.where(suspected[:, None, None], np.eye(covariances.shape[1]), covariances)


def _is_definite(matrix: np.ndarray) -> bool:
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return False
    return True


def _floors(covariances: np.ndarray, floor: float) -> np.ndarray:
    """(K,) floors: ``floor``, or 1e-13 of the trace if that is more. The trace bounds the largest eigenvalue."""
    return np.maximum(floor, _RELATIVE_FLOOR * np.trace(covariances, axis1=1, axis2=2))


def _singular(floored: np.ndarray, smallest: np.ndarray, floors: np.ndarray) -> SingularCovarianceError:
    worst = int(np.argmax(floored))
    return SingularCovarianceError(worst, len(floored), float(smallest[worst]), float(floors[worst]))
