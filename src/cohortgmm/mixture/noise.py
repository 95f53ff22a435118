"""Measurement noise of the cells: one covariance for all, or one for each."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cohortgmm.errors import DataError
from cohortgmm.mixture.tiles import tile_slices

#: A covariance may be this far, relative to its largest element, from being symmetric or positive semidefinite.
_SLACK = 1e-6


@dataclass(frozen=True, eq=False)
class Noise:
    """Measurement noise, checked.

    Attributes
    ----------
    values
        Variances (D,) or covariance (D, D) shared by all cells; or one for each cell, (n, D) or (n, D, D).
    shared
        Which of the two.
    """

    values: np.ndarray
    shared: bool

    @classmethod
    def read(
        cls,
        noise: "np.ndarray | Noise",
        n: int,
        n_features: int,
        *,
        per_cell: bool = False,
        name_of: Callable[[int], str] = str,
        missing: np.ndarray | None = None,
    ) -> "Noise":
        """Check what a user gave.

        Parameters
        ----------
        noise
            Noise that was checked before; or (n, D, D) covariances or (n, D) variances of every cell, or (D, D) or
            (D,) for all; in squared units of
            the features. An infinite variance, also on the diagonal of a covariance, means a missing feature. A square
            array of n = D rows is one covariance for all.
        n, n_features
            Shape of the cells.
        per_cell
            Whether a square array is one row of variances for each cell after all.
        name_of
            Function from the row of a cell to its name in an error.
        missing
            (n, D) bool: features that cells lack, whose noise may be anything; None for none.

        Raises
        ------
        DataError
            For another shape, or values that are no covariance, naming the first such cell.
        """
        if isinstance(noise, Noise):
            if noise.n_features != n_features or not (noise.shared or len(noise.values) == n):
                raise DataError(f"noise of shape {noise.values.shape} does not fit cells of shape {(n, n_features)}")
            return noise
        try:
            noise = np.asarray(noise)
            values = noise if noise.dtype in (np.float32, np.float64) else noise.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"noise must be a numeric array: {error}") from None
        one = ((n_features,), (n_features, n_features))
        if values.shape not in (*one, *((n, *shape) for shape in one)):
            raise DataError(
                f"noise must have shape (n, D), (n, D, D), (D,) or (D, D) with n = {n} and D = {n_features}, "
                f"got {values.shape}"
            )
        if values.shape not in one and is_one_for_all(values):
            values = values[0]
        shared = values.shape in one and not (per_cell and values.shape == (n, n_features))
        checked = _checked(values[None], None, None)[0] if shared else _checked(values, missing, name_of)
        return cls(values if np.shares_memory(checked, values) else checked, shared)

    def scale(self, normal: np.ndarray) -> np.ndarray:
        """Noise (n, D) with these covariances, from standard normal numbers (n, D)."""
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
        return self.values.ndim == 2 - self.shared

    def of(self, rows: slice | np.ndarray) -> "Noise":
        """The noise of some of the cells."""
        return self if self.shared else Noise(self.values[rows], False)

    def variances(self, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Variances (D,) if shared, else (n, D), in double precision."""
        values = self.values if self.shared else self.values[rows]
        if not self.is_diagonal:
            values = np.diagonal(values, axis1=-2, axis2=-1)
        return np.asarray(values, dtype=np.float64)

    def covariances(self, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Covariances (D, D) if shared, else (n, D, D), in double precision."""
        values = np.asarray(self.values if self.shared else self.values[rows], dtype=np.float64)
        return values[..., None] * np.eye(self.n_features) if self.is_diagonal else values


def is_one_for_all(values: np.ndarray) -> bool:
    """Whether an array is a view that repeats its first row, as :func:`numpy.broadcast_to` makes it."""
    return len(values) > 1 and values.strides[0] == 0


def without_endless(covariances: np.ndarray) -> np.ndarray:
    """Covariances (..., D, D) with zeros in the rows and columns of infinite variances: of missing features."""
    endless = np.diagonal(covariances, axis1=-2, axis2=-1) == np.inf
    return np.where(_pairs(endless), 0.0, covariances) if endless.any() else covariances


def _pairs(features: np.ndarray) -> np.ndarray:
    """(..., D, D) bool: elements of matrices in the rows or columns of some features (..., D)."""
    return features[..., :, None] | features[..., None, :]


def _checked(values: np.ndarray, missing: np.ndarray | None, name_of: Callable[[int], str] | None) -> np.ndarray:
    """The values (n, D) or (n, D, D), with eigenvalues that rounding made negative raised to zero.

    What cannot be used of features that are missing is replaced by an infinite variance.
    """
    result = values
    for tile in tile_slices(len(values), int(np.prod(values.shape[1:]))):
        part, changed = np.asarray(values[tile], dtype=np.float64), np.zeros(tile.stop - tile.start, dtype=bool)
        bad, rounded = _faults(part)
        if missing is not None and bad.any():
            changed = bad & missing[tile].any(axis=1)
            part = part.copy()
            part[changed] = _forgotten(part[changed], missing[tile][changed])
            bad, rounded = _faults(part)
        if bad.any():
            where = "" if name_of is None else f" of cell {name_of(tile.start + int(np.argmax(bad)))}"
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


def _forgotten(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Variances (n, D) or covariances (n, D, D) without what they say of missing features (n, D)."""
    if values.ndim == 2:
        return np.where(missing, np.inf, values)
    values = np.where(_pairs(missing), 0.0, values)
    cells, features = np.nonzero(missing)
    values[cells, features, features] = np.inf
    return values


def _raised(covariances: np.ndarray) -> np.ndarray:
    """Covariances (n, D, D) with negative eigenvalues raised to zero, whatever infinite variances they have."""
    eigenvalues, vectors = np.linalg.eigh(without_endless(covariances))
    vectors = vectors * np.sqrt(np.maximum(eigenvalues, 0.0))[:, None, :]
    result = vectors @ vectors.transpose(0, 2, 1)
    cells, features = np.nonzero(np.isinf(np.diagonal(covariances, axis1=1, axis2=2)))
    result[cells, features, features] = np.inf
    return result


def _faults(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of (n, D) variances or (n, D, D) matrices are no covariances, and which are but for rounding."""
    if values.ndim == 2:
        return ~(values >= 0).all(axis=1), np.zeros(len(values), dtype=bool)
    values = without_endless(values)
    finite = np.isfinite(values).all(axis=(1, 2))
    values = np.where(finite[:, None, None], values, 0.0)
    size = _SLACK * np.abs(values).max(axis=(1, 2))
    skew = np.abs(values - values.transpose(0, 2, 1)).max(axis=(1, 2)) > size
    smallest = np.linalg.eigvalsh(values)[:, 0]
    bad = ~finite | skew | (smallest < -size)
    return bad, ~bad & (smallest < 0)
