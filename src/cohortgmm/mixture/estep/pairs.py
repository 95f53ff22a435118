"""Densities and moments of chosen pairs of cell and component, for full covariances."""

import numpy as np

from cohortgmm.mixture.em.mstep import Moments
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.numerics.posterior import responsibilities

#: Responsibilities below a rounding error add nothing to a moment.
_ROUNDING = 1e-16


class Pairs:
    """Pairs of cell and component that have been evaluated.

    Parameters
    ----------
    x
        (n, D) cells.
    model
        The mixture.
    """

    def __init__(self, x: np.ndarray, model: GaussianMixture) -> None:
        self._x, self._model = x, model
        self._deviations: list[tuple[int, np.ndarray, np.ndarray]] = []
        self.joint = np.full((model.n_components, len(x)), -np.inf)
        self.distance = np.full(self.joint.shape, np.inf)

    def narrow(self, k: int, rows: np.ndarray, needed: np.ndarray) -> np.ndarray:
        """All of the rows: an evaluation costs no more than a closer look."""
        return rows

    def evaluate(self, k: int, rows: np.ndarray) -> None:
        """Evaluate component k for some of the cells."""
        if not len(rows):
            return
        deviation = self._x[rows]
        deviation -= self._model.means[k]
        white = deviation @ self._model.factors.whitener[k]
        distance = np.einsum("nd,nd->n", white, white)
        self.distance[k, rows] = distance
        self.joint[k, rows] = self._model.log_peaks[k] - 0.5 * distance
        self._deviations.append((k, rows, deviation))

    def moments(self, background: np.ndarray | None = None) -> tuple[Moments, np.ndarray]:
        """Moments of the cells, and the responsibilities (K, n), zero for what was not evaluated."""
        resp, log_likelihood = responsibilities(self.joint, background)
        moments = Moments.zeros(*self._model.means.shape, "full")
        while self._deviations:  # each is freed when it has been added
            k, rows, deviation = self._deviations.pop()
            weights = resp[k, rows]
            used = weights > _ROUNDING
            if not used.all():
                weights, deviation = weights[used], deviation[used]
            moments.add_cells(k, deviation, weights)
        moments.nk[:] = resp.sum(axis=1)
        moments.log_likelihood, moments.n = log_likelihood, len(self._x)
        return moments, resp
