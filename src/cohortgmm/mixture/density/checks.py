"""Checks that arrays from a user or a file are the parameters of a mixture."""

from typing import Any

import numpy as np

from cohortgmm.arrays import dense_array
from cohortgmm.display import format_value
from cohortgmm.errors import ConfigError, DataError
from cohortgmm.mixture.observations.background import Background

#: Weights and background may be this far from a sum of one, as those of a file in single precision are.
SUM_TO_ONE = 1e-6

#: A covariance may be this far, relative to its largest element, from being symmetric, for the same reason.
_ASYMMETRY = 1e-6

#: If the other features leave less than this share of a feature's variance unexplained, the eigenvalues are computed, since
#: the Cholesky pivots of a singular covariance may consist of rounding errors.
_UNEXPLAINED = 1e-6

#: The smallest eigenvalue of a correlation matrix must exceed the first number × machine epsilon × the largest
#: eigenvalue, which is capped at the second number. Fitted covariances keep a ratio of eigenvalues of 1e-13.
_ROUNDINGS, _LARGEST_EIGENVALUE = 4.0, 50.0


def checked_arrays(weights: Any, means: Any, covariances: Any, background: Any) -> dict[str, np.ndarray]:
    """Parameters of a mixture in double precision, by name; covariances are made exactly symmetric.

    Raises
    ------
    DataError
        If the arrays are not the parameters of a mixture; the error names the parameter, the component and the value.
    """
    given = {"weights": weights, "means": means, "covariances": covariances}
    arrays = {name: _finite(value, name) for name, value in given.items()}
    k, d = arrays["means"].shape if arrays["means"].ndim == 2 else (0, 0)
    shapes = [array.shape for array in arrays.values()]
    if k == 0 or d == 0 or shapes[0] != (k,) or shapes[2] not in ((k, d, d), (k, d)):
        raise DataError(
            "a mixture needs weights (K,), means (K, D) and covariances (K, D, D) or (K, D), "
            f"got {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )
    _check_weights(arrays["weights"], background, d)
    with np.errstate(over="ignore", invalid="ignore"):
        arrays["covariances"] = _definite(arrays["covariances"])
    return arrays


def _finite(value: Any, name: str) -> np.ndarray:
    # The array is copied because the factors of the covariances are kept: the user may change the array later.
    array = np.array(dense_array(value, f"{name} of the mixture"), dtype=np.float64, order="C")
    bad = ~np.isfinite(array)
    if bad.any():
        place = np.argwhere(bad)[0]
        which = f": component {place[0]} has {array[tuple(place)]:g}" if len(place) else f": {array:g}"
        raise DataError(f"{name} of the mixture are not all finite{which}")
    return array


def _check_weights(weights: np.ndarray, background: Any, n_features: int) -> None:
    negative = np.flatnonzero(weights < 0)
    if len(negative):
        raise DataError(
            f"weights of the mixture must not be negative: component {negative[0]} has {weights[negative[0]]:.6g}"
        )
    check_background(background, n_features)
    amp = 0.0 if background is None else background.amp
    total = float(weights.sum()) + amp
    if not abs(total - 1.0) <= SUM_TO_ONE:
        if background is None:
            hint = "divide them by their sum" if total > 0 else "give at least one a weight"
            raise DataError(f"weights of the mixture must sum to one, got {total:.8g}: {hint}")
        raise DataError(
            f"weights and the background's amplitude must sum to one, got {total:.6g}: let the weights sum to 1 - {amp:g}"
        )


def check_background(background: Any, n_features: int) -> None:
    """Refuse a value that is not a background with this number of features; None means no background."""
    if background is not None and not isinstance(background, Background):
        raise ConfigError(f"background must be a cohortgmm.Background, got {format_value(background)}")
    if background is not None and background.n_features != n_features:
        raise DataError(f"the background has {background.n_features} features, the components have {n_features}")


def _definite(covariances: np.ndarray) -> np.ndarray:
    """Check that the covariances are positive definite, and make them exactly symmetric."""
    if covariances.ndim == 2:
        bad = np.argwhere(~(covariances > 0))
        if len(bad):
            k, feature = bad[0]
            raise DataError(
                f"the variances of component {k} must be positive, that of feature {feature} is "
                f"{covariances[k, feature]:.3g}: raise it, or remove the component"
            )
        return covariances
    skew = np.abs(covariances - covariances.transpose(0, 2, 1)).max(axis=(1, 2))
    worst = np.flatnonzero(~(skew <= _ASYMMETRY * np.abs(covariances).max(axis=(1, 2))))
    if len(worst):
        raise DataError(
            f"the covariance of component {worst[0]} is not symmetric, it differs from its transpose by up to "
            f"{skew[worst[0]]:.3g}: take the mean of the two"
        )
    if skew.any():
        covariances = 0.5 * covariances + 0.5 * covariances.transpose(0, 2, 1)
    for k, covariance in enumerate(covariances):
        if not _is_definite(covariance):
            raise DataError(
                f"the covariance of component {k} is not positive definite, its smallest eigenvalue is "
                f"{_smallest_eigenvalue(covariance):.3g}: add a small variance to its diagonal, or remove the component"
            )
    return covariances


def _is_definite(covariance: np.ndarray) -> bool:
    """Whether a symmetric matrix is positive definite in double precision, whatever the units of the features."""
    try:
        root = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        return False
    scale = np.sqrt(np.diagonal(covariance))
    if np.all(np.diagonal(root) > np.sqrt(_UNEXPLAINED) * scale):
        return True
    values = np.linalg.eigvalsh(covariance / scale / scale[:, None])
    return bool(values[0] > _ROUNDINGS * np.finfo(float).eps * min(values[-1], _LARGEST_EIGENVALUE))


def _smallest_eigenvalue(covariance: np.ndarray) -> float:
    try:
        return float(np.linalg.eigvalsh(covariance)[0])
    except np.linalg.LinAlgError:
        return float("nan")
