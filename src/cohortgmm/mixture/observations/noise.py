"""Measurement noise of the cells: one covariance for all, or one for each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cohortgmm.arrays import dense_array
from cohortgmm.errors import DataError
from cohortgmm.mixture.numerics.tiles import tile_slices

#: A covariance may be this far, relative to its largest element, from being symmetric or positive semidefinite.
_SLACK = 1e-6

#: Products of larger variances overflow.
_LARGEST = 1e200


@dataclass(frozen=True, eq=False)
class Noise:
    """Measurement noise of cells, and whether it is one for all of them or one for each.

    Make it with :meth:`per_cell` or :meth:`shared`. They are needed because the shape of an array can be ambiguous:
    variances of three cells in three features and one covariance of three features both have the shape (3, 3).

    Attributes
    ----------
    values
        Variances (D,) or covariance (D, D) shared by all cells; or one for each cell, (n, D) or (n, D, D).
    is_shared
        Whether all cells share the values.
    is_checked
        Whether the values were already checked to be covariances that fit the number of cells and of features.

    Examples
    --------
    >>> import numpy as np
    >>> from cohortgmm import GaussianMixture
    >>> model = GaussianMixture([1.0], [[0.0, 0.0]], [np.eye(2)])
    >>> variances = np.array([[0.1, 0.2], [0.3, 0.1]])
    >>> model.log_prob(np.zeros((2, 2)), noise=Noise.per_cell(variances)).round(3)
    array([-1.977, -2.017])
    """

    values: np.ndarray
    is_shared: bool
    is_checked: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.values, np.ndarray):
            object.__setattr__(self, "values", dense_array(self.values, "noise"))
        if self.values.ndim not in ((1, 2) if self.is_shared else (2, 3)):
            which = "shared takes (D,) or (D, D)" if self.is_shared else "per_cell takes (n, D) or (n, D, D)"
            raise DataError(f"noise of shape {self.values.shape}: cohortgmm.Noise.{which}")

    @classmethod
    def per_cell(cls, values: Any) -> "Noise":
        """Noise of every cell: variances (n, D), or covariances (n, D, D)."""
        return cls._declared(values, False, (2, 3), "Noise.per_cell takes variances (n, D) or covariances (n, D, D)")

    @classmethod
    def shared(cls, values: Any) -> "Noise":
        """Noise that all cells have: variances (D,), or a covariance (D, D)."""
        return cls._declared(values, True, (1, 2), "Noise.shared takes variances (D,) or one covariance (D, D)")

    @classmethod
    def _declared(cls, values: Any, is_shared: bool, n_axes: tuple[int, int], takes: str) -> "Noise":
        if isinstance(values, Noise):
            raise DataError(f"{takes}, got a cohortgmm.Noise, which says that already")
        values = dense_array(values, "noise")
        if values.ndim not in n_axes:
            raise DataError(f"{takes}, got an array of shape {values.shape}")
        return cls(values, is_shared)

    @classmethod
    def validated(
        cls,
        noise: Any,
        n: int,
        n_features: int,
        *,
        name_of: Callable[[int], str] = str,
        missing: np.ndarray | None = None,
    ) -> "Noise":
        """Check the noise that a user gave.

        Parameters
        ----------
        noise
            :class:`Noise`; or (n, D, D) covariances or (n, D) variances of every cell, or (D, D) or (D,) for all; in
            squared units of the features. An infinite variance, also on the diagonal of a covariance, means a missing
            feature.
        n, n_features
            Shape of the cells.
        name_of
            Function from the row of a cell to its name in an error.
        missing
            (n, D) bool: missing features of the cells, whose noise may have any value; None if no feature is missing.

        Raises
        ------
        DataError
            If the array has another shape, could be either the variances of n = D cells or one covariance, or has
            values that are not a covariance. The error names the first such cell.
        """
        declared = noise if isinstance(noise, Noise) else None
        values = dense_array(noise, "noise") if declared is None else declared.values
        one = ((n_features,), (n_features, n_features))
        each = tuple((n, *shape) for shape in one)
        if declared is not None and values.shape not in (one if declared.is_shared else each):
            which = "one for all cells" if declared.is_shared else "one for each cell"
            raise DataError(f"noise of shape {values.shape}, {which}, does not fit cells of shape {(n, n_features)}")
        if declared is not None and declared.is_checked:
            return declared
        if values.shape not in (*one, *each):
            raise DataError(
                f"noise must have shape (n, D), (n, D, D), (D,) or (D, D) with n = {n} and D = {n_features}, "
                f"got {values.shape}"
            )
        if declared is None:
            check_meaning(values, n, n_features)
        is_shared = values.shape in one if declared is None else declared.is_shared
        if not is_shared and is_one_for_all(values):
            values, is_shared = values[0], True
        checked = _checked(values[None], None, None)[0] if is_shared else _checked(values, missing, name_of)
        return cls(values if np.shares_memory(checked, values) else checked, is_shared, True)

    def scale(self, normal: np.ndarray) -> np.ndarray:
        """Draws of the noise (n, D) with these covariances, made from standard normal numbers (n, D)."""
        if self.is_diagonal:
            return np.sqrt(self.variances()) * normal
        values, vectors = np.linalg.eigh(self.covariances())
        roots = vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]
        return np.einsum("...de,...e->...d", roots, normal)

    @property
    def n_features(self) -> int:
        """Number of features D."""
        return self.values.shape[-1]

    @property
    def is_diagonal(self) -> bool:
        """Whether there are variances only."""
        return self.values.ndim == 2 - self.is_shared

    def take(self, rows: slice | np.ndarray) -> "Noise":
        """The noise of some of the cells."""
        return self if self.is_shared else Noise(self.values[rows], False, self.is_checked)

    def variances(self, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Variances (D,) if shared, else (n, D), in double precision."""
        values = self.values if self.is_shared else self.values[rows]
        if not self.is_diagonal:
            values = np.diagonal(values, axis1=-2, axis2=-1)
        return np.asarray(values, dtype=np.float64)

    def covariances(self, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Covariances (D, D) if shared, else (n, D, D), in double precision."""
        values = np.asarray(self.values if self.is_shared else self.values[rows], dtype=np.float64)
        return values[..., None] * np.eye(self.n_features) if self.is_diagonal else values


def check_meaning(values: np.ndarray, n: int, n_features: int, name: str = "noise") -> None:
    """Refuse an array whose shape fits both the variances of every cell and one covariance for all cells.

    The two have the same meaning, and are accepted, if there is one feature or if all values are zero.

    Raises
    ------
    DataError
        If the array is ambiguous; the error states both meanings and how to choose one.
    """
    d = n_features
    if d > 1 and n == d and values.shape == (d, d) and np.any(values):
        raise DataError(
            f"{name} of shape {(d, d)} for {n} cells of {d} features may be the variances of each cell or one covariance "
            "for all: say which, cohortgmm.Noise.per_cell(values) or cohortgmm.Noise.shared(values)"
        )


def is_one_for_all(values: np.ndarray) -> bool:
    """Whether an array is a view that repeats its first row, as :func:`numpy.broadcast_to` makes it."""
    return len(values) > 1 and values.strides[0] == 0


def without_infinite(covariances: np.ndarray) -> np.ndarray:
    """Covariances (..., D, D) with zeros in the rows and columns of missing features, which have infinite variances."""
    infinite = np.diagonal(covariances, axis1=-2, axis2=-1) == np.inf
    return np.where(_pairs(infinite), 0.0, covariances) if infinite.any() else covariances


def _pairs(features: np.ndarray) -> np.ndarray:
    """(..., D, D) bool: elements of matrices in the rows or columns of some features (..., D)."""
    return features[..., :, None] | features[..., None, :]


def _checked(values: np.ndarray, missing: np.ndarray | None, name_of: Callable[[int], str] | None) -> np.ndarray:
    """Check the values (n, D) or (n, D, D), and raise eigenvalues that are negative by rounding to zero.

    Values that are not a covariance because of missing features get infinite variances for these features.
    """
    result = values
    for tile in tile_slices(len(values), int(np.prod(values.shape[1:]))):
        part, changed = np.asarray(values[tile], dtype=np.float64), np.zeros(tile.stop - tile.start, dtype=bool)
        bad, rounded = _faults(part)
        if missing is not None and bad.any():
            changed = bad & missing[tile].any(axis=1)
            part = part.copy()
            part[changed] = _without_missing(part[changed], missing[tile][changed])
            bad, rounded = _faults(part)
        if bad.any():
            first = int(np.argmax(bad))
            where = "" if name_of is None else f" of cell {name_of(tile.start + first)}"
            if _are_too_large(part[first][None])[0]:
                raise DataError(
                    f"the noise{where} has values beyond {_LARGEST:g}: rescale the data; infinity is a missing feature"
                )
            raise DataError(
                f"the noise{where} is no covariance: variances must be at least 0, "
                f"{'not NaN' if part.ndim == 2 else 'the matrix finite, symmetric and positive semidefinite'}"
            )
        if rounded.any() or changed.any():
            result = np.array(values, dtype=np.float64) if result is values else result
            result[tile][changed] = part[changed]
            if rounded.any():
                result[tile][rounded] = _raised(part[rounded])
    return result


def _without_missing(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Variances (n, D) or covariances (n, D, D) with infinite variances for missing features (n, D)."""
    if values.ndim == 2:
        return np.where(missing, np.inf, values)
    values = np.where(_pairs(missing), 0.0, values)
    cells, features = np.nonzero(missing)
    values[cells, features, features] = np.inf
    return values


def _raised(covariances: np.ndarray) -> np.ndarray:
    """Covariances (n, D, D) with negative eigenvalues raised to zero; infinite variances are kept."""
    eigenvalues, vectors = np.linalg.eigh(without_infinite(covariances))
    vectors = vectors * np.sqrt(np.maximum(eigenvalues, 0.0))[:, None, :]
    result = vectors @ vectors.transpose(0, 2, 1)
    cells, features = np.nonzero(np.isinf(np.diagonal(covariances, axis1=1, axis2=2)))
    result[cells, features, features] = np.inf
    return result


def _are_too_large(values: np.ndarray) -> np.ndarray:
    """Which of (n, D) variances or (n, D, D) matrices have finite values whose products overflow."""
    large = (np.abs(np.asarray(values, dtype=np.float64)) > _LARGEST) & np.isfinite(values)
    return large.any(axis=tuple(range(1, values.ndim)))


def _faults(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of (n, D) variances or (n, D, D) matrices are not covariances, and which are covariances up to rounding."""
    if values.ndim == 2:
        return ~(values >= 0).all(axis=1) | _are_too_large(values), np.zeros(len(values), dtype=bool)
    values = without_infinite(values)
    finite = np.isfinite(values).all(axis=(1, 2)) & ~_are_too_large(values)
    values = np.where(finite[:, None, None], values, 0.0)
    size = _SLACK * np.abs(values).max(axis=(1, 2))
    skew = np.abs(values - values.transpose(0, 2, 1)).max(axis=(1, 2)) > size
    smallest = np.linalg.eigvalsh(values)[:, 0]
    bad = ~finite | skew | (smallest < -size)
    return bad, ~bad & (smallest < 0)
