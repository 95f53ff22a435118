"""E-steps that evaluate a component only for the cells that it could matter for."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import numpy as np

from cohortgmm.mixture.em.mstep import Moments
from cohortgmm.mixture.estep.base import Expectation
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.cells import CellData

#: A component is evaluated unless its density is proven to be less than exp(-37), one rounding error, of another's.
_BEYOND_ROUNDING = 37.0

#: Relative slack of the bounds for their own rounding.
_SLACK = 1e-9

#: Share of the pairs of a tile that mattered the last time, from which on bounds cost more than they save.
_CROWDED = 0.1

_Seen = TypeVar("_Seen")


class EvaluatedPairs(Protocol):
    """Pairs of cell and component of a tile; ``joint`` and ``distance`` (K, n) are −∞ and ∞ where not evaluated.

    ``narrow`` leaves out those rows that a closer look shows to be below what is needed.
    """

    joint: np.ndarray
    distance: np.ndarray

    def narrow(self, k: int, rows: np.ndarray, needed: np.ndarray) -> np.ndarray: ...

    def evaluate(self, k: int, rows: np.ndarray) -> None: ...

    def moments(self, background: np.ndarray | None) -> tuple[Moments, np.ndarray]: ...


#: Opens a tile: its pairs, a bound of their joint log-densities from above and one of their squared Mahalanobis
#: distances from below, both (K, n).
Reach = Callable[[slice], tuple[EvaluatedPairs, np.ndarray, np.ndarray]]


class PairedExpectation(Expectation):
    """Every component for the cells that it could matter for.

    A component is evaluated where a bound of its density comes within rounding of the density of the component that
    was the cell's best the last time; where many mattered then, all are.

    Parameters
    ----------
    cells
        The cells.
    tiles
        The pieces they are worked through in.
    cutoff
        Largest squared Mahalanobis distance at which a component has a share in a cell; the best component of a cell
        always has. None for no limit, with which nothing that could be seen in a result is left out.
    """

    #: Whether bounds cost about as much as the evaluation of all pairs: then they are made only where few pairs matter.
    bounds_are_dear = False

    def __init__(self, cells: CellData, tiles: list[slice], cutoff: float | None = None) -> None:
        super().__init__(cells)
        self.tiles, self._cutoff = tiles, cutoff
        self._best: dict[int, np.ndarray] = {}
        self._crowded: dict[int, bool] = {}

    @abstractmethod
    def _reach(self, model: GaussianMixture) -> Reach: ...

    def _open(self, tile: slice, model: GaussianMixture) -> EvaluatedPairs:
        """Pairs of a tile without bounds; asked for only where ``bounds_are_dear``."""
        return self._reach(model)(tile)[0]

    def __call__(self, model, *, exact=True):
        return Moments.sum(moments for moments, _ in self.by_tile(model, lambda tile, resp: None))

    def by_tile(
        self, model: GaussianMixture, look: Callable[[slice, np.ndarray], _Seen]
    ) -> Iterator[tuple[Moments, _Seen]]:
        """Moments of every tile, and what ``look`` returns for its responsibilities (K, n)."""
        open_tile = self._reach(model)

        def expect_tile(tile: slice) -> tuple[Moments, _Seen]:
            if self.bounds_are_dear and self._crowded.get(tile.start, True):
                pairs = self._open(tile, model)
                for k in range(model.n_components):
                    pairs.evaluate(k, np.arange(pairs.joint.shape[1]))
            else:
                pairs, bound, distance = open_tile(tile)
                self._evaluate_candidates(tile, pairs, bound, distance)
                del bound, distance  # the pairs need their memory
            if self._cutoff is not None:
                beyond = pairs.distance > self._cutoff
                beyond[pairs.joint.argmax(axis=0), np.arange(beyond.shape[1])] = False
                pairs.joint[beyond] = -np.inf
            if self.bounds_are_dear:
                self._crowded[tile.start] = bool(np.mean(pairs.joint > _needed(pairs.joint.max(axis=0))) > _CROWDED)
            moments, resp = pairs.moments(self.cells.background_at(tile, model.background))
            self._best[tile.start] = resp.argmax(axis=0).astype(np.int32)
            return moments, look(tile, resp)

        return self.cells.map(expect_tile, self.tiles)

    def _evaluate_candidates(
        self, tile: slice, pairs: EvaluatedPairs, bound: np.ndarray, distance: np.ndarray | None
    ) -> None:
        """Evaluate what the bounds do not rule out."""
        best = self._best.get(tile.start)
        if best is None:
            best = bound.argmax(axis=0)
        everyone = np.arange(bound.shape[1])
        for k in range(len(bound)):
            pairs.evaluate(k, np.flatnonzero(best == k))
        found = pairs.joint[best, everyone]
        needed = _needed(found)
        candidates = bound > needed
        if self._cutoff is not None:
            candidates &= (distance <= self._cutoff) | (bound > found - _SLACK * np.abs(found))
        candidates[best, everyone] = False
        for k in range(len(bound)):
            rows = np.flatnonzero(candidates[k])
            pairs.evaluate(k, pairs.narrow(k, rows, needed[rows]))


def _needed(found: np.ndarray) -> np.ndarray:
    """Joint log-density below which a component is of no account to a cell of which one was found."""
    return found - _BEYOND_ROUNDING - _SLACK * np.abs(found)
