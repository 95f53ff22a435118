"""The exact E-step that bounds densities in a subspace and evaluates only the components that can matter."""

import numpy as np

from cohortgmm.mixture.density.parameters import Parameters
from cohortgmm.mixture.estep.base import Expectation
from cohortgmm.mixture.estep.incremental import IncrementalExpectation
from cohortgmm.mixture.estep.pairs import EvaluatedPairs, PlainPairs
from cohortgmm.mixture.estep.pruned import PrunedExpectation, TileBounds
from cohortgmm.mixture.estep.quadratic import LOG_ZERO, full_parameters, n_quadratic, quadratic_features, rounding
from cohortgmm.mixture.numerics.gaussian import factorize
from cohortgmm.mixture.numerics.tiles import range_slices
from cohortgmm.mixture.numerics.tuning import tuning
from cohortgmm.mixture.observations.cells import CellData

#: Bounds with a larger rounding error than this, in nats, leave out too few pairs to be useful.
_USEFUL = 10.0
_NO_LIMIT = 1e300

#: Fewest and most dimensions of the subspace.
_DIRECTIONS = (8, 16)

#: Rows of a tile whose bounds are computed at a time.
_BOUND_ROWS = 2048


class ScreenedExpectation(PrunedExpectation):
    """Evaluates each component only for the cells in which its responsibility may exceed rounding errors.

    All covariances are full.

    A few linear combinations of the features bound every density from above, since the squared Mahalanobis distance in a
    subspace is never larger than that in the whole space.

    Parameters
    ----------
    cells
        The cells.
    n_components
        Number of components K.
    cutoff
        See :class:`~cohortgmm.mixture.estep.pruned.PrunedExpectation`.
    """

    def __init__(self, cells: CellData, n_components: int, cutoff: float | None = None) -> None:
        n, d = len(cells), cells.n_features
        fewest, most = (values // d for values in tuning().screened_values)
        tiles = range_slices(n, max(64 * n_components, min(max(fewest, n // 6), most)))
        super().__init__(cells, list(tiles), cutoff)

    def begin(self, model: Parameters) -> Expectation:
        # The incremental E-step knows neither a background nor components that are left out by a cutoff.
        if self.cells.log_background is not None or self._cutoff is not None:
            return self
        return IncrementalExpectation(self)

    def _tile_bounds(self, model: Parameters) -> TileBounds:
        directions = separating_directions(model)
        parameters = self._bound_parameters(model, directions)
        tops = np.maximum(model.log_peaks, LOG_ZERO)[:, None]

        def open_tile(tile: slice) -> tuple[EvaluatedPairs, np.ndarray, np.ndarray | None]:
            x = self.cells.rows(tile)
            bound = np.empty((model.n_components, len(x)))
            for few in range_slices(len(x), _BOUND_ROWS):
                bound[:, few] = parameters @ quadratic_features((x[few] - self.cells.mean) @ directions, "full")
            return PlainPairs(x, model), bound, None if self._cutoff is None else 2.0 * (tops - bound)

        return open_tile

    def _bound_parameters(self, model: Parameters, directions: np.ndarray) -> np.ndarray:
        """θ (K, P) of the bounds, raised by their rounding error; bounds without any limit if that error is too large."""
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


def separating_directions(model: Parameters) -> np.ndarray:
    """(D, q) linear discriminants: directions in which means differ most, relative to covariances within components."""
    n = min(max(_DIRECTIONS[0], model.n_components - 1), _DIRECTIONS[1], model.n_features)
    shares = model.component_weights  # weights may all be zero beside a background
    within = np.tensordot(shares, model.covariances, 1)
    whitener = factorize(within[None]).whitener[0]
    means = (model.means - shares @ model.means) @ whitener
    _, vectors = np.linalg.eigh(means.T @ (shares[:, None] * means))
    return whitener @ vectors[:, -n:]
