"""The sufficient statistics that pass between the two steps of EM, and the M-step."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cohortgmm.errors import SingularCovarianceError
from cohortgmm.mixture.gaussian import floor_covariances
from cohortgmm.mixture.model import GaussianMixture

#: A component that is responsible for less than this many cells is dead: its weight is set to zero for good.
_DEAD = 1e-10


@dataclass
class Moments:
    """Expected sufficient statistics of the cells under a mixture.

    Deviations are taken from given means, those the expectation was made with, so that no digits are lost when the
    means are large against the covariances. Moments of parts of the data add up.

    Attributes
    ----------
    nk
        (K,) expected number of cells of every component.
    first
        (K, D) sum of responsibility × deviation.
    second
        (K, D, D) sum of responsibility × deviation × deviationᵀ, or its diagonal (K, D).
    log_likelihood
        Total log-likelihood of the cells in nats.
    n
        Number of cells.
    is_bound
        Whether the log-likelihood is a lower bound, as some responsibilities were not brought up to date.
    """

    nk: np.ndarray
    first: np.ndarray
    second: np.ndarray
    log_likelihood: float = 0.0
    n: int = 0
    is_bound: bool = False

    @classmethod
    def zeros(cls, n_components: int, n_features: int, covariance_type: str) -> "Moments":
        """Moments of no cells."""
        shape = (n_components, n_features)
        return cls(np.zeros(n_components), np.zeros(shape), np.zeros(shape + shape[1:] * (covariance_type == "full")))

    @classmethod
    def sum(cls, parts: Iterable["Moments"]) -> "Moments":
        """Moments of the parts together, in their order; the first of them is overwritten."""
        parts = iter(parts)
        total = next(parts)
        for part in parts:
            total += part
        return total

    def __iadd__(self, other: "Moments") -> "Moments":
        self.nk += other.nk
        self.first += other.first
        self.second += other.second
        self.log_likelihood += other.log_likelihood
        self.n += other.n
        return self

    def __sub__(self, other: "Moments") -> "Moments":
        return Moments(
            self.nk - other.nk,
            self.first - other.first,
            self.second - other.second,
            self.log_likelihood - other.log_likelihood,
            self.n - other.n,
        )

    def about(self, shift: np.ndarray) -> "Moments":
        """The same moments with deviations taken from means that are moved by ``shift`` (K, D)."""
        first = self.first - self.nk[:, None] * shift
        if self.second.ndim == 2:
            second = self.second - shift * (self.first + first)
        else:
            cross = shift[:, :, None] * (self.first + first)[:, None, :]
            second = self.second - 0.5 * (cross + cross.transpose(0, 2, 1))
        return Moments(self.nk.copy(), first, second, self.log_likelihood, self.n)

    def add_cells(self, k: int, deviation: np.ndarray, resp: np.ndarray | None = None) -> None:
        """Add first and second moments of component k about its mean.

        Parameters
        ----------
        deviation
            (n, D) cells minus the mean; overwritten.
        resp
            (n,) responsibilities; None is one for each.
        """
        if resp is None:
            self.first[k] += deviation.sum(axis=0)
        else:
            root = np.sqrt(resp)
            deviation *= root[:, None]
            self.first[k] += root @ deviation
        if self.second.ndim == 2:
            self.second[k] += np.einsum("nd,nd->d", deviation, deviation)
        else:
            self.second[k] += deviation.T @ deviation  # one array and its transpose: half the work of a product


def maximize(
    moments: Moments, means: np.ndarray, floor: float, *, strict: bool, suspected: np.ndarray | None = None
) -> tuple[GaussianMixture, np.ndarray]:
    """M-step: the mixture of the highest expected likelihood with no eigenvalue below ``floor``.

    Parameters
    ----------
    moments
        From an E-step.
    means
        (K, D) means the moments were taken about.
    floor, strict, suspected
        See :func:`cohortgmm.mixture.gaussian.floor_covariances`; ``strict`` also refuses dead components.

    Returns
    -------
    model : GaussianMixture
        The new mixture.
    floored : ndarray of bool
        (K,) components whose covariance was clamped at the floor or that died.
    """
    dead = moments.nk < _DEAD
    if strict and dead.any():
        raise SingularCovarianceError(int(np.argmax(dead)), len(dead), 0.0, floor)
    nk = np.where(dead, 1.0, moments.nk)[:, None]
    shift = moments.first / nk
    if moments.second.ndim == 2:
        covariances = moments.second / nk - shift**2
    else:
        covariances = moments.second / nk[:, :, None] - shift[:, :, None] * shift[:, None, :]
        covariances = 0.5 * (covariances + covariances.transpose(0, 2, 1))
    covariances, factors, floored = floor_covariances(covariances, floor, strict=strict, suspected=suspected)
    weights = np.where(dead, 0.0, moments.nk)
    model = GaussianMixture.from_factors(weights / weights.sum(), means + shift, covariances, factors)
    return model, floored | dead
