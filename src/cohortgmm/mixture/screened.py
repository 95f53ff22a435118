"""The exact E-step that evaluates a component only for the cells that it could matter for."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from cohortgmm.mixture.data import CellData
from cohortgmm.mixture.expectation import Expectation
from cohortgmm.mixture.gaussian import factorize
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.pairs import Pairs
from cohortgmm.mixture.partial import PartialExpectation
from cohortgmm.mixture.quadratic import full_parameters, n_quadratic, quadratic_features, rounding
from cohortgmm.mixture.steps import Moments
from cohortgmm.mixture.tiles import range_slices

#: A component is evaluated unless its density is proven to be less than exp(-37), one rounding error, of another's.
_BEYOND_ROUNDING = 37.0

#: Bounds with a larger rounding error than this, in nats, leave out too little to be of use.
_USEFUL = 10.0
_NO_LIMIT = 1e300

#: Fewest and most dimensions of the subspace.
_DIRECTIONS = (8, 16)

#: Fewest and most values in a tile: threads spend their time waiting for the interpreter if tiles are small, and
#: single ones wait for memory if they are large.
_TILE_VALUES = (1 << 18, 7 << 17)

#: Rows of a tile that are bounded at a time.
_BOUND_ROWS = 2048

_Seen = TypeVar("_Seen")


class ScreenedExpectation(Expectation):
    """Every component for the cells that it could matter for; full covariances only.

    A few linear combinations of the features bound every density from above: the squared Mahalanobis distance in a
    subspace is never larger than that in the whole space. A component is evaluated where this bound comes within
    rounding of the density of the component that was the cell's best the last time.

    Parameters
    ----------
    cells
        The cells.
    n_components
        Number of components K.
    """

    def __init__(self, cells: CellData, n_components: int) -> None:
        super().__init__(cells)
        n, d = len(cells), cells.n_features
        fewest, most = (values // d for values in _TILE_VALUES)
        self._tiles = list(range_slices(n, max(64 * n_components, min(max(fewest, n // 6), most))))
        self._best: dict[int, np.ndarray] = {}

    def begin(self):
        return PartialExpectation(self)

    def __call__(self, model, *, exact=True):
        return Moments.sum(moments for moments, _ in self.by_tile(model, lambda tile, resp: None))

    def by_tile(
        self, model: GaussianMixture, look: Callable[[slice, np.ndarray], _Seen]
    ) -> Iterator[tuple[Moments, _Seen]]:
        """Moments of every tile, and what ``look`` returns for its responsibilities (K, n)."""
        directions = separating_directions(model)
        parameters = self._bound_parameters(model, directions)

        def expect_tile(tile: slice) -> tuple[Moments, _Seen]:
            x = self.cells.rows(tile)
            pairs = Pairs(x, model)
            bound = np.empty(pairs.joint.shape)
            for few in range_slices(len(x), _BOUND_ROWS):
                bound[:, few] = parameters @ quadratic_features((x[few] - self.cells.mean) @ directions, "full")
            best = self._best.get(tile.start)
            if best is None:
                best = bound.argmax(axis=0)
            everyone = np.arange(len(x))
            for k in range(model.n_components):
                pairs.evaluate(k, np.flatnonzero(best == k))
            candidates = bound > pairs.joint[best, everyone] - _BEYOND_ROUNDING
            candidates[best, everyone] = False
            del bound  # the pairs need its memory
            for k in range(model.n_components):
                pairs.evaluate(k, np.flatnonzero(candidates[k]))
            moments, resp = pairs.moments()
            self._best[tile.start] = resp.argmax(axis=0).astype(np.int32)
            return moments, look(tile, resp)

        return self.cells.map(expect_tile, self._tiles)

    def _bound_parameters(self, model: GaussianMixture, directions: np.ndarray) -> np.ndarray:
        """θ (K, P) of the bounds, raised by what rounding may take from them; without a limit if they are no use."""
        means = (model.means - self.cells.mean) @ directions
        try:
            whitener = factorize(directions.T @ model.covariances @ directions).whitener
        except np.linalg.LinAlgError:
            slack, parameters = np.inf, np.empty((model.n_components, n_quadratic(directions.shape[1], "full")))
        else:
            parameters = full_parameters(model.log_peaks, means, whitener @ whitener.transpose(0, 2, 1))
            slack = rounding(parameters, self.cells.extent @ np.abs(directions), "full")
        if not slack < _USEFUL:
            parameters[:], slack = 0.0, _NO_LIMIT
        parameters[:, 0] += slack
        return parameters


def separating_directions(model: GaussianMixture) -> np.ndarray:
    """(D, q) linear discriminants: directions in which the means differ most for the covariance within components."""
    n = min(max(_DIRECTIONS[0], model.n_components - 1), _DIRECTIONS[1], model.n_features)
    within = np.tensordot(model.weights, model.covariances, 1)
    whitener = factorize(within[None]).whitener[0]
    means = (model.means - model.weights @ model.means) @ whitener
    _, vectors = np.linalg.eigh(means.T @ (model.weights[:, None] * means))
    return whitener @ vectors[:, -n:]
