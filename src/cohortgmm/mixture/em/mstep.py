"""The sufficient statistics that pass between the two steps of EM, and the M-step."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cohortgmm.errors import SingularCovarianceError
from cohortgmm.mixture.em.constraints import Constraints, Frozen
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background

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
    n_unobserved
        Expected number of cells that were never seen, which the other sums include.
    is_bound
        Whether the log-likelihood is a lower bound, as some responsibilities were not brought up to date.
    """

    nk: np.ndarray
    first: np.ndarray
    second: np.ndarray
    log_likelihood: float = 0.0
    n: int = 0
    n_unobserved: float = 0.0
    is_bound: bool = False

    @classmethod
    def zeros(cls, n_components: int, n_features: int, covariance_type: str) -> "Moments":
        """Moments of no cells."""
        shape = (n_components, n_features)
        return cls(np.zeros(n_components), np.zeros(shape), np.zeros(shape + shape[1:] * (covariance_type == "full")))

    @classmethod
    def weighted(
        cls, deviation: np.ndarray, resp: np.ndarray, covariance_type: str, log_likelihood: float = 0.0, n: int = 0
    ) -> "Moments":
        """Moments of cells by their deviations (K, n, D), which are overwritten, and responsibilities (K, n)."""
        root = np.sqrt(resp)
        deviation *= root[:, :, None]
        first = (root[:, None, :] @ deviation)[:, 0]
        if covariance_type == "diag":
            second = np.einsum("knd,knd->kd", deviation, deviation)
        else:
            second = deviation.transpose(0, 2, 1) @ deviation
        return cls(resp.sum(axis=1), first, second, log_likelihood, n)

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
        self.n_unobserved += other.n_unobserved
        self.is_bound |= other.is_bound
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
    moments: Moments, model: GaussianMixture, constraints: Constraints, *, suspected: np.ndarray | None = None
) -> tuple[GaussianMixture, np.ndarray]:
    """M-step: the mixture of the highest expected likelihood within the constraints.

    Parameters
    ----------
    moments
        From an E-step.
    model
        The mixture the moments were taken with.
    constraints
        What it must keep to; ``strict`` also refuses dead components.
    suspected
        See :func:`cohortgmm.mixture.numerics.gaussian.floor_covariances`.

    Returns
    -------
    model : GaussianMixture
        The new mixture.
    floored : ndarray of bool
        (K,) components whose covariance was clamped at the floor or that died.
    """
    frozen = constraints.frozen
    dead = moments.nk < _DEAD
    refused = dead & ~frozen.covariances
    if constraints.strict and refused.any():
        raise SingularCovarianceError(int(np.argmax(refused)), len(dead), 0.0, constraints.floor)
    nk = np.where(dead, 1.0, moments.nk)[:, None]
    shift = np.where(frozen.means[:, None], 0.0, moments.first / nk)
    if moments.second.ndim == 2:
        covariances = moments.second / nk - shift**2
    else:
        covariances = moments.second / nk[:, :, None] - shift[:, :, None] * shift[:, None, :]
        covariances = 0.5 * (covariances + covariances.transpose(0, 2, 1))
    weights, background = _shares(moments, model, frozen, dead)
    means = np.where(frozen.means[:, None], model.means, model.means + shift)
    covariances, factors, floored = constraints.admit(covariances, model, suspected)
    return GaussianMixture.from_factors(weights, means, covariances, factors, background), floored | dead


def _shares(
    moments: Moments, model: GaussianMixture, frozen: Frozen, dead: np.ndarray
) -> tuple[np.ndarray, Background | None]:
    """Weights of the components, and the background with its amplitude: in proportion to their cells."""
    background, rest = model.background, 1.0
    nk = np.where(dead | frozen.weights, 0.0, moments.nk)
    if frozen.weights.any():
        rest = max(0.0, 1.0 - float(model.weights[frozen.weights].sum()))
    if background is not None:
        # None stays none, to the last bit.
        if background.adjust_amp and background.amp > 0 and not frozen.weights.all():
            n_background = max(0.0, moments.n + moments.n_unobserved - float(moments.nk.sum()))
            background = background.with_amp(rest * n_background / max(n_background + nk.sum(), _DEAD))
        rest = max(0.0, rest - background.amp)
    if nk.sum() < _DEAD:  # nobody claims the rest: as before
        nk = np.where(frozen.weights, 0.0, model.weights)
    if nk.sum() == 0:
        return model.weights, model.background
    return np.where(frozen.weights, model.weights, rest * nk / nk.sum()), background
