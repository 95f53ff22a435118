"""The E-step by definition: every component for every cell, by whitening. The others are compared with this one."""

from cohortgmm.mixture.density.parameters import Parameters
from cohortgmm.mixture.estep.base import Expectation
from cohortgmm.mixture.estep.moments import Moments
from cohortgmm.mixture.numerics.posterior import responsibilities


class DenseExpectation(Expectation):
    """Every component for every cell, by whitening; the fastest way for small data."""

    def __call__(self, model: Parameters) -> Moments:
        def expect_tile(tile: slice) -> Moments:
            deviation = self.cells.rows(tile) - model.means[:, None, :]
            background = self.cells.background_at(tile, model.background)
            resp, log_likelihood = responsibilities(model.joint_log_prob(deviation), background)
            return Moments.weighted(deviation, resp, model.covariance_type, log_likelihood, resp.shape[1])

        return Moments.sum(self.cells.map(expect_tile, self.cells.tiles(model.means.size)))
