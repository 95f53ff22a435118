"""A Gaussian mixture: its parameters, its densities, its file."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from cohortgmm.arguments import check_count, generator
from cohortgmm.arrays import check_labels, dense_array
from cohortgmm.errors import ConfigError, DataError
from cohortgmm.mixture.density.parameters import check_background, checked_arrays
from cohortgmm.mixture.numerics.gaussian import LOG_2PI, Factors, factorize, whiten
from cohortgmm.mixture.observations.background import BACKGROUND_ARRAYS, Background
from cohortgmm.mixture.observations.noise import Noise
from cohortgmm.storage.npz import File, name_of, read_arrays, write_arrays

if TYPE_CHECKING:
    from cohortgmm.mixture.density.sampling import ObservedSample


@dataclass(frozen=True, eq=False, repr=False)
class GaussianMixture:
    """A mixture of K Gaussians in D dimensions.

    Parameters
    ----------
    weights
        (K,) mixture weights; they and the amplitude of the background sum to one.
    means
        (K, D).
    covariances
        (K, D, D) full covariances, or (K, D) variances of diagonal ones.
    background
        A uniform background beside the components, or None.

    Raises
    ------
    DataError
        If the shapes do not fit together, a value is no finite real number, a weight is negative, weights and background
        do not sum to one, or a covariance is not symmetric and positive definite.

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
    background: Background | None = None

    def __post_init__(self):
        for name, array in checked_arrays(self.weights, self.means, self.covariances, self.background).items():
            object.__setattr__(self, name, array)

    def __repr__(self) -> str:
        background = "" if self.background is None else f", background={self.background.amp:.3g}"
        return (
            f"GaussianMixture(n_components={self.n_components}, n_features={self.n_features}, {self.covariance_type}"
            f"{background})"
        )

    @classmethod
    def from_factors(
        cls,
        weights: np.ndarray,
        means: np.ndarray,
        covariances: np.ndarray,
        factors: Factors | None = None,
        background: Background | None = None,
    ) -> "GaussianMixture":
        """A mixture of parameters that are known to be good, in double precision: EM makes thousands of them.

        Their factors may be given, or are made when they are asked for.
        """
        model = object.__new__(cls)
        for name, array in (("weights", weights), ("means", means), ("covariances", covariances)):
            model.__dict__[name] = np.ascontiguousarray(array, dtype=np.float64)
        model.__dict__["background"] = background
        if factors is not None:
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
    def shares(self) -> np.ndarray:
        """(K,) weights as they are among the components: they sum to one; even, where all is background."""
        total = self.weights.sum()
        return self.weights / total if total > 0 else np.full(self.n_components, 1.0 / self.n_components)

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

    def seen(self, features: np.ndarray | None, noise: Noise | None) -> "GaussianMixture":
        """The mixture as it looks in some of the features (m,), through noise (in these) that all cells share."""
        if features is None and noise is None:
            return self
        means, covariances, background = self.means, self.covariances, self.background
        if noise is not None and not noise.is_diagonal:
            covariances = self.full_covariances
        if features is not None:
            means = means[:, features]
            covariances = (
                covariances[:, features] if covariances.ndim == 2 else covariances[:, features][:, :, features]
            )
            if background is not None:
                background = replace(background, lower=background.lower[features], upper=background.upper[features])
        if noise is not None:
            covariances = covariances + (noise.variances() if covariances.ndim == 2 else noise.covariances())
        return GaussianMixture.from_factors(self.weights, means, covariances, None, background)

    def with_background(self, background: Background) -> "GaussianMixture":
        """The components beside another background, their weights sharing what it leaves."""
        check_background(background, self.n_features)
        weights = self.shares * (1.0 - background.amp)
        return GaussianMixture.from_factors(weights, self.means, self.covariances, self.factors, background)

    def signal(self) -> "GaussianMixture":
        """The components without the background, with weights that sum to one."""
        return GaussianMixture.from_factors(self.shares, self.means, self.covariances, self.factors)

    def log_prob(self, x: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        """Log-density of cells, as seen through their noise; of missing features, the exact marginal.

        Parameters
        ----------
        x
            (n, D) cells; NaN is a missing feature.
        noise
            Measurement noise of the cells: covariances (n, D, D) or variances (n, D), or (D, D) or (D,) for all; of
            n = D cells :class:`~cohortgmm.Noise`, which says whose a square array is.

        Returns
        -------
        ndarray
            (n,) nats, float64; 0 for a cell without features.
        """
        from cohortgmm.mixture.density.evaluate import log_prob

        return log_prob(self, self._check(x, noise), noise)

    def responsibilities(self, x: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        """Posterior probability of every component for every cell.

        Parameters
        ----------
        x, noise
            As in :meth:`log_prob`.

        Returns
        -------
        ndarray
            (n, K) float64; rows sum to one, less the probability that the cell is background.
        """
        from cohortgmm.mixture.density.evaluate import responsibilities

        return responsibilities(self, self._check(x, noise), noise)

    def background_probability(self, x: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        """(n,) posterior probability that a cell is background; zero without one. Arguments as in :meth:`log_prob`."""
        if self.background is None:
            return np.zeros(len(self._check(x)))
        return np.clip(1.0 - self.responsibilities(x, noise).sum(axis=1), 0.0, 1.0)

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
            (n,) the component each cell was drawn from; −1 for the background.
        """
        n, rng = check_count("n, the number of cells,", n, 0), generator(rng, "rng")
        components = rng.choice(self.n_components, size=n, p=self.shares)
        noise = rng.standard_normal((n, self.n_features))
        x = np.empty_like(noise)
        for k in range(self.n_components):
            chosen = components == k
            root = self.factors.root[k]
            shift = noise[chosen] * root if self.covariance_type == "diag" else noise[chosen] @ root.T
            x[chosen] = self.means[k] + shift
        if self.background is not None:
            components[rng.random(n) < self.background.amp] = -1
            x[components < 0] = self.background.sample(np.count_nonzero(components < 0), rng)
        return x, components

    def sample_observed(
        self, n: int, rng: np.random.Generator | int | None = None, *, noise=None, completeness=None, inverted=False
    ) -> "ObservedSample":
        """Draw cells as they would be measured: with noise, then by selection.

        Parameters
        ----------
        n
            Number of cells that are seen.
        rng
            A generator, a seed, or None for fresh entropy.
        noise
            Measurement noise: covariance (D, D) or variances (D,) for all, or a callable (m, D) → (m, D, D) or (m, D)
            of the places before the noise; without completeness also :meth:`cohortgmm.Noise.per_cell`, one of each cell. A
            square array for n = D cells needs :meth:`cohortgmm.Noise.shared` around it.
        completeness
            Callable (m, D) → (m,) in [0, 1]: probability of being seen, of the measured cell.
        inverted
            Return the cells that were not seen until n were.

        Returns
        -------
        ObservedSample
            ``x``, ``noise``, ``components`` (−1 for the background) and ``n_drawn``, the number before selection.

        Raises
        ------
        DataError
            If noise or completeness cannot be used, or no cell passes the selection.
        """
        from cohortgmm.mixture.density.sampling import sample_observed

        return sample_observed(self, n, rng, noise=noise, completeness=completeness, inverted=inverted)

    def save(self, file: File) -> None:
        """Write the mixture to an ``.npz`` file (plain arrays, no pickle).

        Parameters
        ----------
        file
            Path, which is used as it is, whatever its suffix; or a file that is open in binary mode.

        Raises
        ------
        OutputError
            If the file cannot be written.
        """
        write_arrays(file, self.arrays())

    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters by name, as a file holds them."""
        background = {} if self.background is None else self.background.arrays()
        return {"weights": self.weights, "means": self.means, "covariances": self.covariances} | background

    @classmethod
    def load(cls, file: File) -> "GaussianMixture":
        """Read a mixture from an ``.npz`` file written by :meth:`save` or by the pipeline.

        Parameters
        ----------
        file
            Path, or a file that is open in binary mode.

        Raises
        ------
        DataError
            If the file is not there (:class:`~cohortgmm.errors.MissingFileError`) or holds something else.
        """
        names = ("weights", "means", "covariances")
        return cls.from_arrays(read_arrays(file, names, optional=BACKGROUND_ARRAYS), name_of(file))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], source: str) -> "GaussianMixture":
        """What :meth:`arrays` gave; ``source`` is where it was, for the message of an error."""
        try:
            background = Background.from_arrays(arrays)
            return cls(arrays["weights"], arrays["means"], arrays["covariances"], background)
        except (ConfigError, DataError) as error:
            raise DataError(f"{source}: {error}") from None

    def _check(self, x: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        check_labels(noise, x, "noise")
        x = dense_array(x, "cells")
        if x.ndim != 2 or x.shape[1] != self.n_features:
            raise DataError(f"cells must have shape (n, {self.n_features}), got {x.shape}")
        return x
