"""The tables that pass between the stages: their columns, reading and writing. Needs the standard library only."""

import csv
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cohortgmm.errors import DataError
from cohortgmm.files import atomic_path

Row = dict[str, Any]

PATIENT_COLUMNS = ("patient", "file", "label", "n_cells", "n_train", "status", "reason")

#: Columns of the score tables and the type of each.
SCORE_COLUMNS: dict[str, type] = {
    "patient": str,
    "k": int,
    "n_train": int,
    "n_val": int,
    "log_likelihood": float,
    "aic": float,
    "bic": float,
    "train_nll": float,
    "heldout_nll": float,
    "nll_gap": float,
    "n_iter": int,
    "converged": bool,
    "seconds": float,
    "status": str,
    "n_floored": int,
    "reason": str,
}

#: Columns of the table of one patient: ``best_by`` names the criteria that a k is the best by.
PATIENT_SCORE_COLUMNS = (*SCORE_COLUMNS, "best_by")

SELECTION_COLUMNS = (
    "patient",
    "k",
    "metric",
    "score",
    "n_candidates",
    "at_edge",
    "n_floored",
    "runner_up_k",
    "margin",
    "k_aic",
    "k_bic",
    "k_heldout_nll",
)


def write_table(path: str | os.PathLike, columns: Iterable[str], rows: Iterable[Row]) -> None:
    """Write rows as tab-separated values; floats keep all their digits."""
    rows = list(rows)
    # Before Python 3.13 a carriage return by itself does not make the writer quote a text.
    returns = any("\r" in value for row in rows for value in row.values() if isinstance(value, str))
    quoting = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns), delimiter="\t", lineterminator="\n", quoting=quoting)
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: str | os.PathLike) -> list[dict[str, str]]:
    """Rows of a table as text."""
    return _read_table(path)[1]


def _read_table(path: str | os.PathLike) -> tuple[list[str], list[dict[str, str]]]:
    """The columns of a table, and its rows as text."""
    with Path(path).open(newline="", encoding="utf-8-sig") as file:  # spreadsheets put a mark before the text
        reader = csv.DictReader(file, delimiter="\t")
        rows = list(reader)
        return list(reader.fieldnames or ()), rows


def write_score(path: str | os.PathLike, row: Row) -> None:
    """Write one row of scores as JSON; what is not a number becomes null."""
    clean = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(clean, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_scores(path: str | os.PathLike) -> list[Row]:
    """Rows of a score table in their types (:data:`SCORE_COLUMNS`)."""
    parse = {bool: lambda text: text == "True"}
    return [{name: parse.get(kind, kind)(row[name]) for name, kind in SCORE_COLUMNS.items()} for row in read_rows(path)]


def by_patient(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows grouped by patient, in their order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["patient"], []).append(row)
    return groups


def read_score(path: str | os.PathLike) -> Row:
    """Read what :func:`write_score` wrote."""
    row = json.loads(Path(path).read_text())
    return {key: math.nan if value is None else value for key, value in row.items()}


def read_sheet(path: str | os.PathLike) -> list[str]:
    """Patients of a sample sheet.

    Raises
    ------
    DataError
        If there is no column ``patient``, no row, an empty id or the same id twice.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"patients: no such file: {path}")
    try:
        columns, rows = _read_table(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"patients: {path} is no tab-separated text: {error}") from None
    if columns.count("patient") > 1:
        raise DataError(f"patients: {path} has {columns.count('patient')} columns `patient`: remove all but one")
    if not rows or "patient" not in columns:
        raise DataError(f"patients: {path} needs tab-separated rows under a heading with the column `patient`")
    patients = [row["patient"] for row in rows]
    seen = set()
    for line, patient in enumerate(patients, start=2):
        if not patient:
            raise DataError(f"patients: {path} line {line} names no patient")
        if patient in seen:
            raise DataError(f"patients: {path} line {line} repeats patient {patient!r}")
        seen.add(patient)
    return patients
