"""The patient of every cell and the label of every patient, from the table of cells."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import h5py
import numpy as np
import pandas as pd

from cohortgmm.cohort.h5ad import open_h5ad, read_column, read_obs, row_names, table_columns, unknown_name
from cohortgmm.cohort.labels import Labels, check_labels, patient_labels
from cohortgmm.cohort.tables import read_sheet
from cohortgmm.cohort.texts import Texts, check_column, check_id, column_list, column_texts
from cohortgmm.errors import CohortgmmError, DataError


def check_cell_names(obs: pd.DataFrame) -> None:
    """Refuse cell names that are not unique, and cells without a name."""
    if obs.index.nlevels > 1:
        raise DataError(
            f"obs has {obs.index.nlevels} names for every cell (a MultiIndex): give the cells one name each, "
            "adata.obs_names = [...]"
        )
    if obs.index.isna().any():
        raise DataError(
            f"{int(obs.index.isna().sum())} cells have no name: give every cell one, adata.obs_names = [...]"
        )
    duplicated = obs.index.astype(str).duplicated()  # names are text in a file
    if duplicated.any():
        raise DataError(
            f"{int(duplicated.sum())} cell names occur more than once, the first is {str(obs.index[duplicated][0])!r}: "
            "call adata.obs_names_make_unique()"
        )


def patient_ids(obs: pd.DataFrame, patient_col: str | Sequence[str]) -> np.ndarray:
    """Patient of every cell as text.

    Numbers, booleans and categories become text; categories without cells are ignored. The texts of several columns are
    joined by ``_``.

    Parameters
    ----------
    obs
        (n,) table of cells.
    patient_col
        The column of ``obs`` that names the patient, or several columns.

    Returns
    -------
    ndarray of str
        (n,) object array.

    Raises
    ------
    DataError
        If a column is missing, a cell has no patient, or two different values, or combinations of values, have the same
        text.
    """
    columns = column_list(patient_col)
    each = [_units_of(obs, column, joined=len(columns) > 1) for column in columns]
    codes, texts = each[0].codes, each[0].values
    if len(columns) > 1:
        combinations, codes = np.unique(np.column_stack([one.codes for one in each]), axis=0, return_inverse=True)
        codes = codes.ravel()
        named = [[one.values[i] for one, i in zip(each, row, strict=True)] for row in combinations]
        texts = _joined(named, columns)
    key = f"patient_col {(columns[0] if len(columns) == 1 else columns)!r}"
    for code in np.unique(codes):
        check_id(texts[code], key)
    return np.array(texts, dtype=object)[codes]


def _units_of(obs: pd.DataFrame, column: str, *, joined: bool) -> Texts:
    check_column(obs, column, "patient_col")
    texts = column_texts(obs[column], f"patient_col {column!r}", as_ids=True)
    missing = texts.codes < 0
    if missing.any():
        what = "value" if joined else "patient"
        raise DataError(
            f"patient_col {column!r}: {int(missing.sum())} cells have no {what}, the first is "
            f"{str(obs.index[missing][0])!r}"
        )
    return texts


def _joined(combinations: Sequence[Sequence[str]], columns: Sequence[str]) -> list[str]:
    seen: dict[str, Sequence[str]] = {}
    for combination in combinations:
        text = "_".join(combination)
        if text in seen:
            raise DataError(
                f"patient_col {list(columns)!r}: {seen[text]!r} and {combination!r} are both {text!r} if joined by _: "
                "rename one of these values"
            )
        seen[text] = combination
    return list(seen)


def check_columns(file: h5py.File, columns: Iterable[tuple[str, str | None]]) -> None:
    """Refuse columns that ``obs`` lacks or has twice, given as pairs of configuration key and column (or None)."""
    known = pd.DataFrame(columns=table_columns(file, "obs"))
    for key, column in columns:
        if column is not None:
            check_column(known, column, key)


class PatientsOfCells(NamedTuple):
    """Names (n,) and patients (n,) of the cells, and the labels of the patients or None."""

    names: np.ndarray
    patients: np.ndarray
    labels: Labels | None


def read_patients(
    file: h5py.File,
    patient_col: str | Sequence[str],
    label_col: str | None,
    *,
    on_mixed_label: str = "error",
    wanted: Sequence[str] | None = None,
) -> PatientsOfCells:
    """Patient of every cell of a file, and the labels of the patients.

    Parameters
    ----------
    file
        The cohort.
    patient_col, label_col, on_mixed_label
        As in the configuration.
    wanted
        Patients that are modelled; None for all.

    Raises
    ------
    DataError
        For cell names that are not unique, cells without a patient, wanted patients that do not exist, and patients with
        several labels.
    """
    columns = [("patient_col", column) for column in column_list(patient_col)]
    columns += [("label_col", label_col)] if label_col is not None else []
    check_columns(file, columns)
    obs = read_obs(file, [column for _, column in columns])
    check_cell_names(obs)
    names, ids = obs.index.to_numpy(dtype=object), patient_ids(obs, patient_col)
    if wanted is not None:
        known_ids = set(ids)
        for patient in wanted:
            if patient not in known_ids:
                raise unknown_name("sample sheet: patient", patient, known_ids)
    if label_col is None:
        return PatientsOfCells(names, ids, None)
    labels = patient_labels(obs, ids, label_col)
    if wanted is not None:
        labels = labels.of(wanted)
    others = _columns_of(file, obs.index, {*column_list(patient_col)} - {label_col})
    check_labels(labels, ids, patient_col=patient_col, on_mixed_label=on_mixed_label, columns=others)
    return PatientsOfCells(names, ids, labels)


def _columns_of(file: h5py.File, names: pd.Index, without: set[str]) -> Iterator[pd.Series]:
    """The columns of ``obs`` that can be read, except those in ``without``."""
    for column in dict.fromkeys(table_columns(file, "obs")):
        if column not in without:
            try:
                yield read_column(file, "obs", column, names)
            except CohortgmmError:
                continue


def check_input(
    path: str | os.PathLike[str],
    columns: Mapping[str, str | None],
    *,
    patient_col: str | Sequence[str] | None = None,
    label_col: str | None = None,
    on_mixed_label: str = "error",
    sheet: str | None = None,
) -> None:
    """Refuse an ``.h5ad`` whose table of cells cannot be used, before long computations.

    Parameters
    ----------
    path
        The file, of which only ``obs`` is read.
    columns
        Columns of ``obs`` that must exist, by configuration key; None is skipped.
    patient_col, label_col, on_mixed_label
        As in the configuration.
    sheet
        Sample sheet; its patients must exist, and only their labels are checked.
    """
    with open_h5ad(path) as file:
        check_columns(file, columns.items())
        if patient_col is None:
            check_cell_names(pd.DataFrame(index=row_names(file, "obs")))
            return
        read_patients(
            file,
            patient_col,
            label_col,
            on_mixed_label=on_mixed_label,
            wanted=read_sheet(sheet) if sheet else None,
        )
