"""A Gaussian mixture: its parameters, its densities, its file."""

import os
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

import numpy as np

from cohortgmm.archive import read_arrays
from cohortgmm.errors import DataError
from cohortgmm.mixture.gaussian import LOG_2PI, Factors, factorize, whiten
from cohortgmm.mixture.tiles import tile_slices


@dataclass(frozen=True, eq=False, repr=False)
class GaussianMixture:
    """A mixture of K Gaussians in D dimensions.

    Parameters
    ----------
    weights
        (K,) mixture weights, summing to one.
    means
        (K, D).
    covariances
        (K, D, D) full covariances, or (K, D) variances of diagonal ones.

    Raises
    ------
    DataError
        If the shapes do not fit together, a value is not finite or a weight is negative.

    Examples
    --------
    >>> import numpy as np
    >>> model = GaussianMixture(np.array([1.0]), np.zeros((1, 2)), np.eye(2)[None])
    >>> model.log_prob(np.zeros((1, 2))).round(4)
    array([-1.8379])
    """

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def __post_init__(self):
        for name in ("weights", "means", "covariances"):
            value = np.ascontiguousarray(getattr(self, name), dtype=np.float64)
            if not np.isfinite(value).all():
                raise DataError(f"{name} of the mixture are not all finite")
            object.__setattr__(self, name, value)
        k, d = self.means.shape if self.means.ndim == 2 else (0, 0)
        if self.means.ndim != 2 or self.weights.shape != (k,) or self.covariances.shape not in ((k, d, d), (k, d)):
            raise DataError(
                "a mixture needs weights (K,), means (K, D) and covariances (K, D, D) or (K, D), "
                f"got {self.weights.shape}, {self.means.shape} and {self.covariances.shape}"
            )
        if np.any(self.weights < 0):
            raise DataError("weights of the mixture must not be negative")

    def __repr__(self) -> str:
        return (
            f"GaussianMixture(n_components={self.n_components}, n_features={self.n_features}, {self.covariance_type})"
        )

    @classmethod
    def from_factors(
        cls, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray, factors: Factors
    ) -> "GaussianMixture":
        """A mixture whose covariances have been factored already."""
        model = cls(weights, means, covariances)
        model.__dict__["factors"] = factors  # where cached_property keeps it
        return model

    @property
    def n_components(self) -> int:
        """Number of components K."""
        return self.means.shape[0]

    @property
    def n_features(self) -> int:
        """Number of features D."""
        return self.means.shape[1]

    @property
    def covariance_type(self) -> str:
        """``"full"`` or ``"diag"``."""
        return "diag" if self.covariances.ndim == 2 else "full"

    @cached_property
    def factors(self) -> Factors:
        """Square roots of the covariances and of their inverses."""
        return factorize(self.covariances)

    @cached_property
    def log_peaks(self) -> np.ndarray:
        """(K,) log(weight × density) of every component at its own mean, in nats; −inf for a weight of zero."""
        with np.errstate(divide="ignore"):
            return np.log(self.weights) - self.factors.half_log_det - 0.5 * self.n_features * LOG_2PI

    @property
    def full_covariances(self) -> np.ndarray:
        """(K, D, D) covariances, whatever the type."""
        if self.covariance_type == "full":
            return self.covariances
        return self.covariances[:, :, None] * np.eye(self.n_features)

    @property
    def condition_numbers(self) -> np.ndarray:
        """(K,) ratio of the largest to the smallest eigenvalue of every covariance."""
        values = self.covariances if self.covariance_type == "diag" else np.linalg.eigvalsh(self.covariances)
        return values.max(axis=1) / np.maximum(values.min(axis=1), np.finfo(float).tiny)

    def joint_log_prob(self, deviation: np.ndarray) -> np.ndarray:
        """log(weight × density) of every component, shape (K, n), in nats, at deviations (K, n, D) from the means."""
        white = whiten(deviation, self.factors)
        return self.log_peaks[:, None] - 0.5 * np.einsum("knd,knd->kn", white, white)

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Log-density of the mixture.

        Parameters
        ----------
        x
            (n, D) cells.

        Returns
        -------
        ndarray
            (n,) nats, float64.
        """
        x = self._check(x)
        result = np.empty(len(x))
        for rows in tile_slices(len(x), self.n_components * self.n_features):
            result[rows] = np.logaddexp.reduce(self._joint(x[rows]), axis=0)
        return result

    def responsibilities(self, x: np.ndarray) -> np.ndarray:
        """Posterior probability of every component for every cell.

        Parameters
        ----------
        x
            (n, D) cells.

        Returns
        -------
        ndarray
            (n, K) float64; rows sum to one.
        """
        x = self._check(x)
        result = np.empty((len(x), self.n_components))
        for rows in tile_slices(len(x), self.n_components * self.n_features):
            joint = self._joint(x[rows])
            result[rows] = np.exp(joint - np.logaddexp.reduce(joint, axis=0)).T
        return result

    def sample(self, n: int, rng: np.random.Generator | int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Draw cells.

        Parameters
        ----------
        n
            How many.
        rng
            A generator, a seed, or None for fresh entropy.

        Returns
        -------
        x : ndarray
            (n, D), in random order of components.
        components : ndarray of int
            (n,) the component each cell was drawn from.
        """
        rng = np.random.default_rng(rng)
        components = rng.choice(self.n_components, size=n, p=self.weights / self.weights.sum())
        noise = rng.standard_normal((n, self.n_features))
        x = np.empty_like(noise)
        for k in range(self.n_components):
            chosen = components == k
            root = self.factors.root[k]
            shift = noise[chosen] * root if self.covariance_type == "diag" else noise[chosen] @ root.T
            x[chosen] = self.means[k] + shift
        return x, components

    def save(self, file: str | os.PathLike | BinaryIO) -> None:
        """Write the mixture to an ``.npz`` file (plain arrays, no pickle)."""
        np.savez(file, **self.arrays())

    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters by name, as a file holds them."""
        return {"weights": self.weights, "means": self.means, "covariances": self.covariances}

    @classmethod
    def load(cls, file: str | os.PathLike) -> "GaussianMixture":
        """Read a mixture from an ``.npz`` file written by :meth:`save` or by the pipeline.

        Raises
        ------
        DataError
            If the file holds something else.
        """
        return cls(**read_arrays(file, ("weights", "means", "covariances")))

    def _joint(self, x: np.ndarray) -> np.ndarray:
        return self.joint_log_prob(np.asarray(x, dtype=np.float64) - self.means[:, None, :])

    def _check(self, x: np.ndarray) -> np.ndarray:
        x = np.asarray(x)
        if x.ndim != 2 or x.shape[1] != self.n_features:
            raise DataError(f"cells must have shape (n, {self.n_features}), got {x.shape}")
        return x
