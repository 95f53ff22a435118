"""Splitting a cohort by patient: from one matrix of cells to one small array file per patient."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cohortgmm.cohort.cells import MIN_CELLS_PER_COMPONENT, PatientCells, choose_train_cells, write_positions
from cohortgmm.cohort.filter_notes import read_summary
from cohortgmm.cohort.h5ad import open_h5ad, unknown_name
from cohortgmm.cohort.patients import read_patients
from cohortgmm.cohort.reading import Embedding, read_embedding, read_noise
from cohortgmm.cohort.tables import PATIENT_COLUMNS, Row, read_sheet, write_table
from cohortgmm.errors import DataError
from cohortgmm.storage.names import ALL_PATIENTS, COHORT, escape_id

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Split:
    """The cells of every patient, and the training cells among them.

    Attributes
    ----------
    rows
        One row per patient in order of their ids (:data:`PATIENT_COLUMNS`); ``status`` is "ok" or "dropped".
    positions
        For every patient that is kept: rows of the matrix with the patient's cells, in the order of their names.
    train
        For every patient that is kept: (n,) bool, which of these cells are training cells.
    """

    rows: list[Row]
    positions: dict[str, np.ndarray]
    train: dict[str, np.ndarray]

    @property
    def patients(self) -> list[str]:
        """Ids of the patients that are kept."""
        return list(self.positions)

    @property
    def rows_used(self) -> np.ndarray:
        """Rows of the matrix with the cells of all patients that are kept, patient by patient."""
        return np.concatenate(list(self.positions.values()))

    def cells_of(self, patient: str, source: Embedding) -> PatientCells:
        """The cells of one patient."""
        positions = self.positions[patient]
        return source.cells(patient, positions, self.train[patient])

    def cohort_cells(self, source: Embedding) -> PatientCells:
        """The cells of all patients that are kept, together; the training cells are those of every patient."""
        train = np.concatenate(list(self.train.values()))
        owner = np.repeat(np.arange(len(self.positions)), [len(rows) for rows in self.positions.values()])
        return source.cells(ALL_PATIENTS, self.rows_used, train, owner, tuple(self.positions))

    def unit_positions(self, component_sharing: str) -> dict[str, np.ndarray]:
        """Rows of the matrix with the cells of every unit of fitting, in their order, by name of the unit."""
        return {ALL_PATIENTS: self.rows_used} if component_sharing == "global" else self.positions

    def units(self, source: Embedding, component_sharing: str) -> Iterator[PatientCells]:
        """The units of fitting: every patient or, with shared components, the whole cohort."""
        if component_sharing == "global":
            yield self.cohort_cells(source)
        else:
            for patient in self.positions:
                yield self.cells_of(patient, source)


def split_patients(
    ids: np.ndarray,
    *,
    names: np.ndarray | None = None,
    train_size: float,
    seed: int,
    smallest_k: int = 1,
    min_cells: int = 1,
    on_small_patient: str = "error",
    labels: Mapping[str, str] | None = None,
    wanted: Sequence[str] | None = None,
    empty: np.ndarray | None = None,
    without_cells: Iterable[str] = (),
) -> Split:
    """Sort the cells by patient and name, and choose the training cells.

    The order of a patient's cells and the choice depend on the patient's cells only, not on the order of the rows or on
    other patients.

    Parameters
    ----------
    ids
        (n,) patient of every cell.
    names
        (n,) unique names of the cells. None if the cells have no names, or an array that holds None for the cells of a
        patient without names. Such cells keep their order, and their position within the patient replaces the name.
    train_size
        Share of every patient's cells that are training cells.
    seed
        Seed of the run.
    smallest_k
        Smallest number of components; a patient needs two training cells for each component.
    min_cells, on_small_patient
        Patients with fewer cells stop the run (``"error"``) or are recorded and left out (``"drop"``).
    labels
        Label of every patient.
    wanted
        Use only these patients.
    empty
        (n,) bool: cells without any feature, which do not count towards the size of a patient; None if there are none.
    without_cells
        Patients without cells after the preprocessing; they are treated as too small.

    Returns
    -------
    Split

    Raises
    ------
    DataError
        For patients that are too small or do not exist, or if none is left.
    """
    if len(ids) == 0:
        raise DataError("the data has no cells")
    groups = _rows_by_patient(ids)
    lost = {patient: np.empty(0, dtype=np.int64) for patient in without_cells if patient not in groups}
    groups = dict(sorted({**groups, **lost}.items()))
    if wanted is not None:
        wanted = list(dict.fromkeys(wanted))
        for patient in wanted:
            if patient not in groups:
                raise unknown_name("sample sheet: patient", patient, groups)
    rows, positions, train, small = [], {}, {}, []
    for patient, group in groups.items():
        if wanted is not None and patient not in wanted:
            continue
        if names is None or (len(group) and names[group[0]] is None):
            own = [str(i) for i in range(len(group))]
        else:
            group = np.array(sorted(group.tolist(), key=names.__getitem__), dtype=np.int64)
            own = names[group].tolist()
        mask = choose_train_cells(own, train_size, seed=seed, patient=patient) if own else np.empty(0, dtype=bool)
        row: Row = {"patient": patient, "file": escape_id(patient), "label": (labels or {}).get(patient, "")}
        row |= {"n_cells": len(group), "n_train": int(mask.sum()), "status": "ok", "reason": ""}
        reason = _too_small(np.ones(len(group), bool) if empty is None else ~empty[group], mask, min_cells, smallest_k)
        reason = "no cell passed the filters of preprocess" if patient in lost else reason
        if reason:
            row |= {"status": "dropped", "reason": reason}
        else:
            positions[patient], train[patient] = group, mask
        rows.append(row)
        small += [row] if row["status"] == "dropped" else []
    if small and on_small_patient == "error":
        shown = "; ".join(f"{row['patient']!r} ({row['reason']})" for row in small[:5])
        raise DataError(
            f"{len(small)} of {len(rows)} patients have too few cells: {shown}{'; ...' if len(small) > 5 else ''}. "
            "Use a smaller k or a smaller min_cells, or set on_small_patient to drop to leave them out"
        )
    if not positions:
        raise DataError(f"none of {len(rows)} patients has enough cells ({rows[0]['reason']})")
    return Split(rows, positions, train)


def _rows_by_patient(ids: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of every patient, with the patients in alphabetical order."""
    # numpy and pandas take ids that differ only in a NUL character for equal.
    groups: dict[str, list[int]] = {}
    for row, patient in enumerate(ids.tolist()):
        groups.setdefault(patient, []).append(row)
    return {patient: np.array(groups[patient], dtype=np.int64) for patient in sorted(groups)}


def _too_small(has_features: np.ndarray, train: np.ndarray, min_cells: int, smallest_k: int) -> str:
    """Reason why a patient has too few cells, from the (n,) masks of its cells; empty if it has enough."""
    n, n_train = int(np.count_nonzero(has_features)), int(np.count_nonzero(has_features & train))
    needed, which = MIN_CELLS_PER_COMPONENT * smallest_k, "" if has_features.all() else " with features"
    if n < min_cells:
        return f"{n} cells{which}, min_cells is {min_cells}"
    if n_train < needed:
        return f"{n_train} training cells{which}, the smallest k ({smallest_k}) needs {needed}"
    return ""


def check_finite(
    matrix: Any, ids: np.ndarray, name: str, used: np.ndarray | None = None, *, missing: bool = False
) -> None:
    """Refuse NaN and infinite values, with their number and the first patient (by id) that has any.

    Parameters
    ----------
    matrix
        (n, D) array or CSR matrix.
    ids
        (n,) patients.
    name
        Name of the matrix in messages.
    used
        Rows that are checked; None for all.
    missing
        Whether NaN is allowed, as a missing feature.
    """
    values = matrix.data if hasattr(matrix, "indptr") else matrix
    # The sum of squares is finite only if all values are; it needs no copy of the data.
    if values.dtype.kind in "iub" or np.isfinite(np.vdot(values, values)):
        return
    bad = np.isinf(values) if missing else ~np.isfinite(values)
    if hasattr(matrix, "indptr"):
        owner = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
        per_cell = np.bincount(owner[bad], minlength=len(ids))
    else:
        per_cell = np.count_nonzero(bad, axis=1)
    bad_cells = np.flatnonzero(per_cell)
    bad_cells = bad_cells if used is None else np.intersect1d(bad_cells, used)
    if len(bad_cells):
        what = "infinite" if missing else "NaN or infinite"
        hint = "" if missing else ", or set missing if NaN are missing features"
        raise DataError(
            f"{name} has {per_cell[bad_cells].sum()} {what} values in {len(bad_cells)} cells, the first in "
            f"patient {min(ids[bad_cells])!r}: remove these cells or recompute the embedding{hint}"
        )


def split_file(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    table: str | os.PathLike[str],
    positions: str | os.PathLike[str],
    *,
    patient_col: str | Sequence[str],
    label_col: str | None,
    use_rep: str | None,
    component_sharing: str,
    noise: Mapping[str, str | None] | None = None,
    missing: bool = False,
    on_mixed_label: str = "error",
    sheet: str | None = None,
    summary: str | None = None,
    **options: Any,
) -> None:
    """Split an ``.h5ad``: write the array file of every patient, the rows of the cells, and the table of patients.

    Files with the same content as before are not touched, and files of patients that no longer exist are removed.

    Parameters
    ----------
    source
        The cohort.
    folder
        Folder of the array files, ``<escaped id>.npz``.
    table
        The table of patients (:data:`PATIENT_COLUMNS`).
    positions
        The file of the rows that the cells come from; see :func:`~cohortgmm.cohort.cells.write_positions`.
    patient_col, label_col, use_rep, component_sharing, noise, missing, on_mixed_label
        As in the configuration.
    sheet
        Sample sheet. Every patient in it gets a file; the file of a patient that is left out has no cells.
    summary
        Summary of the preprocessing, which names patients without cells; None without preprocessing.
    **options
        Further arguments of :func:`split_patients`.
    """
    wanted = read_sheet(sheet) if sheet else None
    with open_h5ad(source) as file:
        cells = read_patients(file, patient_col, label_col, on_mixed_label=on_mixed_label, wanted=wanted)
        embedding = replace(read_embedding(file, use_rep), cell_names=cells.names)
        if noise is not None:
            embedding = replace(
                embedding, noise=read_noise(file, noise, embedding.matrix.shape, embedding.feature_names)
            )
    matrix = embedding.matrix
    empty = embedding.empty_cells() if missing or noise is not None else None
    ids, labels = cells.patients, cells.labels
    values = labels.values if labels else None
    options["without_cells"] = read_summary(summary).get("patients_without_cells", []) if summary else ()
    split = split_patients(ids, names=cells.names, labels=values, wanted=wanted, empty=empty, **options)
    notes = labels.notes() if labels else {}
    for row in split.rows:
        row["reason"] = row["reason"] or notes.get(row["patient"], "")
    check_finite(matrix, ids, embedding.name, used=split.rows_used, missing=missing)
    folder, written = Path(folder), []
    for patient in split.patients if noise is not None else ():
        split.cells_of(patient, embedding)  # checks the noise before anything is written
    for unit in split.units(embedding, component_sharing):
        written.append(f"{COHORT if unit.owner is not None else escape_id(unit.patient)}.npz")
        unit.save(folder / written[-1])
    dropped = [row for row in split.rows if row["status"] == "dropped"]
    if sheet and component_sharing != "global":
        no_rows = np.empty(0, dtype=np.int64)
        for row in dropped:
            embedding.cells(row["patient"], no_rows, no_rows > 0).save(folder / f"{row['file']}.npz")
            written.append(f"{row['file']}.npz")
    for path in set(folder.glob("*.npz")) - {folder / name for name in written}:
        path.unlink()
    write_positions(positions, split.unit_positions(component_sharing))
    write_table(table, PATIENT_COLUMNS, split.rows)
    n_cells = sum(len(rows) for rows in split.positions.values())
    logger.info("%d patients with %d cells of %d features", len(split.patients), n_cells, matrix.shape[1])
    for row in dropped:
        logger.warning("patient %r left out: %s", row["patient"], row["reason"])
