"""Cells of a patient or of the whole cohort as a fit gets them, training cells, and the seeds of the fits."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cohortgmm.mixture import Noise
from cohortgmm.storage.atomic import atomic_path
from cohortgmm.storage.npz import read_arrays

#: Smallest number of training cells per component, because a covariance needs two cells.
MIN_CELLS_PER_COMPONENT = 2


def derived_seed(seed: int, patient: str, k: int = 0) -> np.random.SeedSequence:
    """Seed of a fit. It depends on the seed of the run, the patient and k only."""
    digest = hashlib.sha256(patient.encode()).digest()[:16]
    return np.random.SeedSequence([seed, int.from_bytes(digest, "little"), k])


def choose_train_cells(names: Sequence[str], train_size: float, *, seed: int, patient: str) -> np.ndarray:
    """Choose the training cells of a patient; the others are held out.

    The cells are ranked by a hash of the seed, the patient and the cell's name. The first ``round(train_size · n)`` are
    training cells, at least one; unless ``train_size`` is 1, at least one cell is held out. The choice does not depend
    on the order of the cells, and adding or removing a cell moves at most one other cell from one set to the other.

    Parameters
    ----------
    names
        n unique names of cells.
    train_size
        Share of training cells, in (0, 1].
    seed
        Seed of the run.
    patient
        Id of the patient.

    Returns
    -------
    ndarray of bool
        (n,) whether each cell is a training cell.
    """
    n = len(names)
    mask = np.ones(n, dtype=bool)
    if train_size < 1:
        n_train = min(max(1, round(train_size * n)), n - 1)
        start = hashlib.blake2b(f"{seed}:{patient}".encode(errors="surrogatepass"), digest_size=16)

        def rank(i: int) -> tuple[bytes, str]:
            digest = start.copy()
            digest.update(b"\0" + names[i].encode(errors="surrogatepass"))
            return digest.digest(), names[i]

        mask[sorted(range(n), key=rank)[n_train:]] = False
    return mask


@dataclass(frozen=True, eq=False)
class PatientCells:
    """The cells of a patient, or of the whole cohort, sorted by name; cells without names keep the user's order.

    Attributes
    ----------
    patient
        Id of the patient, or :data:`~cohortgmm.storage.names.ALL_PATIENTS`.
    x
        (n, D) cells, in the floating-point type of the source.
    train
        (n,) bool: the training cells, which the candidates are fitted to; the others are held out.
    owner
        For the cells of a whole cohort: (n,) index into ``patients``; else None.
    patients
        For the cells of a whole cohort: ids of its patients; else None.
    noise
        (n, D) variances or (n, D, D) covariances of the measurement noise; None without noise.
    feature_names
        (D,) names of the features.
    cell_names
        (n,) names of the cells as UTF-8 bytes, for messages; None for cells without names.
    """

    patient: str
    x: np.ndarray
    train: np.ndarray
    owner: np.ndarray | None = None
    patients: tuple[str, ...] | None = None
    noise: np.ndarray | None = None
    feature_names: tuple[str, ...] = ()
    cell_names: np.ndarray | None = None

    @property
    def n_train(self) -> int:
        return int(np.count_nonzero(self.train))

    def noise_of(self, rows: np.ndarray | slice = slice(None)) -> Noise | None:
        """Measurement noise of some of the cells; None if they have none.

        Raises
        ------
        DataError
            If the noise of any cell is no valid covariance.
        """
        return None if self._noise is None else self._noise.take(rows)

    @cached_property
    def _noise(self) -> Noise | None:
        """The noise of all cells, checked once."""
        if self.noise is None:
            return None
        noise, missing = Noise.per_cell(self.noise), np.isnan(self.x)
        return Noise.validated(noise, *self.x.shape, name_of=self.cell_name, missing=missing)

    @cached_property
    def has_features(self) -> np.ndarray:
        """(n,) bool: cells with at least one feature."""
        return ~np.isnan(self.measured()).all(axis=1)

    def measured(self) -> np.ndarray:
        """(n, D) cells with NaN for every missing feature, also for features whose noise has an infinite variance."""
        if self.noise is None:
            return self.x
        variances = self.noise if self.noise.ndim == 2 else np.diagonal(self.noise, axis1=1, axis2=2)
        return np.where(np.isinf(variances), np.nan, self.x)

    def name_of(self, feature: int) -> str:
        """Name of a feature in messages, or its number if features have no names."""
        return f"feature {self.feature_names[feature]!r}" if self.feature_names else f"feature {feature}"

    def cell_name(self, i: int) -> str:
        """Name of a cell in messages, or its row if cells have no names."""
        if self.cell_names is None:
            return str(i)
        return repr(self.cell_names[i].decode(errors="surrogatepass"))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to ``.npz``; a file that already has this content is left untouched."""
        arrays = {"patient": np.array(self.patient), "x": self.x, "train": self.train}
        arrays["feature_names"] = np.array(self.feature_names, dtype=str)
        if self.owner is not None:
            arrays |= {"owner": self.owner, "patients": np.array(self.patients, dtype=str)}
        if self.noise is not None:
            arrays["noise"] = self.noise
        if self.cell_names is not None:
            arrays["cell_names"] = self.cell_names
        with atomic_path(path, keep_if_same=True) as temporary:
            np.savez(temporary, **dict[str, Any](arrays))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "PatientCells":
        """Read what :meth:`save` wrote."""
        names = ("patient", "x", "train", "feature_names")
        arrays = read_arrays(path, names, "cells of a patient", optional=("owner", "patients", "noise", "cell_names"))
        return cls(
            str(arrays["patient"]),
            arrays["x"],
            arrays["train"],
            arrays.get("owner"),
            tuple(arrays["patients"].tolist()) if "patients" in arrays else None,
            arrays.get("noise"),
            tuple(arrays["feature_names"].tolist()),
            arrays.get("cell_names"),
        )


def write_positions(path: str | os.PathLike[str], positions: Mapping[str, np.ndarray]) -> None:
    """Write the rows of the cohort that the cells of every array file come from.

    The array files do not hold these rows, so that a patient's file does not change when other patients get new cells.

    Parameters
    ----------
    path
        The ``.npz`` file.
    positions
        (n,) row of every cell, by patient (:data:`~cohortgmm.storage.names.ALL_PATIENTS` where all are fitted together).
    """
    arrays = {
        "patients": np.array(list(positions), dtype=str),
        "n_cells": np.array([len(rows) for rows in positions.values()], dtype=np.int64),
        "positions": np.concatenate([np.empty(0, np.int64), *positions.values()]).astype(np.int64),
    }
    with atomic_path(path, keep_if_same=True) as temporary:
        np.savez(temporary, **dict[str, Any](arrays))


def read_positions(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read what :func:`write_positions` wrote."""
    arrays = read_arrays(path, ("patients", "n_cells", "positions"), "positions of cells")
    rows = np.split(arrays["positions"], np.cumsum(arrays["n_cells"])[:-1])
    return dict(zip(arrays["patients"].tolist(), rows, strict=True))
