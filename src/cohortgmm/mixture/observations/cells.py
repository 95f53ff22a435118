"""The cells of a fit, read tile by tile in double precision, and their mean, extent and covariance."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np

from cohortgmm.arguments import LARGEST
from cohortgmm.arrays import dense_array
from cohortgmm.errors import DataError
from cohortgmm.mixture.numerics.tiles import keep_freed_memory, ordered_map, tile_slices
from cohortgmm.mixture.observations.background import Background

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

#: Several threads are used only if there are at least this many tiles for each of them.
_TILES_PER_THREAD = 3


class CellData:
    """Cells of a fit, read tile by tile, so that a memory-mapped array is never loaded as a whole.

    Parameters
    ----------
    x
        (n, D) cells; float32 and float64 arrays, also memory-mapped ones, are used without a copy. Other arrays are
        converted to float64.
    n_threads
        Threads that work on tiles at the same time.
    missing_allowed
        Whether values may be NaN; ``n_missing`` is their number.

    Attributes
    ----------
    log_background
        (n,) log-density of the background at every cell; None if the mixture has no background.

    Raises
    ------
    DataError
        If x is not two-dimensional and numeric, or has infinite or too large values, or NaN that are not allowed.
    """

    def __init__(self, x: np.ndarray, n_threads: int = 1, *, missing_allowed: bool = False) -> None:
        keep_freed_memory()
        self.x = dense_array(x, "cells")
        self.n_threads = n_threads
        self.log_background: np.ndarray | None = None
        if self.x.ndim != 2 or self.x.shape[1] == 0:
            hint = ": cells of one feature are x[:, None]" if self.x.ndim == 1 else ""
            raise DataError(f"cells must be an array of shape (n, D), got {self.x.shape}{hint}")
        self.n_missing = self._count_missing(missing_allowed)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def n_features(self) -> int:
        """Number of features D."""
        return self.x.shape[1]

    def tiles(self, values_per_row: int) -> list[slice]:
        """Slices of rows; see :func:`cohortgmm.mixture.numerics.tiles.tile_slices`."""
        return list(tile_slices(len(self), values_per_row))

    def rows(self, rows: slice | np.ndarray) -> np.ndarray:
        """Some of the cells as a contiguous float64 array."""
        return np.ascontiguousarray(self.x[rows], dtype=np.float64)

    def map(self, function: Callable[[_Item], _Result], items: Sequence[_Item]) -> Iterator[_Result]:
        """Ordered results of ``function`` on tiles; see :func:`cohortgmm.mixture.numerics.tiles.ordered_map`."""
        # With few tiles the threads wait for the interpreter longer than they work.
        return ordered_map(function, items, self.n_threads if len(items) >= _TILES_PER_THREAD * self.n_threads else 1)

    def background_at(self, rows: slice, background: Background | None) -> np.ndarray | None:
        """(n,) log(amplitude × density) of the background at some of the cells; None without one."""
        if background is None or self.log_background is None:
            return None
        with np.errstate(divide="ignore"):
            return self.log_background[rows] + np.log(background.amp)

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

    def _count_missing(self, allowed: bool) -> int:
        n_missing, faults = 0, []
        largest = min(LARGEST, float(np.finfo(self.x.dtype).max))
        for tile in self.tiles(self.n_features):
            part = self.x[tile]
            if -largest <= part.min() and part.max() <= largest:  # both are false if the tile has a NaN
                continue
            missing, infinite = np.isnan(part), np.isinf(part)
            n_missing += np.count_nonzero(missing)
            large = ~(missing | infinite) & (np.abs(part) > largest)
            faults.append((_found(infinite if allowed else infinite | missing, tile), _found(large, tile)))
        for found, what, way in zip(
            zip(*faults, strict=True),
            ("infinite values" if allowed else "NaN or infinite values", f"values beyond {LARGEST:g}"),
            ("remove or impute them", "squares would overflow, rescale the data"),
            strict=False,
        ):
            if n_bad := sum(n for n, _ in found):
                raise DataError(f"{n_bad} {what}, the first in cell {min(i for n, i in found if n)}: {way}")
        return n_missing


def _found(bad: np.ndarray, tile: slice) -> tuple[int, int]:
    """Number of bad values in a tile, and the position of the first cell with a bad value."""
    return int(np.count_nonzero(bad)), tile.start + int(np.argmax(bad.any(axis=1)))
