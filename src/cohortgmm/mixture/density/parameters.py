"""The parameters of a Gaussian mixture and what follows from them: factors, densities, marginals."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np

from cohortgmm.mixture.density.checks import check_background
from cohortgmm.mixture.numerics.gaussian import LOG_2PI, Factors, factorize, whiten
from cohortgmm.mixture.observations.background import Background
from cohortgmm.mixture.observations.noise import Noise


@dataclass(frozen=True, eq=False, repr=False)
class Parameters:
    """Weights, means and covariances of a mixture of K Gaussians in D dimensions, known to be valid.

    This is the value that EM works with. Users get and give :class:`cohortgmm.GaussianMixture`, which adds checks,
    methods for cells and the file.

    Attributes
    ----------
    weights
        (K,) mixture weights; they and the amplitude of the background sum to one.
    means
        (K, D).
    covariances
        (K, D, D) full covariances, or (K, D) variances of diagonal ones.
    background
        A uniform background beside the components, or None.
    """

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    background: Background | None = None

    @classmethod
    def from_factors(
        cls,
        weights: np.ndarray,
        means: np.ndarray,
        covariances: np.ndarray,
        factors: Factors | None = None,
        background: Background | None = None,
    ) -> Self:
        """Make a mixture without checks from valid parameters, and from the factors of its covariances if they are known.

        EM makes thousands of mixtures; factors that are not given are computed at their first use.
        """
        model = object.__new__(cls)
        for name, array in (("weights", weights), ("means", means), ("covariances", covariances)):
            model.__dict__[name] = np.ascontiguousarray(array, dtype=np.float64)
        model.__dict__["background"] = background
        if factors is not None:
            model.__dict__["factors"] = factors  # where cached_property keeps it
        return model

    @classmethod
    def from_parameters(cls, parameters: "Parameters") -> Self:
        """Make a mixture of this class from the parameters of another one, with its factors."""
        return cls.from_factors(
            parameters.weights, parameters.means, parameters.covariances, parameters.factors, parameters.background
        )

    @property
    def n_components(self) -> int:
        """Number of components K."""
        return self.means.shape[0]

    @property
    def n_features(self) -> int:
        """Number of features D."""
        return self.means.shape[1]

    @property
    def component_weights(self) -> np.ndarray:
        """(K,) weights of the components, scaled to sum to one; equal weights if the background has all the weight."""
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

    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters by name, as a file holds them."""
        background = {} if self.background is None else self.background.arrays()
        return {"weights": self.weights, "means": self.means, "covariances": self.covariances} | background

    def joint_log_prob(self, deviation: np.ndarray) -> np.ndarray:
        """log(weight × density) of every component, shape (K, n), in nats, at deviations (K, n, D) from the means."""
        white = whiten(deviation, self.factors)
        return self.log_peaks[:, None] - 0.5 * np.einsum("knd,knd->kn", white, white)

    def marginal(self, features: np.ndarray | None, noise: Noise | None) -> "Parameters":
        """The distribution of measured cells: in some features, convolved with noise that all cells share.

        Parameters
        ----------
        features
            (m,) the measured features; None for all.
        noise
            Measurement noise in these features; None for none.
        """
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
        return Parameters.from_factors(self.weights, means, covariances, None, background)

    def with_background(self, background: Background) -> Self:
        """The same components with another background; their weights are scaled to sum to one minus its amplitude."""
        check_background(background, self.n_features)
        weights = self.component_weights * (1.0 - background.amp)
        return self.from_factors(weights, self.means, self.covariances, self.factors, background)

    def without_background(self) -> Self:
        """The components alone, with weights that sum to one."""
        return self.from_factors(self.component_weights, self.means, self.covariances, self.factors)
