"""E-steps of which most do not look at every cell.

Most cells belong to one of the components beyond doubt, and most components have no share in a cell that does not.
After an E-step over everything, some iterations leave the responsibilities of settled cells as they are and evaluate
for the others only the components that had a share. The log-likelihood is then a lower bound, and EM on it never falls
(Neal & Hinton 1998); the next E-step over everything makes it exact.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cohortgmm.mixture.em.mstep import Moments
from cohortgmm.mixture.estep.base import Expectation, QuadraticExpectation
from cohortgmm.mixture.estep.pairs import Pairs
from cohortgmm.mixture.estep.quadratic import n_quadratic
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.numerics.tiles import range_slices
from cohortgmm.mixture.observations.cells import CellData

#: A cell is settled when all but this share of it belongs to one component.
_SETTLED = 1e-3

#: Responsibilities below this are negligible until the next look at all components.
_NEGLIGIBLE = 1e-12

#: Most partial E-steps between two exact ones.
_LONGEST_INTERVAL = 16

#: Partial steps are not made if more than this share of the cells is unsettled, or if these take more bytes than this.
_LARGEST_SHARE = 0.6
_LARGEST_BYTES = 1 << 27

#: Largest rounding error of the bound, in nats per cell; beyond, as with nearly collinear features, every step is exact.
_ROUNDING = 1e-9

#: Up to this many products (K P m for m cells with P quadratic features) all components are evaluated for all
#: unsettled cells: it takes fewer operations of numpy, if more of the processor.
_FEW_PRODUCTS = 10_000_000


@dataclass(frozen=True)
class Unsettled:
    """Cells of a tile that more than one component has a share in.

    Attributes
    ----------
    rows
        (m,) their positions in the data.
    listed
        (K, m) which components have a share that is not negligible.
    """

    rows: np.ndarray
    listed: np.ndarray

    @classmethod
    def find(cls, tile: slice, resp: np.ndarray) -> "Unsettled":
        """Look through the responsibilities (K, n) of a tile."""
        rows = np.flatnonzero(resp.max(axis=0) < 1.0 - _SETTLED)
        return cls(tile.start + rows, resp[:, rows] > _NEGLIGIBLE)


class TiledExpectation(Protocol):
    """An E-step over all cells and components that lets its responsibilities be looked at."""

    cells: CellData

    def by_tile(self, model: GaussianMixture, look: Callable) -> Iterator[tuple[Moments, Unsettled]]: ...


class PartialExpectation(Expectation):
    """E-steps of one run of EM.

    Parameters
    ----------
    everything
        The E-step over all cells and components.
    """

    def __init__(self, everything: TiledExpectation) -> None:
        super().__init__(everything.cells)
        self._everything = everything
        self._interval, self._left = 1, 0

    def __call__(self, model, *, exact=True):
        if not exact and self._left > 0:
            self._left -= 1
            settled = self._settled.about(model.means - self._means)
            log_density, rounding = expected_log_density(settled, model)
            if rounding <= _ROUNDING * len(self.cells):
                settled.log_likelihood, settled.is_bound = self._entropy + log_density, True
                settled += self._unsettled(model)
                return settled
        self._unsettled = None  # its memory is needed now
        found: list[Unsettled] = []
        moments = Moments.sum(self._looked_at(model, found))
        self._unsettled, self._left = self._bring_together(found, model), 0
        if self._unsettled is not None:
            self._left, self._interval = self._interval, min(2 * self._interval, _LONGEST_INTERVAL)
            self._settled, self._means = moments - self._unsettled(model), model.means
            self._entropy = self._settled.log_likelihood - expected_log_density(self._settled, model)[0]
        return moments

    def _looked_at(self, model: GaussianMixture, found: list[Unsettled]) -> Iterator[Moments]:
        for moments, unsettled in self._everything.by_tile(model, Unsettled.find):
            found.append(unsettled)
            yield moments

    def _bring_together(self, found: Sequence[Unsettled], model: GaussianMixture) -> Expectation | None:
        """E-step over the unsettled cells; None if there are none or too many."""
        rows = np.concatenate([unsettled.rows for unsettled in found])
        few = len(rows) <= _LARGEST_SHARE * len(self.cells) and 8 * len(rows) * self.cells.n_features <= _LARGEST_BYTES
        if not (len(rows) and few):
            return None
        cells = CellData(self.cells.rows(rows), self.cells.n_threads)
        if model.n_components * n_quadratic(cells.n_features, "full") * len(rows) <= _FEW_PRODUCTS:
            return QuadraticExpectation(cells, "full")
        return ListedExpectation(cells, np.concatenate([part.listed for part in found], axis=1))


class ListedExpectation(Expectation):
    """Listed components for each cell.

    Parameters
    ----------
    cells
        The cells.
    listed
        (K, n) which components are evaluated for which cell.
    """

    def __init__(self, cells: CellData, listed: np.ndarray) -> None:
        super().__init__(cells)
        self._tiles = list(range_slices(len(cells), 8192))
        self._rows = {tile.start: [np.flatnonzero(component[tile]) for component in listed] for tile in self._tiles}

    def __call__(self, model, *, exact=True):
        def expect_tile(tile: slice) -> Moments:
            pairs = Pairs(self.cells.rows(tile), model)
            for k, rows in enumerate(self._rows[tile.start]):
                pairs.evaluate(k, rows)
            return pairs.moments()[0]

        return Moments.sum(self.cells.map(expect_tile, self._tiles))


def expected_log_density(moments: Moments, model: GaussianMixture) -> tuple[float, float]:
    """Σ resp × log(weight × density) in nats, from moments about the means of the mixture, and its rounding error."""
    # A component without weight has no share of any cell, but for the rounding of differences.
    alive = model.weights > 0
    whitener = model.factors.whitener
    distances = (whitener @ whitener.transpose(0, 2, 1)) * moments.second
    value = moments.nk[alive] @ model.log_peaks[alive] - 0.5 * distances.sum()
    return float(value), float(np.finfo(float).eps * np.abs(distances).sum())
