"""A fitted mixture and its file."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cohortgmm.display import format_value
from cohortgmm.errors import ConfigError, DataError
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import BACKGROUND_ARRAYS
from cohortgmm.storage.npz import File, name_of, read_arrays, write_arrays

#: What a file of a fit holds besides the mixture and the weights of patients.
_ARRAYS = ("n_iter", "converged", "history", "floored", "n_unobserved", "completeness", "n_empty")


@dataclass(frozen=True, eq=False, repr=False)
class MixtureFit:
    """A fitted mixture and how it was reached.

    Attributes
    ----------
    model
        The mixture.
    log_likelihood
        Mean log-likelihood of the fitted cells under ``model``, in nats per cell; with a completeness function, that
        of observed cells, log(p / Z) with the share Z of all cells that is observed.
    n_iter
        Number of EM iterations (M-steps) made from the start that was kept.
    converged
        Whether the last iteration gained less than ``tol``.
    history
        (n_iter + 1,) mean log-likelihood per cell of the start and after every iteration. It is a lower bound in
        iterations that did not recompute the responsibilities of settled cells, and always exact in the last one.
    floored
        (K,) components whose covariance is at the floor in ``model``: they have too few distinct cells for the features.
    n_unobserved
        Expected number of unobserved cells in addition to the fitted ones; 0 without a completeness function. For a
        patient's final mixture, the number in addition to all of its cells, fitted or held out.
    completeness
        Share of all cells that is observed.
    n_empty
        Number of cells without any feature, which were left out; counted like ``n_unobserved``.
    patient_weights
        (P, K) weights of every patient, for a mixture that patients share and incomplete data; they sum to one less the
        patient's background. None otherwise.
    """

    model: GaussianMixture
    log_likelihood: float
    n_iter: int
    converged: bool
    history: np.ndarray
    floored: np.ndarray
    n_unobserved: float = 0.0
    completeness: float = 1.0
    n_empty: int = 0
    patient_weights: np.ndarray | None = None

    def __repr__(self) -> str:
        state = "converged" if self.converged else "not converged"
        return f"MixtureFit({self.model!r}, log_likelihood={self.log_likelihood:.6g}, n_iter={self.n_iter}, {state})"

    def save(self, file: File) -> None:
        """Write to an ``.npz`` file, which :meth:`GaussianMixture.load` reads too; arguments and errors as there."""
        write_arrays(file, self.arrays())

    def arrays(self) -> dict[str, np.ndarray]:
        """The mixture's parameters and what else a file holds, by name."""
        shared = {} if self.patient_weights is None else {"patient_weights": self.patient_weights}
        return {**self.model.arrays(), **shared, **{name: np.asarray(getattr(self, name)) for name in _ARRAYS}}

    @classmethod
    def load(cls, file: File) -> "MixtureFit":
        """Read what :meth:`save` wrote.

        Raises
        ------
        DataError
            If the file is not there (:class:`~cohortgmm.errors.MissingFileError`) or holds something else.
        """
        optional = (*BACKGROUND_ARRAYS, *_ARRAYS, "patient_weights")
        arrays, source = read_arrays(file, ("weights", "means", "covariances"), optional=optional), name_of(file)
        missing = [name for name in _ARRAYS if name not in arrays]
        if missing:
            raise DataError(f"{source} holds no fit: {', '.join(sorted(missing))} missing")
        model = GaussianMixture.from_arrays(arrays, source)
        n_axes = dict.fromkeys(_ARRAYS, 0) | {"history": 1, "floored": 1}
        for name, expected in n_axes.items():
            array = arrays[name]
            if array.ndim != expected or array.size == 0 or array.dtype.kind not in "biuf":
                raise DataError(f"{source} holds no fit: {name} is {array.dtype} of shape {array.shape}")
            if not np.isfinite(array).all():
                raise DataError(f"{source} holds no fit: {name} is not finite")
        history, weights = arrays["history"], arrays.get("patient_weights")
        if weights is not None and (weights.shape[1:] != (model.n_components,) or weights.dtype.kind not in "biuf"):
            raise DataError(f"{source} holds no fit: patient_weights is {weights.dtype} of shape {weights.shape}")
        if len(arrays["floored"]) != model.n_components:
            raise DataError(
                f"{source} holds no fit: floored has {len(arrays['floored'])} values for {model.n_components} components"
            )
        return cls(
            model,
            float(history[-1]),
            int(arrays["n_iter"]),
            bool(arrays["converged"]),
            history,
            arrays["floored"],
            float(arrays["n_unobserved"]),
            float(arrays["completeness"]),
            int(arrays["n_empty"]),
            weights,
        )


def as_mixture(value: Any, name: str, hint: str = "") -> GaussianMixture:
    """The mixture that a user gave as a :class:`GaussianMixture` or as a :class:`MixtureFit`.

    Raises
    ------
    ConfigError
        If the value is anything else. The message contains ``hint``, which names other values that are accepted.
    """
    if isinstance(value, GaussianMixture):
        return value
    if isinstance(value, MixtureFit):
        return value.model
    way = ""
    if isinstance(value, str | os.PathLike):
        way = ": GaussianMixture.load(path) reads one"
    elif all(hasattr(value, attribute) for attribute in ("weights_", "means_", "covariances_")):
        way = ": make one, GaussianMixture(fitted.weights_, fitted.means_, fitted.covariances_)"
    elif isinstance(value, Mapping):
        way = ": name one of its mixtures"
    raise ConfigError(f"{name} must be a cohortgmm.GaussianMixture{hint}, got {format_value(value)}{way}")
