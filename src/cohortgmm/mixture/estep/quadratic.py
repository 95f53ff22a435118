"""The E-step through quadratic features: the Gaussian as an exponential family, linear in squares and products.

With φ(x) = (1, x, products of features) the joint log-density of all components for all cells is one matrix product
θ φ, and the sufficient statistics of the M-step are another one, resp φᵀ. This takes half the operations of whitening and
no temporary arrays of size K × n × D. Squares of large values cancel, though: :func:`rounding` bounds the error.
"""

from functools import cache

import numpy as np

from cohortgmm.mixture.density.parameters import Parameters
from cohortgmm.mixture.estep.base import Expectation
from cohortgmm.mixture.estep.dense import DenseExpectation
from cohortgmm.mixture.estep.moments import Moments
from cohortgmm.mixture.numerics.posterior import responsibilities
from cohortgmm.mixture.numerics.tiles import range_slices
from cohortgmm.mixture.numerics.tuning import tuning
from cohortgmm.mixture.observations.cells import CellData

#: Replaces the logarithm of zero: −inf times zero, which a matrix product may compute, is not a number.
LOG_ZERO = -1e300

#: Largest bound of the rounding error, in nats, with which the quadratic features are used; the error itself is about a
#: hundred times smaller.
_ROUNDING = 2e-9


def n_quadratic(n_features: int, covariance_type: str) -> int:
    """Number P of quadratic features: 1 + D + D (D + 1) / 2, or 1 + 2 D for diagonal covariances."""
    squares = n_features if covariance_type == "diag" else n_features * (n_features + 1) // 2
    return 1 + n_features + squares


def quadratic_features(deviation: np.ndarray, covariance_type: str) -> np.ndarray:
    """φ (P, n) of cells (n, D) given as deviations from an origin."""
    n, d = deviation.shape
    phi = np.empty((n_quadratic(d, covariance_type), n))
    phi[0] = 1.0
    linear = phi[1 : d + 1]
    linear[:] = deviation.T
    if covariance_type == "diag":
        np.square(linear, out=phi[d + 1 :])
        return phi
    stop = d + 1
    for i in range(d):
        start, stop = stop, stop + d - i
        np.multiply(linear[i], linear[i:], out=phi[start:stop])
    return phi


def natural_parameters(model: Parameters, origin: np.ndarray) -> np.ndarray:
    """θ (K, P) with θ φ(x − origin) = log(weight × density) of every component, in nats."""
    whitener = model.factors.whitener
    means = model.means - origin
    if model.covariance_type == "diag":
        precisions = whitener**2
        linear, squares = precisions * means, -0.5 * precisions
    else:
        precisions = whitener @ whitener.transpose(0, 2, 1)
        return full_parameters(model.log_peaks, means, precisions)
    constant = np.maximum(model.log_peaks, LOG_ZERO) - 0.5 * np.einsum("kd,kd->k", means, linear)
    return np.concatenate([constant[:, None], linear, squares], axis=1)


def full_parameters(log_peaks: np.ndarray, means: np.ndarray, precisions: np.ndarray) -> np.ndarray:
    """θ (K, P) of Gaussians with full precisions (K, D, D), from their log-densities at the mean."""
    rows, columns, _ = _packing(means.shape[1])
    linear = (precisions @ means[:, :, None])[:, :, 0]
    constant = np.maximum(log_peaks, LOG_ZERO) - 0.5 * np.einsum("kd,kd->k", means, linear)
    squares = precisions[:, rows, columns] * np.where(rows == columns, -0.5, -1.0)
    return np.concatenate([constant[:, None], linear, squares], axis=1)


def moments_about(
    means: np.ndarray, statistics: np.ndarray, covariance_type: str, log_likelihood: float, n: int
) -> Moments:
    """Moments about means (K, D) from statistics resp φᵀ (K, P); means and cells are relative to the same origin."""
    d = means.shape[1]
    nk, total, squares = statistics[:, 0], statistics[:, 1 : d + 1], statistics[:, d + 1 :]
    first = total - nk[:, None] * means
    if covariance_type == "diag":
        second = squares - means * (total + first)
    else:
        second = squares[:, _packing(d)[2]]
        cross = means[:, :, None] * first[:, None, :]
        second -= cross + cross.transpose(0, 2, 1) + nk[:, None, None] * means[:, :, None] * means[:, None, :]
    return Moments(nk, first, second, log_likelihood, n)


def rounding(parameters: np.ndarray, extent: np.ndarray, covariance_type: str) -> float:
    """Bound of the rounding error of θ φ in nats, for cells within ``extent`` (D,) of the origin.

    A product of P terms is off by no more than P roundings of the sum of their magnitudes (Higham 2002, section 3.1).
    """
    largest = quadratic_features(extent[None], covariance_type)[1:, 0]
    unit = (len(largest) + 2) * np.finfo(float).eps
    return float(unit * (np.abs(parameters[:, 1:]) @ largest).max())


@cache
def _packing(n_features: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns of the products in φ, and for every entry of a (D, D) matrix its place among them."""
    rows, columns = np.triu_indices(n_features)
    place = np.empty((n_features, n_features), dtype=np.intp)
    place[rows, columns] = place[columns, rows] = np.arange(len(rows))
    return rows, columns, place


class QuadraticExpectation(Expectation):
    """Evaluates every component for every cell by quadratic features, or by whitening if these would lose digits."""

    def __init__(self, cells: CellData, covariance_type: str) -> None:
        super().__init__(cells)
        n, p = len(cells), n_quadratic(cells.n_features, covariance_type)
        self._tiles = list(range_slices(n, max(256, tuning().quadratic_values // p)))
        self._kept: dict[int, np.ndarray] | None = {} if 8 * n * p <= tuning().quadratic_bytes else None

    def __call__(self, model: Parameters) -> Moments:
        origin, kind = self.cells.mean, model.covariance_type
        parameters = natural_parameters(model, origin)
        # The condition is "not smaller" and not "larger", so that it also holds for a NaN from overflow.
        if not rounding(parameters, self.cells.extent, kind) <= _ROUNDING:
            return DenseExpectation(self.cells)(model)

        def expect_tile(tile: slice) -> tuple[np.ndarray, float]:
            phi = self._features(tile, kind)
            resp, log_likelihood = responsibilities(parameters @ phi, self.cells.background_at(tile, model.background))
            return resp @ phi.T, log_likelihood

        statistics, log_likelihood = 0.0, 0.0
        for part, value in self.cells.map(expect_tile, self._tiles):
            statistics = statistics + part
            log_likelihood += value
        return moments_about(model.means - origin, statistics, kind, log_likelihood, len(self.cells))

    def _features(self, tile: slice, covariance_type: str) -> np.ndarray:
        phi = None if self._kept is None else self._kept.get(tile.start)
        if phi is None:
            phi = quadratic_features(self.cells.rows(tile) - self.cells.mean, covariance_type)
            if self._kept is not None:
                self._kept[tile.start] = phi
        return phi
