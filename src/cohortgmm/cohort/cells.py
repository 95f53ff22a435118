"""The cells of one patient (or of all) as a fit sees them, and the seeds that make every draw its own."""

import hashlib
import os
from dataclasses import dataclass

import numpy as np

from cohortgmm.archive import read_arrays
from cohortgmm.files import atomic_path

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
    """

    patient: str
    x: np.ndarray
    positions: np.ndarray
    train: np.ndarray
    owner: np.ndarray | None = None
    patients: tuple[str, ...] | None = None

    @property
    def n_train(self) -> int:
        return int(np.count_nonzero(self.train))

    def n_fit(self, refit: str) -> int:
        """Number of cells the final mixture is fitted to."""
        return len(self.x) if refit == "full" else self.n_train

    def save(self, path: str | os.PathLike) -> None:
        """Write to ``.npz``; a file that already has this content is left untouched."""
        arrays = {"patient": np.array(self.patient), "x": self.x, "positions": self.positions, "train": self.train}
        if self.owner is not None:
            arrays |= {"owner": self.owner, "patients": np.array(self.patients, dtype=str)}
        with atomic_path(path, keep_if_same=True) as temporary:
            np.savez(temporary, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "PatientCells":
        """Read what :meth:`save` wrote."""
        names = ("patient", "x", "positions", "train")
        arrays = read_arrays(path, names, "cells of a patient", optional=("owner", "patients"))
        patients = tuple(arrays["patients"].tolist()) if "patients" in arrays else None
        return cls(
            str(arrays["patient"]), arrays["x"], arrays["positions"], arrays["train"], arrays.get("owner"), patients
        )
