"""Larger steps for an EM that creeps: SQUAREM (Varadhan & Roland 2008, Scandinavian Journal of Statistics 35)."""

import numpy as np

from cohortgmm.errors import SingularCovarianceError
from cohortgmm.mixture.em.constraints import Constraints
from cohortgmm.mixture.model import GaussianMixture

#: The longest step grows by this factor when it was good, and shrinks when it was not.
_GROWTH = 4.0


class Squarem:
    """Extrapolates from three mixtures that follow each other in EM.

    Weights are extrapolated in their logarithms, covariances in their Cholesky factors with a logarithmic diagonal, so
    that every extrapolation is a mixture, and all in units of the components, so that those of the features do not
    matter.

    Parameters
    ----------
    model
        Where EM starts.
    constraints
        What an extrapolated mixture must keep to.
    """

    def __init__(self, model: GaussianMixture, constraints: Constraints) -> None:
        self._constraints = constraints
        variances = np.einsum("kdd->kd", model.full_covariances)
        self._scale = np.sqrt(variances.mean(axis=0))
        self._longest = 1.0
        self._step = 0.0
        self._path = [self._coordinates(model)]

    @property
    def has_leapt(self) -> bool:
        """Whether an extrapolation was tried since the last iteration of EM."""
        return len(self._path) == 1

    def extrapolate(self, model: GaussianMixture) -> GaussianMixture | None:
        """The mixture that EM's next iterations seem to lead to; None before the third, or if there is none.

        ``model`` is what EM has just reached.
        """
        self._path.append(self._coordinates(model))
        if len(self._path) < 3:
            return None
        start, middle, end = self._path
        self._path = [end]
        with np.errstate(invalid="ignore"):  # weights of zero
            first, second = middle - start, end - middle
            bend = second - first
        first, bend = (np.where(np.isfinite(step), step, 0.0) for step in (first, bend))
        size = np.linalg.norm(bend)
        length = np.linalg.norm(first) / size if size > 0 else 1.0
        self._step = min(length, self._longest)
        if not self._step > 1.0:
            # The step of plain EM; from here on a longer one may be tried.
            self._longest = max(self._longest, _GROWTH) if length > 1.0 else self._longest
            return None
        try:
            return self._mixture(start + 2.0 * self._step * first + self._step**2 * bend, model)
        except (SingularCovarianceError, np.linalg.LinAlgError, ValueError, FloatingPointError):
            return None

    def judge(self, model: GaussianMixture | None) -> None:
        """Learn whether the last extrapolation was good: EM goes on from it (``model``), or from where it was (None)."""
        if model is None:
            self._longest = max(1.0, self._longest / _GROWTH)
            return
        self._path = [self._coordinates(model)]
        if self._step == self._longest:
            self._longest *= _GROWTH

    def _coordinates(self, model: GaussianMixture) -> np.ndarray:
        shares = model.weights if model.background is None else np.append(model.weights, model.background.amp)
        if model.covariance_type == "diag":
            spread = np.log(model.covariances)
        else:
            spread = np.linalg.cholesky(model.covariances) / self._scale[:, None]
            diagonal = np.arange(model.n_features)
            spread[:, diagonal, diagonal] = np.log(spread[:, diagonal, diagonal])
        with np.errstate(divide="ignore"):
            return np.concatenate([np.log(shares), (model.means / self._scale).ravel(), spread.ravel()])

    def _mixture(self, coordinates: np.ndarray, model: GaussianMixture) -> GaussianMixture:
        k, d = model.means.shape
        n_shares = k + (model.background is not None)
        shares, means, spread = np.split(coordinates, [n_shares, n_shares + k * d])
        frozen = self._constraints.frozen
        weights, background = self._weights(np.exp(shares - np.max(shares)), model)
        means = np.where(frozen.means[:, None], model.means, means.reshape(k, d) * self._scale)
        if model.covariance_type == "diag":
            covariances = np.exp(spread.reshape(k, d))
        else:
            root = spread.reshape(k, d, d)
            diagonal = np.arange(d)
            root[:, diagonal, diagonal] = np.exp(root[:, diagonal, diagonal])
            root *= self._scale[:, None]
            covariances = root @ root.transpose(0, 2, 1)
        if not (np.isfinite(weights).all() and np.isfinite(means).all()):
            raise FloatingPointError("the extrapolation leaves the range of numbers")
        covariances, factors, _ = self._constraints.admit(covariances, model)
        return GaussianMixture.from_factors(weights, means, covariances, factors, background)

    def _weights(self, shares: np.ndarray, model: GaussianMixture):
        frozen, background, rest = self._constraints.frozen.weights, model.background, 1.0
        if frozen.all():
            return model.weights, background
        if frozen.any():
            rest -= float(model.weights[frozen].sum())
        if background is not None:
            if background.adjust_amp:
                free = shares[-1] + shares[:-1][~frozen].sum()
                background = background.with_amp(rest * shares[-1] / free)
            rest -= background.amp
            shares = shares[:-1]
        shares = np.where(frozen, 0.0, shares)
        if not shares.sum() > 0:
            raise FloatingPointError("the extrapolation leaves the components no weight")
        return np.where(frozen, model.weights, max(rest, 0.0) * shares / shares.sum()), background
