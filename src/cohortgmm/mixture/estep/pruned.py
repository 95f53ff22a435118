"""The E-step that evaluates a component only for cells in which its responsibility may exceed rounding."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from cohortgmm.mixture.density.parameters import Parameters
from cohortgmm.mixture.estep.base import Expectation
from cohortgmm.mixture.estep.moments import Moments
from cohortgmm.mixture.estep.pairs import EvaluatedPairs
from cohortgmm.mixture.observations.cells import CellData

#: A component is left out of a cell if its density is proven to be less than exp(−37) times another's, which is about one
#: rounding error.
_BEYOND_ROUNDING = 37.0

#: Relative slack of the bounds for their own rounding.
_SLACK = 1e-9

#: If more than this share of the pairs of a tile mattered in the last E-step, bounds cost more than they save.
_CROWDED = 0.1

_Result = TypeVar("_Result")

#: Starts the work on a tile: its pairs, an upper bound of their joint log-densities and a lower bound of their squared
#: Mahalanobis distances, both (K, n); the second may be None where there is no cutoff.
TileBounds = Callable[[slice], tuple[EvaluatedPairs, np.ndarray, np.ndarray | None]]


class PrunedExpectation(Expectation):
    """Every component for the cells in which its responsibility may exceed rounding.

    A component is evaluated for a cell unless its density is proven to be less than exp(−37) times that of the component
    with the largest responsibility in the last E-step.

    Parameters
    ----------
    cells
        The cells.
    tiles
        The rows, in the pieces in which they are processed.
    cutoff
        Largest squared Mahalanobis distance of a cell from a component that is responsible for it; the best component of
        a cell is always kept. None for no limit: then only what rounding hides is left out.
    """

    #: Whether bounds cost about as much as evaluating all pairs; then they are used only where few pairs matter.
    bounds_are_expensive = False

    def __init__(self, cells: CellData, tiles: list[slice], cutoff: float | None = None) -> None:
        super().__init__(cells)
        self.tiles, self._cutoff = tiles, cutoff
        self._best: dict[int, np.ndarray] = {}
        self._crowded: dict[int, bool] = {}

    @abstractmethod
    def _tile_bounds(self, model: Parameters) -> TileBounds:
        """Prepare the bounds of all tiles under a mixture."""

    def _open(self, tile: slice, model: Parameters) -> EvaluatedPairs:
        """The pairs of a tile without bounds; only called where ``bounds_are_expensive``."""
        return self._tile_bounds(model)(tile)[0]

    def __call__(self, model: Parameters) -> Moments:
        return Moments.sum(moments for moments, _ in self.by_tile(model, lambda tile, resp: None))

    def by_tile(
        self, model: Parameters, inspect: Callable[[slice, np.ndarray], _Result]
    ) -> Iterator[tuple[Moments, _Result]]:
        """Moments of every tile, and the result of ``inspect`` for the tile and its responsibilities (K, n)."""
        open_tile = self._tile_bounds(model)

        def expect_tile(tile: slice) -> tuple[Moments, _Result]:
            if self.bounds_are_expensive and self._crowded.get(tile.start, True):
                pairs = self._open(tile, model)
                pairs.evaluate_all()
            else:
                pairs, bound, distance = open_tile(tile)
                self._evaluate_candidates(tile, pairs, bound, distance)
                del bound, distance  # the pairs need their memory
            if self._cutoff is not None:
                beyond = pairs.distance > self._cutoff
                beyond[pairs.joint.argmax(axis=0), np.arange(beyond.shape[1])] = False
                pairs.joint[beyond] = -np.inf
            if self.bounds_are_expensive:
                self._crowded[tile.start] = bool(np.mean(pairs.joint > _needed(pairs.joint.max(axis=0))) > _CROWDED)
            moments, resp = pairs.moments(self.cells.background_at(tile, model.background))
            self._best[tile.start] = resp.argmax(axis=0).astype(np.int32)
            return moments, inspect(tile, resp)

        return self.cells.map(expect_tile, self.tiles)

    def _evaluate_candidates(
        self, tile: slice, pairs: EvaluatedPairs, bound: np.ndarray, distance: np.ndarray | None
    ) -> None:
        """Evaluate the pairs that the bounds do not rule out."""
        best = self._best.get(tile.start)
        if best is None:
            best = bound.argmax(axis=0)
        all_rows = np.arange(bound.shape[1])
        for k in range(len(bound)):
            pairs.evaluate(k, np.flatnonzero(best == k))
        found = pairs.joint[best, all_rows]
        needed = _needed(found)
        candidates = bound > needed
        if self._cutoff is not None:  # the best component of a cell is kept even beyond the cutoff
            candidates &= (distance <= self._cutoff) | (bound > found - _SLACK * np.abs(found))
        candidates[best, all_rows] = False
        for k in range(len(bound)):
            rows = np.flatnonzero(candidates[k])
            pairs.evaluate(k, pairs.narrow(k, rows, needed[rows]))


def _needed(found: np.ndarray) -> np.ndarray:
    """Joint log-density below which a component is left out of a cell, given the joint log-density of another one."""
    return found - _BEYOND_ROUNDING - _SLACK * np.abs(found)
