"""Constraints of the M-step: the floor under the covariances, and frozen parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cohortgmm.errors import ConfigError
from cohortgmm.mixture.density.parameters import Parameters
from cohortgmm.mixture.numerics.gaussian import Factors, floor_covariances

#: Names in the argument ``frozen``, and the parameters they stand for.
_NAMES = {"amp": "weights", "mean": "means", "covar": "covariances"}


@dataclass(frozen=True, eq=False)
class Frozen:
    """Components whose parameters stay exactly as they are.

    Attributes
    ----------
    weights, means, covariances
        (K,) bool each.
    """

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    @classmethod
    def from_argument(cls, frozen: Mapping[str, Any] | None, n_components: int) -> "Frozen":
        """Check the argument ``frozen`` of a user.

        Parameters
        ----------
        frozen
            Components by kind of parameter, ``{"amp": [..], "mean": [..], "covar": [..]}``: their numbers, or
            ``"all"``; None freezes nothing.
        n_components
            Number of components K.

        Raises
        ------
        ConfigError
            If a kind of parameter is unknown or a component does not exist.
        """
        masks = {name: np.zeros(n_components, dtype=bool) for name in _NAMES.values()}
        if frozen is not None and not isinstance(frozen, Mapping):
            raise ConfigError(f"frozen must be a mapping with the keys {', '.join(_NAMES)}, got {frozen!r}")
        for kind, components in (frozen or {}).items():
            if kind not in _NAMES:
                raise ConfigError(f"frozen has the keys {', '.join(_NAMES)}, not {kind!r}")
            if isinstance(components, str) and components == "all":
                masks[_NAMES[kind]][:] = True
                continue
            masks[_NAMES[kind]][_numbers(components, kind, n_components)] = True
        return cls(**masks)

    @property
    def any(self) -> bool:
        """Whether anything is frozen."""
        return bool(self.weights.any() or self.means.any() or self.covariances.any())

    @property
    def all_components(self) -> bool:
        """Whether every mean and covariance is frozen: only weights, if anything, are fitted."""
        return bool(self.means.all() and self.covariances.all())

    @property
    def n_parameters(self) -> tuple[int, int, int]:
        """Numbers of frozen weights, means and covariances."""
        return tuple(int(mask.sum()) for mask in (self.weights, self.means, self.covariances))


def _numbers(components: Any, kind: str, n_components: int) -> np.ndarray:
    """Numbers of components that a user gave."""
    try:
        numbers = np.atleast_1d(np.asarray(components if np.size(components) else np.empty(0, dtype=int)))
    except (TypeError, ValueError):  # lists of different lengths
        numbers = np.empty(0)
    if numbers.dtype.kind not in "iu" or numbers.ndim > 1 or np.any((numbers < 0) | (numbers >= n_components)):
        raise ConfigError(
            f"frozen[{kind!r}] must be 'all' or numbers of components from 0 to {n_components - 1}, got "
            f"{' '.join(repr(components).split())}"
        )
    return numbers


@dataclass(frozen=True, eq=False)
class Constraints:
    """Constraints of the M-step.

    Attributes
    ----------
    floor, strict
        See :func:`cohortgmm.mixture.numerics.gaussian.floor_covariances`.
    frozen
        Parameters that do not change.
    """

    floor: float
    strict: bool
    frozen: Frozen

    def project(
        self, covariances: np.ndarray, model: Parameters, suspected: np.ndarray | None = None
    ) -> tuple[np.ndarray, Factors, np.ndarray]:
        """Raise covariances to the floor, and replace those of frozen components by the covariances of ``model``.

        Returns covariances, their factors, and (K,) which of them were below the floor.

        See :func:`cohortgmm.mixture.numerics.gaussian.floor_covariances`.
        """
        frozen = self.frozen.covariances
        if not frozen.any():
            return floor_covariances(covariances, self.floor, strict=self.strict, suspected=suspected)
        unit = np.ones(model.n_features) if covariances.ndim == 2 else np.eye(model.n_features)
        covariances = covariances.copy()
        covariances[frozen] = max(1.0, 2.0 * self.floor) * unit
        covariances, factors, floored = floor_covariances(
            covariances, self.floor, strict=self.strict, suspected=suspected
        )
        covariances = covariances.copy()
        covariances[frozen] = model.covariances[frozen]
        own = model.factors
        for name in ("root", "whitener", "half_log_det"):
            getattr(factors, name)[frozen] = getattr(own, name)[frozen]
        return covariances, factors, floored
