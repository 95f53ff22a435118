"""A Gaussian mixture: its parameters, its densities, its file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from cohortgmm.arguments import check_count, generator
from cohortgmm.arrays import check_labels, dense_array
from cohortgmm.errors import ConfigError, DataError
from cohortgmm.mixture import criteria
from cohortgmm.mixture.density import evaluate, sampling
from cohortgmm.mixture.density.checks import checked_arrays
from cohortgmm.mixture.density.parameters import Parameters
from cohortgmm.mixture.density.sampling import ObservedSample
from cohortgmm.mixture.observations.background import BACKGROUND_ARRAYS, Background
from cohortgmm.mixture.observations.completeness import NoiseAt
from cohortgmm.mixture.observations.noise import Noise
from cohortgmm.storage.npz import File, name_of, read_arrays, write_arrays


@dataclass(frozen=True, eq=False, repr=False)
class GaussianMixture(Parameters):
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

    def __post_init__(self) -> None:
        for name, array in checked_arrays(self.weights, self.means, self.covariances, self.background).items():
            object.__setattr__(self, name, array)

    def __repr__(self) -> str:
        background = "" if self.background is None else f", background={self.background.amp:.3g}"
        return (
            f"GaussianMixture(n_components={self.n_components}, n_features={self.n_features}, {self.covariance_type}"
            f"{background})"
        )

    def log_prob(self, x: np.ndarray, noise: np.ndarray | Noise | None = None) -> np.ndarray:
        """Log-density of the mixture at measured cells, convolved with their noise and marginal in missing features.

        Parameters
        ----------
        x
            (n, D) cells; NaN is a missing feature.
        noise
            Measurement noise: covariances (n, D, D) or variances (n, D), one for each cell; or a covariance (D, D) or
            variances (D,) for all cells. With n = D, a (D, D) array could be either: wrap it in ``Noise.per_cell`` or
            ``Noise.shared`` (:class:`~cohortgmm.Noise`).

        Returns
        -------
        ndarray
            (n,) nats, float64; 0 for a cell without features.
        """
        return evaluate.log_prob(self, self._check(x, noise), noise)

    def responsibilities(self, x: np.ndarray, noise: np.ndarray | Noise | None = None) -> np.ndarray:
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
        return evaluate.responsibilities(self, self._check(x, noise), noise)

    def background_probability(self, x: np.ndarray, noise: np.ndarray | Noise | None = None) -> np.ndarray:
        """(n,) posterior probability that a cell is background; zero without one. Arguments as in :meth:`log_prob`."""
        if self.background is None:
            return np.zeros(len(self._check(x)))
        return np.clip(1.0 - self.responsibilities(x, noise).sum(axis=1), 0.0, 1.0)

    def predict(self, x: np.ndarray, noise: np.ndarray | Noise | None = None) -> np.ndarray:
        """(n,) int: the component with the largest posterior probability of every cell, −1 for the background.

        Arguments as in :meth:`log_prob`.
        """
        resp = self.responsibilities(x, noise)
        if self.background is None:
            return resp.argmax(axis=1)
        return np.where(1.0 - resp.sum(axis=1) > resp.max(axis=1), -1, resp.argmax(axis=1))

    def predict_proba(self, x: np.ndarray, noise: np.ndarray | Noise | None = None) -> np.ndarray:
        """The same as :meth:`responsibilities`, under scikit-learn's name."""
        return self.responsibilities(x, noise)

    def score_samples(self, x: np.ndarray, noise: np.ndarray | Noise | None = None) -> np.ndarray:
        """The same as :meth:`log_prob`, under scikit-learn's name."""
        return self.log_prob(x, noise)

    def score(self, x: np.ndarray, noise: np.ndarray | Noise | None = None) -> float:
        """Mean log-likelihood per cell in nats; cells without any feature count as zero. Arguments as in :meth:`log_prob`.

        Raises
        ------
        DataError
            If there are no cells.
        """
        values = self.log_prob(x, noise)
        if not len(values):
            raise DataError("a score needs at least one cell")
        return float(values.mean())

    def aic(self, x: np.ndarray, noise: np.ndarray | Noise | None = None) -> float:
        """Akaike's information criterion of cells, lower is better; all parameters count. Arguments as in :meth:`log_prob`.

        See :func:`cohortgmm.mixture.criteria.aic`.
        """
        return criteria.aic(float(self.log_prob(x, noise).sum()), self._n_parameters())

    def bic(self, x: np.ndarray, noise: np.ndarray | Noise | None = None) -> float:
        """Bayesian information criterion of cells, lower is better; all parameters count. Arguments as in :meth:`log_prob`.

        See :func:`cohortgmm.mixture.criteria.bic`.
        """
        return criteria.bic(float(self.log_prob(x, noise).sum()), self._n_parameters(), len(x))

    def _n_parameters(self) -> int:
        return criteria.n_free_parameters(
            self.n_components, self.n_features, self.covariance_type, background=self.background is not None
        )

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
        return sampling.sample(self, n, rng)

    def sample_observed(
        self,
        n: int,
        rng: np.random.Generator | int | None = None,
        *,
        noise: NoiseAt | None = None,
        completeness: Callable[[np.ndarray], np.ndarray] | None = None,
        inverted: bool = False,
    ) -> ObservedSample:
        """Draw cells as they would be measured: with noise, then by selection.

        Parameters
        ----------
        n
            Number of observed cells.
        rng
            A generator, a seed, or None for fresh entropy.
        noise
            Measurement noise: a covariance (D, D) or variances (D,) for all cells; or a function (m, D) → (m, D, D) or
            (m, D) of the features before the noise; or, without completeness, :meth:`cohortgmm.Noise.per_cell` with one
            value for each cell. With n = D, wrap a covariance (D, D) in :meth:`cohortgmm.Noise.shared`.
        completeness
            Callable (m, D) → (m,) in [0, 1]: probability that a cell is observed, as a function of its measured
            features.
        inverted
            Return the unobserved cells instead: those that were drawn until n cells were observed.

        Returns
        -------
        ObservedSample
            ``x``, ``noise``, ``components`` (−1 for the background) and ``n_drawn``, the number before selection.

        Raises
        ------
        DataError
            If noise or completeness cannot be used, or no cell passes the selection.
        """
        return sampling.sample_observed(self, n, rng, noise=noise, completeness=completeness, inverted=inverted)

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
        """Make a mixture from the result of :meth:`arrays`; ``source`` names its file in the message of an error."""
        try:
            background = Background.from_arrays(arrays)
            return cls(arrays["weights"], arrays["means"], arrays["covariances"], background)
        except (ConfigError, DataError) as error:
            raise DataError(f"{source}: {error}") from None

    def _check(self, x: np.ndarray, noise: np.ndarray | Noise | None = None) -> np.ndarray:
        check_labels(noise, x, "noise")
        x = dense_array(x, "cells")
        if x.ndim != 2 or x.shape[1] != self.n_features:
            raise DataError(f"cells must have shape (n, {self.n_features}), got {x.shape}")
        return x
