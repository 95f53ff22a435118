"""Extrapolated steps for an EM that converges slowly: SQUAREM.

Varadhan & Roland 2008, Scandinavian Journal of Statistics 35.
"""

import numpy as np

from cohortgmm.errors import SingularCovarianceError
from cohortgmm.mixture.density.parameters import Parameters
from cohortgmm.mixture.em.constraints import Constraints
from cohortgmm.mixture.observations.background import Background

#: The longest step grows by this factor after a good extrapolation, and shrinks after a bad one.
_GROWTH = 4.0


class Squarem:
    """Extrapolates from three successive mixtures of EM.

    Weights are extrapolated in their logarithms, and covariances in their Cholesky factors with a logarithmic diagonal, so
    that every extrapolation is a mixture. All coordinates are in units of the components' spread, so that the units of the
    features do not matter.

    Parameters
    ----------
    model
        The mixture at which EM starts.
    constraints
        Constraints that an extrapolated mixture satisfies.
    """

    def __init__(self, model: Parameters, constraints: Constraints) -> None:
        self._constraints = constraints
        variances = np.einsum("kdd->kd", model.full_covariances)
        self._scale = np.sqrt(variances.mean(axis=0))
        self._longest = 1.0
        self._step = 0.0
        self._path = [self._coordinates(model)]

    @property
    def has_extrapolated(self) -> bool:
        """Whether an extrapolation was tried since the last iteration of EM."""
        return len(self._path) == 1

    def extrapolate(self, model: Parameters) -> Parameters | None:
        """Extrapolate the path of EM.

        Parameters
        ----------
        model
            The mixture of the last M-step.

        Returns
        -------
        Parameters or None
            None before the third mixture since the last extrapolation, or if the step would not be longer than EM's own.

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
            # No extrapolation is needed, because this step is that of plain EM. Later steps may be longer.
            self._longest = max(self._longest, _GROWTH) if length > 1.0 else self._longest
            return None
        try:
            return self._mixture(start + 2.0 * self._step * first + self._step**2 * bend, model)
        except (SingularCovarianceError, np.linalg.LinAlgError, ValueError, FloatingPointError):
            return None

    def judge(self, model: Parameters | None) -> None:
        """Record whether EM continues from the last extrapolation: ``model`` is that mixture, or None if it was bad."""
        if model is None:
            self._longest = max(1.0, self._longest / _GROWTH)
            return
        self._path = [self._coordinates(model)]
        if self._step == self._longest:
            self._longest *= _GROWTH

    def _coordinates(self, model: Parameters) -> np.ndarray:
        shares = model.weights if model.background is None else np.append(model.weights, model.background.amp)
        if model.covariance_type == "diag":
            spread = np.log(model.covariances)
        else:
            spread = np.linalg.cholesky(model.covariances) / self._scale[:, None]
            diagonal = np.arange(model.n_features)
            spread[:, diagonal, diagonal] = np.log(spread[:, diagonal, diagonal])
        with np.errstate(divide="ignore"):
            return np.concatenate([np.log(shares), (model.means / self._scale).ravel(), spread.ravel()])

    def _mixture(self, coordinates: np.ndarray, model: Parameters) -> Parameters:
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
        covariances, factors, _ = self._constraints.project(covariances, model)
        return Parameters.from_factors(weights, means, covariances, factors, background)

    def _weights(self, shares: np.ndarray, model: Parameters) -> tuple[np.ndarray, Background | None]:
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
