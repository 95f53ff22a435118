"""The result of a unit of fitting: of a patient or, with shared components, of all patients together."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cohortgmm.cohort.tables import Row
from cohortgmm.mixture import MixtureFit
from cohortgmm.storage.npz import read_arrays


@dataclass(frozen=True, eq=False)
class PatientResult:
    """The result of one unit of fitting.

    Attributes
    ----------
    name
        Id of the patient, or :data:`~cohortgmm.storage.names.ALL_PATIENTS`.
    source
        The final mixture, or the path of its file.
    n_cells
        Number of cells.
    n_fit
        Number of cells that the final mixture was fitted to.
    scores
        Scores of the candidates, see :data:`~cohortgmm.cohort.tables.SCORE_COLUMNS`.
    """

    name: str
    source: MixtureFit | str | os.PathLike[str]
    n_cells: int
    n_fit: int
    scores: Sequence[Row] = ()

    @property
    def fit(self) -> MixtureFit:
        """The final mixture; its file is read at every access, so that the memory need not hold all mixtures."""
        return self.source if isinstance(self.source, MixtureFit) else MixtureFit.load(self.source)


def n_fit_cells(train: np.ndarray, refit: str) -> int:
    """Number of cells that a final mixture is fitted to.

    Parameters
    ----------
    train
        (n,) bool: the training cells.
    refit
        As in the configuration.
    """
    return len(train) if refit == "full" else int(np.count_nonzero(train))


def read_results(
    cells: Sequence[str | os.PathLike[str]],
    models: Sequence[str | os.PathLike[str]],
    refit: str,
    scores: Mapping[str, Sequence[Row]] | None = None,
) -> list[PatientResult]:
    """The results of the pipeline.

    Parameters
    ----------
    cells, models
        Array file and final mixture of every unit, in the same order.
    refit
        As in the configuration.
    scores
        Scores of the candidates by unit; None to leave them out.
    """
    results = []
    for path, model in zip(cells, models, strict=True):
        arrays: dict[str, Any] = read_arrays(path, ("patient", "train"), "cells of a patient")
        name, train = str(arrays["patient"]), arrays["train"]
        rows = () if scores is None else scores[name]
        results.append(PatientResult(name, model, len(train), n_fit_cells(train, refit), rows))
    return results
