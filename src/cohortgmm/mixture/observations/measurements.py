"""Cells with their measurement noise and missing features, in groups that one E-step can process."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from cohortgmm.arrays import check_labels
from cohortgmm.mixture.numerics.tuning import tuning
from cohortgmm.mixture.observations.background import Background
from cohortgmm.mixture.observations.cells import CellData
from cohortgmm.mixture.observations.noise import Noise, without_infinite

#: Largest number of cells from which the missing values of a feature are imputed.
_DONORS = 512


@dataclass(frozen=True, eq=False)
class Group:
    """Cells that one E-step processes together.

    Attributes
    ----------
    cells
        (n, m) measured features of the cells; if ``observed`` is given, (n, D), with zero for a missing feature.
    rows
        Rows of the cells in the data: a slice of all rows, or (n,) positions.
    features
        (m,) positions of the features that the cells have; None means all features.
    noise
        Measurement noise of the cells in these features; None means no noise.
    observed
        (n, D) bool: which features each cell has; None if all cells have the same features.
    """

    cells: CellData
    rows: slice | np.ndarray = field(default_factory=lambda: slice(None))
    features: np.ndarray | None = None
    noise: Noise | None = None
    observed: np.ndarray | None = None

    @property
    def is_uniform(self) -> bool:
        """Whether all cells have the same features and the same noise."""
        return self.observed is None and (self.noise is None or self.noise.is_shared)

    def is_diagonal(self, covariance_type: str) -> bool:
        """Whether components of this type have diagonal covariances after convolution with the noise."""
        return covariance_type == "diag" and (self.noise is None or self.noise.is_diagonal)


class Measurements:
    """Cells with their measurement noise and missing features.

    Parameters
    ----------
    x
        (n, D) cells; NaN is a missing feature. They are not copied if nothing is missing (see :class:`CellData`).
    noise
        Measurement noise, as the argument of :meth:`Noise.validated`; None means no noise.
    n_threads
        Threads that work on tiles at the same time.
    background
        The background of the mixture, whose density at every cell is computed once; None without one.

    Raises
    ------
    DataError
        If x or the noise cannot be used.
    """

    def __init__(self, x: Any, noise: Any = None, n_threads: int = 1, background: Background | None = None) -> None:
        check_labels(noise, x, "noise")
        self.whole = CellData(x, n_threads, missing_allowed=True)
        self.noise = None if noise is None else self._validated_noise(noise)
        self.background = background
        self._observed = self._find_observed()
        self.n_empty = 0 if self._observed is None else int(np.count_nonzero(~self._observed.any(axis=1)))
        self.groups = self._grouped(self._observed)

    def __len__(self) -> int:
        """Number of cells with at least one feature."""
        return len(self.whole) - self.n_empty

    @property
    def n_features(self) -> int:
        """Number of features D."""
        return self.whole.n_features

    @property
    def is_complete(self) -> bool:
        """Whether every cell has all features."""
        return self._observed is None

    @property
    def is_plain(self) -> bool:
        """Whether no feature is missing and there is no noise."""
        return self.is_complete and self.noise is None

    def _validated_noise(self, noise: Any) -> Noise:
        missing = None
        if self.whole.n_missing:
            missing = np.concatenate([np.isnan(self.whole.x[tile]) for tile in self.whole.tiles(self.n_features)])
        return Noise.validated(noise, len(self.whole), self.n_features, missing=missing)

    def _find_observed(self) -> np.ndarray | None:
        """(n, D) bool: which features each cell has; None if every cell has all features."""
        infinite = None
        if self.noise is not None:
            values = self.noise.values
            infinite = np.isinf(values if self.noise.is_diagonal else np.diagonal(values, axis1=-2, axis2=-1))
        if not (self.whole.n_missing or (infinite is not None and infinite.any())):
            return None
        observed = np.concatenate([~np.isnan(self.whole.x[tile]) for tile in self.whole.tiles(self.n_features)])
        return observed if infinite is None else observed & ~infinite

    def _grouped(self, observed: np.ndarray | None) -> list[Group]:
        """Group the cells by their missing features and their noise.

        The cells of a group have the same marginal mixture, for which there are fast E-steps. Small groups, and cells
        with noise per cell, are put together into one group, in which the matrices are computed for every cell.
        """
        n, noise = len(self.whole), self.noise
        if n == 0 or (observed is None and (noise is None or noise.is_shared)):
            return [self._group(slice(None), None)]
        labels = np.zeros(n, dtype=np.intp)
        if observed is not None:
            labels = np.unique(np.packbits(observed, axis=1), axis=0, return_inverse=True)[1].ravel()
        if noise is not None and not noise.is_shared:
            kinds = _kinds_of(noise.values)
            # The label −1 marks cells with noise per cell, whose noise has too many distinct values for groups.
            labels = np.full(n, -1) if kinds is None else labels * (kinds.max() + 1) + kinds
        empty = np.zeros(n, dtype=bool) if observed is None else ~observed.any(axis=1)
        groups, rest = [], (labels < 0) & ~empty
        for label, count in zip(*np.unique(labels[(labels >= 0) & ~empty], return_counts=True), strict=True):
            chosen = (labels == label) & ~empty
            if count < tuning().smallest_group:
                rest |= chosen
                continue
            rows = np.flatnonzero(chosen)
            pattern = None if observed is None else observed[rows[0]]
            groups.append(self._group(rows, None if pattern is None or pattern.all() else np.flatnonzero(pattern)))
        if rest.any():
            rows = slice(None) if rest.all() else np.flatnonzero(rest)
            groups.append(self._mixed_group(rows, None if observed is None else observed[rows]))
        return groups

    def _group(self, rows: slice | np.ndarray, features: np.ndarray | None) -> Group:
        """Cells with the same features and noise."""
        cells, noise = self.whole, self.noise
        if features is not None:
            cells = CellData(self.whole.rows(rows)[:, features], self.whole.n_threads)
        elif not isinstance(rows, slice):
            cells = CellData(self.whole.x[rows], self.whole.n_threads)
        if noise is not None and len(cells) == 0:
            noise = None
        if noise is not None:
            values = noise.values if noise.is_shared else noise.values[rows[0]]
            if features is not None:
                values = values[features] if noise.is_diagonal else values[np.ix_(features, features)]
            noise = Noise(values, True, True)
        self._add_background(cells, features, noise)
        return Group(cells, rows, features, noise)

    def _mixed_group(self, rows: slice | np.ndarray, observed: np.ndarray | None) -> Group:
        """Cells that differ in their features or their noise."""
        cells, noise = self.whole, None if self.noise is None else self.noise.take(rows)
        if observed is not None:
            if observed.all():
                observed = None
            elif noise is not None:
                values = noise.values
                values = np.where(np.isinf(values), 0.0, values) if noise.is_diagonal else without_infinite(values)
                noise = Noise(values, noise.is_shared, True)
        if observed is not None:
            filled = np.where(observed, self.whole.x[rows], 0.0)
            cells = CellData(filled, self.whole.n_threads)
            self._add_background(cells, None, noise, observed)
        else:
            cells = self.whole if isinstance(rows, slice) else CellData(self.whole.x[rows], self.whole.n_threads)
            self._add_background(cells, None, noise)
        return Group(cells, rows, None, noise, observed)

    def _add_background(
        self,
        cells: CellData,
        features: np.ndarray | None,
        noise: Noise | None,
        observed: np.ndarray | None = None,
    ) -> None:
        if self.background is None:
            return
        parts = []
        for tile in cells.tiles(cells.n_features):
            x = cells.rows(tile)
            if observed is not None:
                x = np.where(observed[tile], x, np.nan)
            parts.append(self.background.log_density(x, features, None if noise is None else noise.variances(tile)))
        cells.log_background = np.concatenate(parts)

    @cached_property
    def n_measured(self) -> np.ndarray:
        """(D,) number of cells that have each feature."""
        if self._observed is None:
            return np.full(self.n_features, len(self.whole))
        return np.count_nonzero(self._observed, axis=0)

    @cached_property
    def variances(self) -> np.ndarray:
        """(D,) variance of every feature over the cells that have it."""
        tiles, n = self.whole.tiles(self.n_features), np.maximum(self.n_measured, 1)
        return sum((self._rows(tile, self._mean) ** 2).sum(axis=0) for tile in tiles) / n

    @cached_property
    def _mean(self) -> np.ndarray:
        """(D,) mean of every feature over the cells that have it."""
        tiles, n = self.whole.tiles(self.n_features), np.maximum(self.n_measured, 1)
        return sum(self._rows(tile).sum(axis=0) for tile in tiles) / n

    def _rows(self, tile: slice, centre: np.ndarray | float = 0.0) -> np.ndarray:
        """Deviations of some of the cells from ``centre``, zero where a feature is missing."""
        deviation = self.whole.rows(tile) - centre
        return deviation if self._observed is None else np.where(self._observed[tile], deviation, 0.0)

    @property
    def touches_background(self) -> bool:
        """Whether the density of the background is positive at any of the cells."""
        return any(np.any(group.cells.log_background > -np.inf) for group in self.groups)

    def measured(self, tile: slice) -> np.ndarray:
        """Some of the cells (n, D), NaN where a feature is missing."""
        x = self.whole.rows(tile)
        return x if self._observed is None else np.where(self._observed[tile], x, np.nan)

    def for_start(self, rng: np.random.Generator) -> CellData:
        """Complete cells from which a start is made: all cells, or an imputed sample of them if features are missing.

        A missing feature is taken from the cell that is nearest in the features that both have (hot-deck imputation).
        """
        if self.is_complete:
            return self.whole
        rows = np.flatnonzero(self._observed.any(axis=1))
        if len(rows) > tuning().start_cells:
            rows = np.sort(rng.choice(rows, size=tuning().start_cells, replace=False))
        scale = np.sqrt(self.variances)
        scale[scale == 0] = 1.0
        x, there = self._standardized(rows, scale), self._observed[rows]
        result = self.whole.rows(rows)
        for feature in np.flatnonzero(~there.all(axis=0)):
            donors = np.flatnonzero(self._observed[:, feature])
            donors = np.sort(rng.choice(donors, size=min(len(donors), _DONORS), replace=False))
            without = ~there[:, feature]
            nearest = _nearest(x[without], there[without], self._standardized(donors, scale), self._observed[donors])
            result[without, feature] = self.whole.x[donors[nearest], feature]
        return CellData(result, 1)

    def _standardized(self, rows: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Some of the cells as deviations from the mean, in units of ``scale``; zero where a feature is missing."""
        return np.where(self._observed[rows], (self.whole.rows(rows) - self._mean) / scale, 0.0)


def _kinds_of(values: np.ndarray) -> np.ndarray | None:
    """Label of every cell's noise, equal for equal noise; None if there are too many labels for the number of cells."""
    n = len(values)
    flat = np.ascontiguousarray(values.reshape(n, -1))
    keys = flat.view(np.dtype((np.void, flat.dtype.itemsize * flat.shape[1]))).ravel()
    few = max(1, n // tuning().cells_per_noise)
    if len(np.unique(keys[: 4 * few + 64])) > few:
        return None
    distinct, kinds = np.unique(keys, return_inverse=True)
    return kinds if len(distinct) <= few else None


def _nearest(x: np.ndarray, there: np.ndarray, donors: np.ndarray, donors_there: np.ndarray) -> np.ndarray:
    """Position of the donor that is nearest to each cell, by the mean squared difference over their common features."""
    common = there.astype(float) @ donors_there.T.astype(float)
    distances = x**2 @ donors_there.T + there @ (donors**2).T - 2.0 * x @ donors.T
    # The added 1 increases the distance of donors that share only few features with the cell.
    return np.where(common > 0, (distances + 1.0) / np.maximum(common, 1.0), np.inf).argmin(axis=1)
