"""The E-step that recomputes only the responsibilities that still change (Neal & Hinton 1998).

Most cells are settled: they belong almost entirely to one component. In an unsettled cell, most components have
negligible responsibilities. After a full E-step, some iterations keep the responsibilities of settled cells and
evaluate, for the unsettled cells, only the components whose responsibilities were not negligible. The log-likelihood is
then a lower bound, which EM never lowers. The next full E-step makes it exact.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cohortgmm.mixture.density.parameters import Parameters
from cohortgmm.mixture.estep.base import Expectation
from cohortgmm.mixture.estep.moments import Moments
from cohortgmm.mixture.estep.pairs import PlainPairs
from cohortgmm.mixture.estep.quadratic import QuadraticExpectation, n_quadratic
from cohortgmm.mixture.numerics.tiles import range_slices
from cohortgmm.mixture.numerics.tuning import tuning
from cohortgmm.mixture.observations.cells import CellData

#: A cell is settled if one component has a responsibility of at least one minus this number.
_SETTLED = 1e-3

#: Responsibilities below this number are neglected until the next full E-step.
_NEGLIGIBLE = 1e-12

#: Largest number of incremental E-steps between two full E-steps.
_LONGEST_INTERVAL = 16


@dataclass(frozen=True)
class Unsettled:
    """Unsettled cells of a tile: those in which no component has almost all the responsibility.

    Attributes
    ----------
    rows
        (m,) positions of the cells in the data.
    listed
        (K, m) which components have a responsibility that is not negligible.
    """

    rows: np.ndarray
    listed: np.ndarray

    @classmethod
    def find(cls, tile: slice, resp: np.ndarray) -> "Unsettled":
        """Find the unsettled cells of a tile by its responsibilities (K, n)."""
        rows = np.flatnonzero(resp.max(axis=0) < 1.0 - _SETTLED)
        return cls(tile.start + rows, resp[:, rows] > _NEGLIGIBLE)


class TiledExpectation(Protocol):
    """An E-step over all cells and components whose responsibilities can be inspected tile by tile."""

    cells: CellData

    def by_tile(self, model: Parameters, inspect: Callable) -> Iterator[tuple[Moments, Unsettled]]: ...


class IncrementalExpectation(Expectation):
    """The E-steps of one run of EM, of which most recompute only unsettled cells.

    Parameters
    ----------
    over_all
        The E-step over all cells and components.
    """

    def __init__(self, over_all: TiledExpectation) -> None:
        super().__init__(over_all.cells)
        self._over_all = over_all
        self._interval, self._left = 1, 0
        self._settled: Moments
        self._means: np.ndarray
        self._entropy: float

    def refresh(self) -> None:
        self._left = 0

    def __call__(self, model: Parameters) -> Moments:
        if self._left > 0:
            self._left -= 1
            settled = self._settled.about(model.means - self._means)
            log_density, rounding = expected_log_density(settled, model)
            if rounding <= tuning().incremental_rounding * len(self.cells):
                settled.log_likelihood, settled.is_bound = self._entropy + log_density, True
                assert self._unsettled is not None
                settled += self._unsettled(model)
                return settled
        self._unsettled: Expectation | None = None  # frees its memory for the full E-step
        found: list[Unsettled] = []
        moments = Moments.sum(self._inspected(model, found))
        self._unsettled, self._left = self._estep_of_unsettled(found, model), 0
        if self._unsettled is not None:
            self._left, self._interval = self._interval, min(2 * self._interval, _LONGEST_INTERVAL)
            self._settled, self._means = moments - self._unsettled(model), model.means
            self._entropy = self._settled.log_likelihood - expected_log_density(self._settled, model)[0]
        return moments

    def _inspected(self, model: Parameters, found: list[Unsettled]) -> Iterator[Moments]:
        for moments, unsettled in self._over_all.by_tile(model, Unsettled.find):
            found.append(unsettled)
            yield moments

    def _estep_of_unsettled(self, found: Sequence[Unsettled], model: Parameters) -> Expectation | None:
        """E-step over the unsettled cells; None if there are none or too many."""
        rows = np.concatenate([unsettled.rows for unsettled in found])
        sizes = tuning()
        few = len(rows) <= sizes.unsettled_share * len(self.cells)
        few = few and 8 * len(rows) * self.cells.n_features <= sizes.unsettled_bytes
        if not (len(rows) and few):
            return None
        cells = CellData(self.cells.rows(rows), self.cells.n_threads)
        if model.n_components * n_quadratic(cells.n_features, "full") * len(rows) <= sizes.few_unsettled_products:
            return QuadraticExpectation(cells, "full")
        return ListedExpectation(cells, np.concatenate([part.listed for part in found], axis=1))


class ListedExpectation(Expectation):
    """The E-step that evaluates only the listed components of each cell.

    Parameters
    ----------
    cells
        The cells.
    listed
        (K, n) which components are evaluated for which cell.
    """

    def __init__(self, cells: CellData, listed: np.ndarray) -> None:
        super().__init__(cells)
        self._tiles = list(range_slices(len(cells), tuning().listed_rows))
        self._rows = {tile.start: [np.flatnonzero(component[tile]) for component in listed] for tile in self._tiles}

    def __call__(self, model: Parameters) -> Moments:
        def expect_tile(tile: slice) -> Moments:
            pairs = PlainPairs(self.cells.rows(tile), model)
            for k, rows in enumerate(self._rows[tile.start]):
                pairs.evaluate(k, rows)
            return pairs.moments()[0]

        return Moments.sum(self.cells.map(expect_tile, self._tiles))


def expected_log_density(moments: Moments, model: Parameters) -> tuple[float, float]:
    """Σ resp × log(weight × density) in nats, from moments about the means of the mixture, and its rounding error."""
    # Components without weight are left out: their log-density is −inf, and their nk is zero up to rounding.
    alive = model.weights > 0
    whitener = model.factors.whitener
    distances = (whitener @ whitener.transpose(0, 2, 1)) * moments.second
    value = moments.nk[alive] @ model.log_peaks[alive] - 0.5 * distances.sum()
    return float(value), float(np.finfo(float).eps * np.abs(distances).sum())
