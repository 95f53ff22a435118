"""The cells of a fit: their rows, piece by piece in double precision, and what is known of their spread."""

from functools import cached_property

import numpy as np

from cohortgmm.errors import DataError
from cohortgmm.mixture.tiles import keep_freed_memory, ordered_map, tile_slices

#: A thread is started for no fewer tiles than this.
_TILES_PER_THREAD = 3


class CellData:
    """Cells of a fit, read by tiles so that arrays mapped from a file are never held whole.

    Parameters
    ----------
    x
        (n, D) cells; float32 and float64 arrays, also memory-mapped ones, are used where they are, others are
        converted to float64.
    n_threads
        Threads that work on tiles at the same time.

    Raises
    ------
    DataError
        If x is not two-dimensional and numeric, or has NaN or infinite values.
    """

    def __init__(self, x: np.ndarray, n_threads: int = 1) -> None:
        keep_freed_memory()
        self.x = _as_floats(x)
        self.n_threads = n_threads
        if self.x.ndim != 2 or self.x.shape[1] == 0:
            raise DataError(f"cells must be an array of shape (n, D), got {self.x.shape}")
        self._check_finite()

    def __len__(self) -> int:
        return len(self.x)

    @property
    def n_features(self) -> int:
        """Number of features D."""
        return self.x.shape[1]

    def tiles(self, values_per_row: int) -> list[slice]:
        """Slices of rows; see :func:`cohortgmm.mixture.tiles.tile_slices`."""
        return list(tile_slices(len(self), values_per_row))

    def rows(self, rows: slice | np.ndarray) -> np.ndarray:
        """Some of the cells as a contiguous float64 array."""
        return np.ascontiguousarray(self.x[rows], dtype=np.float64)

    def map(self, function, items):
        """Ordered results of ``function`` on tiles; see :func:`cohortgmm.mixture.tiles.ordered_map`."""
        # With few tiles the threads wait for the interpreter longer than they work.
        return ordered_map(function, items, self.n_threads if len(items) >= _TILES_PER_THREAD * self.n_threads else 1)

    @cached_property
    def mean(self) -> np.ndarray:
        """(D,) mean of the cells."""
        return sum(self.rows(tile).sum(axis=0) for tile in self.tiles(self.n_features)) / len(self)

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(D,) smallest and largest value of every feature."""
        tiles = self.tiles(self.n_features)
        low = np.min([self.x[tile].min(axis=0) for tile in tiles], axis=0)
        high = np.max([self.x[tile].max(axis=0) for tile in tiles], axis=0)
        return low.astype(np.float64), high.astype(np.float64)

    @property
    def extent(self) -> np.ndarray:
        """(D,) largest absolute deviation from the mean."""
        low, high = self.bounds
        return np.maximum(self.mean - low, high - self.mean)

    @cached_property
    def covariance(self) -> np.ndarray:
        """(D, D) covariance of the cells (divided by n)."""
        total = 0.0
        for tile in self.tiles(self.n_features):
            deviation = self.rows(tile) - self.mean
            total = total + deviation.T @ deviation
        return total / len(self)

    def _check_finite(self) -> None:
        n_bad, first = 0, -1
        for tile in self.tiles(self.n_features):
            finite = np.isfinite(self.x[tile])
            if not finite.all():
                n_bad += finite.size - np.count_nonzero(finite)
                first = first if first >= 0 else tile.start + int(np.argmin(finite.all(axis=1)))
        if n_bad:
            raise DataError(f"{n_bad} NaN or infinite values, the first in cell {first}: remove or impute them")


def _as_floats(x) -> np.ndarray:
    try:
        x = np.asarray(x)
        return x if x.dtype in (np.float32, np.float64) else np.asarray(x, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"cells must be a numeric array (n, D): {error}") from None
