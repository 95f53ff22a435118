"""The expected sufficient statistics that every E-step returns and the M-step needs."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass
class Moments:
    """Expected sufficient statistics of the cells under a mixture.

    Deviations are taken from the means of the mixture that the responsibilities were computed with, so that no digits are
    lost where the means are large compared with the covariances. The moments of several sets of cells add up.

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
        Expected number of cells that selection kept out of the data; the other sums include them.
    is_bound
        Whether the log-likelihood is a lower bound, because some responsibilities are those of an earlier iteration.
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
        """Moments of cells from their deviations (K, n, D), which are overwritten, and responsibilities (K, n)."""
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
        """Sum of several moments in their order; the first of them is overwritten."""
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
        """Add cells to the first and second moments of component k.

        Parameters
        ----------
        k
            The component.
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
