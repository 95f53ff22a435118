"""The exact E-step that evaluates a component only for the cells that it could matter for."""

import numpy as np

from cohortgmm.mixture.estep.incremental import PartialExpectation
from cohortgmm.mixture.estep.pairs import Pairs
from cohortgmm.mixture.estep.pruned import PairedExpectation, Reach
from cohortgmm.mixture.estep.quadratic import NOTHING, full_parameters, n_quadratic, quadratic_features, rounding
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.numerics.gaussian import factorize
from cohortgmm.mixture.numerics.tiles import range_slices
from cohortgmm.mixture.observations.cells import CellData

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


class ScreenedExpectation(PairedExpectation):
    """Every component for the cells that it could matter for; full covariances only.

    A few linear combinations of the features bound every density from above: the squared Mahalanobis distance in a
    subspace is never larger than that in the whole space.

    Parameters
    ----------
    cells
        The cells.
    n_components
        Number of components K.
    cutoff
        See :class:`~cohortgmm.mixture.estep.pruned.PairedExpectation`.
    """

    def __init__(self, cells: CellData, n_components: int, cutoff: float | None = None) -> None:
        n, d = len(cells), cells.n_features
        fewest, most = (values // d for values in _TILE_VALUES)
        tiles = range_slices(n, max(64 * n_components, min(max(fewest, n // 6), most)))
        super().__init__(cells, list(tiles), cutoff)

    def begin(self, model):
        # Settled cells are judged by components alone, and by all of them.
        return self if self.cells.log_background is not None or self._cutoff is not None else PartialExpectation(self)

    def _reach(self, model: GaussianMixture) -> Reach:
        directions = separating_directions(model)
        parameters = self._bound_parameters(model, directions)
        tops = np.maximum(model.log_peaks, NOTHING)[:, None]

        def open_tile(tile: slice):
            x = self.cells.rows(tile)
            bound = np.empty((model.n_components, len(x)))
            for few in range_slices(len(x), _BOUND_ROWS):
                bound[:, few] = parameters @ quadratic_features((x[few] - self.cells.mean) @ directions, "full")
            return Pairs(x, model), bound, None if self._cutoff is None else 2.0 * (tops - bound)

        return open_tile

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
    shares = model.shares  # the weights may all be zero beside a background
    within = np.tensordot(shares, model.covariances, 1)
    whitener = factorize(within[None]).whitener[0]
    means = (model.means - shares @ model.means) @ whitener
    _, vectors = np.linalg.eigh(means.T @ (shares[:, None] * means))
    return whitener @ vectors[:, -n:]
