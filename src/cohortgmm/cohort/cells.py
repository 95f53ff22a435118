"""The cells of one patient (or of all) as a fit sees them, and the seeds that make every draw its own."""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cohortgmm.archive import read_arrays
from cohortgmm.files import atomic_path
from cohortgmm.mixture.noise import Noise, is_one_for_all

#: A covariance needs two cells.
MIN_CELLS_PER_COMPONENT = 2


def derived_seed(seed: int, patient: str, k: int = 0) -> np.random.SeedSequence:
    """Seed of one fit (or, with k = 0, of the patient's split): a function of these three and of nothing else."""
    digest = hashlib.sha256(patient.encode()).digest()[:16]
    return np.random.SeedSequence([seed, int.from_bytes(digest, "little"), k])


def draw_train_mask(n: int, train_size: float, seed: np.random.SeedSequence) -> np.ndarray:
    """Draw which of n cells are fitted; the others are held out.

    ``round(train_size · n)`` cells, at least one, and at least one held out unless ``train_size`` is 1.
    """
    mask = np.ones(n, dtype=bool)
    if train_size < 1:
        n_train = min(max(1, round(train_size * n)), n - 1)
        mask[np.random.default_rng(seed).permutation(n)[n_train:]] = False
    return mask


@dataclass(frozen=True, eq=False)
class PatientCells:
    """The cells of one patient.

    Attributes
    ----------
    patient
        Id.
    x
        (n, D) in the type of the source.
    positions
        (n,) int64 row of every cell in the cohort.
    train
        (n,) bool: fitted during the selection of k; the rest is held out.
    owner
        For the cells of a whole cohort: (n,) index into ``patients``; else None.
    patients
        For the cells of a whole cohort: ids of its patients; else None.
    noise
        (n, D) variances or (n, D, D) covariances of the measurement noise; None without.
    feature_names
        (D,) names of the features.
    """

    patient: str
    x: np.ndarray
    positions: np.ndarray
    train: np.ndarray
    owner: np.ndarray | None = None
    patients: tuple[str, ...] | None = None
    noise: np.ndarray | None = None
    feature_names: tuple[str, ...] = ()

    @property
    def n_train(self) -> int:
        return int(np.count_nonzero(self.train))

    def noise_of(self, rows: np.ndarray | slice = slice(None)) -> Noise | None:
        """The noise of some of the cells; None without."""
        if self.noise is None:
            return None
        if is_one_for_all(self.noise):
            return Noise.read(self.noise[0], len(self.x), self.x.shape[1])
        values = self.noise[rows]
        missing = np.isnan(self.x[rows])
        return Noise.read(values, len(values), self.x.shape[1], per_cell=True, missing=missing)

    @cached_property
    def has_features(self) -> np.ndarray:
        """(n,) bool: cells that have any feature at all."""
        return ~np.isnan(self.measured()).all(axis=1)

    def measured(self) -> np.ndarray:
        """(n, D) cells, NaN where a feature is missing, as it is with an infinite variance."""
        if self.noise is None:
            return self.x
        variances = self.noise if self.noise.ndim == 2 else np.diagonal(self.noise, axis1=1, axis2=2)
        return np.where(np.isinf(variances), np.nan, self.x)

    def name_of(self, feature: int) -> str:
        """A feature in an error: its name, where there are names."""
        return f"feature {self.feature_names[feature]!r}" if self.feature_names else f"feature {feature}"

    def n_fit(self, refit: str) -> int:
        """Number of cells the final mixture is fitted to."""
        return len(self.x) if refit == "full" else self.n_train

    def save(self, path: str | os.PathLike) -> None:
        """Write to ``.npz``; a file that already has this content is left untouched."""
        arrays = {"patient": np.array(self.patient), "x": self.x, "positions": self.positions, "train": self.train}
        arrays["feature_names"] = np.array(self.feature_names, dtype=str)
        if self.owner is not None:
            arrays |= {"owner": self.owner, "patients": np.array(self.patients, dtype=str)}
        if self.noise is not None:
            arrays["noise"] = self.noise
        with atomic_path(path, keep_if_same=True) as temporary:
            np.savez(temporary, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "PatientCells":
        """Read what :meth:`save` wrote."""
        names = ("patient", "x", "positions", "train", "feature_names")
        arrays = read_arrays(path, names, "cells of a patient", optional=("owner", "patients", "noise"))
        return cls(
            str(arrays["patient"]),
            arrays["x"],
            arrays["positions"],
            arrays["train"],
            arrays.get("owner"),
            tuple(arrays["patients"].tolist()) if "patients" in arrays else None,
            arrays.get("noise"),
            tuple(arrays["feature_names"].tolist()),
        )
