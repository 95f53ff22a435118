"""Pairs of cell and component: those that an E-step has evaluated, and their moments."""

from abc import ABC, abstractmethod

import numpy as np

from cohortgmm.mixture.density.parameters import Parameters
from cohortgmm.mixture.estep.moments import Moments
from cohortgmm.mixture.numerics.posterior import responsibilities

#: Responsibilities below a rounding error change no moment.
_ROUNDING = 1e-16


class EvaluatedPairs(ABC):
    """Pairs of the cells of a tile and the components of a mixture, of which an E-step evaluates as many as it needs.

    Parameters
    ----------
    model
        The mixture.
    n
        Number of cells.

    Attributes
    ----------
    joint
        (K, n) log(weight × density) of every pair; −∞ where it was not evaluated.
    distance
        (K, n) squared Mahalanobis distance of every pair; ∞ where it was not evaluated.
    """

    def __init__(self, model: Parameters, n: int) -> None:
        self._model = model
        self._evaluated: list[tuple[int, np.ndarray, tuple[np.ndarray, ...]]] = []
        self.joint = np.full((model.n_components, n), -np.inf)
        self.distance = np.full(self.joint.shape, np.inf)

    def narrow(self, k: int, rows: np.ndarray, needed: np.ndarray) -> np.ndarray:
        """The rows whose joint log-density with component k may be as large as needed; by default all of them."""
        return rows

    def evaluate(self, k: int, rows: np.ndarray) -> None:
        """Compute the joint log-densities of component k and some of the cells."""
        if len(rows):
            self._evaluated.append((k, rows, self._evaluate(k, rows)))

    def evaluate_all(self) -> None:
        """Compute the joint log-densities of all pairs."""
        for k in range(len(self.joint)):
            self.evaluate(k, np.arange(self.joint.shape[1]))

    @abstractmethod
    def _evaluate(self, k: int, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Fill in ``joint`` and ``distance``; the arrays returned are what :meth:`_add` needs of these cells."""

    @abstractmethod
    def _add(self, moments: Moments, k: int, rows: np.ndarray, resp: np.ndarray, *arrays: np.ndarray) -> None:
        """Add the cells of the arrays, which are those of ``rows``, to the moments of component k."""

    @staticmethod
    @abstractmethod
    def _select(array: np.ndarray, used: np.ndarray) -> np.ndarray:
        """Take some of the cells from an array that :meth:`_evaluate` returned."""

    def moments(self, background: np.ndarray | None = None) -> tuple[Moments, np.ndarray]:
        """Moments of the cells, and the responsibilities (K, n), which are zero for pairs that were not evaluated.

        Parameters
        ----------
        background
            (n,) log(amplitude × density) of the background; None without one.
        """
        resp, log_likelihood = responsibilities(self.joint, background)
        moments = Moments.zeros(self._model.n_components, self._model.n_features, self._model.covariance_type)
        while self._evaluated:  # the arrays of a component are freed after they have been added
            k, rows, arrays = self._evaluated.pop()
            weights = resp[k, rows]
            used = weights > _ROUNDING
            if not used.all():
                rows, weights = rows[used], weights[used]
                arrays = tuple(self._select(array, used) for array in arrays)
            if len(rows):
                self._add(moments, k, rows, weights, *arrays)
        moments.nk[:] = resp.sum(axis=1)
        moments.log_likelihood, moments.n = log_likelihood, resp.shape[1]
        return moments, resp


class PlainPairs(EvaluatedPairs):
    """Pairs of cells without noise and components with full covariances.

    Parameters
    ----------
    x
        (n, D) cells.
    model
        The mixture.
    """

    def __init__(self, x: np.ndarray, model: Parameters) -> None:
        super().__init__(model, len(x))
        self._x = x

    def _evaluate(self, k: int, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        deviation = self._x[rows]
        deviation -= self._model.means[k]
        white = deviation @ self._model.factors.whitener[k]
        distance = np.einsum("nd,nd->n", white, white)
        self.distance[k, rows] = distance
        self.joint[k, rows] = self._model.log_peaks[k] - 0.5 * distance
        return (deviation,)

    def _add(self, moments: Moments, k: int, rows: np.ndarray, resp: np.ndarray, *arrays: np.ndarray) -> None:
        moments.add_cells(k, arrays[0], resp)

    @staticmethod
    def _select(array: np.ndarray, used: np.ndarray) -> np.ndarray:
        return array[used]
