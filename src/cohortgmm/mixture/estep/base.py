"""The E-step: expected moments of the cells under a mixture, by whichever way is fastest for their shape.

Three ways return the same moments. Dense: every component is evaluated for every cell, by whitening; the reference,
and the fastest for small data. Quadratic: the same as two matrix products (see :mod:`quadratic`); for few features and
diagonal covariances. Screened: components are evaluated where they could matter (see :mod:`screened`); for many.
On top of it, settled cells are left alone for
some iterations (see :mod:`partial`).
"""

from abc import ABC, abstractmethod

import numpy as np

from cohortgmm.mixture.em.mstep import Moments
from cohortgmm.mixture.estep.quadratic import (
    moments_about,
    n_quadratic,
    natural_parameters,
    quadratic_features,
    rounding,
)
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.numerics.posterior import responsibilities
from cohortgmm.mixture.numerics.tiles import range_slices
from cohortgmm.mixture.observations.cells import CellData

#: Values in a tile of quadratic features.
_QUADRATIC_VALUES = 1 << 18

#: Quadratic features are kept between the iterations if they take no more bytes than this.
_KEPT_BYTES = 1 << 26

#: Largest bound of the rounding error, in nats, with which the quadratic features are used; the error itself is some
#: hundred times smaller.
_ROUNDING = 2e-9


class Expectation(ABC):
    """An E-step: called with a mixture, it returns the moments of the cells about its means.

    Parameters
    ----------
    cells
        The cells.
    """

    def __init__(self, cells: CellData) -> None:
        self.cells = cells

    def begin(self, model: GaussianMixture) -> "Expectation":
        """The E-step for one run of EM from this mixture, which may remember what the run has seen."""
        return self

    def covers(self, model: GaussianMixture) -> bool:
        """Whether the moments of this mixture would be right, or the run should begin again from here."""
        return True

    def is_settled(self, model: GaussianMixture) -> bool:
        """Whether a run may end with this mixture, or should begin again from here."""
        return True

    @abstractmethod
    def __call__(self, model: GaussianMixture, *, exact: bool = True) -> Moments:
        """Moments of all cells.

        With ``exact=False`` their log-likelihood may be a lower bound, which never falls from one iteration of the
        run to the next; see :attr:`Moments.is_bound`.
        """


class DenseExpectation(Expectation):
    """Every component for every cell, by whitening."""

    def __call__(self, model, *, exact=True):
        def expect_tile(tile: slice) -> Moments:
            deviation = self.cells.rows(tile) - model.means[:, None, :]
            background = self.cells.background_at(tile, model.background)
            resp, log_likelihood = responsibilities(model.joint_log_prob(deviation), background)
            return Moments.weighted(deviation, resp, model.covariance_type, log_likelihood, resp.shape[1])

        return Moments.sum(self.cells.map(expect_tile, self.cells.tiles(model.means.size)))


class QuadraticExpectation(Expectation):
    """Every component for every cell, through quadratic features; by whitening where they would lose digits."""

    def __init__(self, cells: CellData, covariance_type: str) -> None:
        super().__init__(cells)
        n, p = len(cells), n_quadratic(cells.n_features, covariance_type)
        self._tiles = list(range_slices(n, max(256, _QUADRATIC_VALUES // p)))
        self._kept: dict[int, np.ndarray] | None = {} if 8 * n * p <= _KEPT_BYTES else None

    def __call__(self, model, *, exact=True):
        origin, kind = self.cells.mean, model.covariance_type
        parameters = natural_parameters(model, origin)
        # Not "if larger": NaN from overflow must not pass.
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
