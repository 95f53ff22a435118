"""A fitted mixture and its file."""

import os
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from cohortgmm.archive import read_arrays
from cohortgmm.mixture.model import GaussianMixture


@dataclass(frozen=True, eq=False, repr=False)
class MixtureFit:
    """A fitted mixture and how it was reached.

    Attributes
    ----------
    model
        The mixture.
    log_likelihood
        Mean log-likelihood of the fitted cells under ``model``, in nats per cell; with a completeness function, that
        of cells that were seen, log(p / Z) with the share Z of all cells that is seen.
    n_iter
        Number of EM iterations (M-steps) made from the start that was kept.
    converged
        Whether the last iteration gained less than ``tol``.
    history
        (n_iter + 1,) mean log-likelihood per cell of the start and after every iteration; of the iterations that left
        settled cells alone a lower bound, of the last one always exact.
    floored
        (K,) components whose covariance sits at the floor in ``model``: too few distinct cells for their features.
    n_unobserved
        Expected number of cells beside the fitted ones that were never seen; 0 without a completeness function. Of a
        patient's final mixture, beside all of its cells, fitted or held out.
    completeness
        Share of all cells that is seen.
    n_empty
        Number of cells without any feature, which took no part; counted like ``n_unobserved``.
    patient_weights
        Of a mixture that patients share whose cells were corrected: (P, K) weights of every patient, whose sum falls
        short of one by its background. None otherwise.
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

    def save(self, file: str | os.PathLike | BinaryIO) -> None:
        """Write to an ``.npz`` file, which :meth:`GaussianMixture.load` reads too."""
        shared = {} if self.patient_weights is None else {"patient_weights": self.patient_weights}
        np.savez(
            file,
            **self.model.arrays(),
            **shared,
            n_iter=self.n_iter,
            converged=self.converged,
            history=self.history,
            floored=self.floored,
            n_unobserved=self.n_unobserved,
            completeness=self.completeness,
            n_empty=self.n_empty,
        )

    @classmethod
    def load(cls, file: str | os.PathLike) -> "MixtureFit":
        """Read what :meth:`save` wrote.

        Raises
        ------
        DataError
            If the file holds something else.
        """
        model = GaussianMixture.load(file)
        names = ("n_iter", "converged", "history", "floored", "n_unobserved", "completeness", "n_empty")
        arrays = read_arrays(file, names, content="fit", optional=("patient_weights",))
        history = arrays["history"]
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
            arrays.get("patient_weights"),
        )
