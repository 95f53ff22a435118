"""The tables that pass between the stages: their columns, reading and writing. Needs the standard library only."""

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from cohortgmm.errors import DataError
from cohortgmm.storage.atomic import atomic_path

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

#: Columns of the table of one patient; ``best_by`` lists the criteria by which a k is the best.
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


#: Columns of the tables that figures are drawn from.
FRAME_COLUMNS: dict[str, list[str]] = {
    "scores": list(SCORE_COLUMNS),
    "selection": list(SELECTION_COLUMNS),
    "diagnostics": [
        *("patient", "label", "n_cells", "n_fit", "k", "n_iter", "converged", "log_likelihood_per_cell", "train_nll"),
        *("heldout_nll", "nll_gap", "max_condition", "min_weight", "max_weight", "n_floored", "completeness"),
        *("n_unobserved", "n_empty", "background"),
    ],
    "weights": ["patient", "component", "weight"],
    "composition": ["patient", "component", "cell_type", "n_cells"],
}

#: Key of the mark in the file of a fit's scores; the mark is a text that stands for the data and options of the fit.
MADE_WITH = "made_with"

#: Largest number of columns of a sheet in a message.
_MOST_COLUMNS = 10

#: Remedy for a damaged file.
RUN_AGAIN = "remove it and run again"


def write_table(path: str | os.PathLike[str], columns: Iterable[str], rows: Iterable[Row]) -> None:
    """Write rows as tab-separated values; floats keep all their digits."""
    rows = list(rows)
    # Before Python 3.13 a carriage return by itself does not make the writer quote a text.
    returns = any("\r" in value for row in rows for value in row.values() if isinstance(value, str))
    quoting: Any = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns), delimiter="\t", lineterminator="\n", quoting=quoting)
        writer.writeheader()
        writer.writerows(rows)


def read_rows(
    path: str | os.PathLike[str],
    columns: Iterable[str] | Mapping[str, type] | None = None,
    content: str = "table",
    remedy: str = RUN_AGAIN,
) -> list[Row]:
    """Rows of a table, as text.

    Parameters
    ----------
    path
        The file.
    columns
        Columns that a table of the pipeline must have, and the types of those that are not texts. A table that lacks a
        column or is damaged is refused. None for a table of the user, which is not checked.
    content
        What a table of the pipeline holds, for messages.
    remedy
        What to do about a damaged table, for messages.

    Raises
    ------
    DataError
        If a table of the pipeline is damaged or of another kind.
    """
    if columns is None:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte order mark
            return list(csv.DictReader(file, delimiter="\t"))
    kinds = columns if isinstance(columns, Mapping) else dict.fromkeys(columns, str)
    try:
        return _checked_rows(_text(path), kinds)
    except (UnicodeDecodeError, csv.Error):
        reason = "not a tab-separated text"
    except ValueError as error:
        reason = str(error)
    except FileNotFoundError:
        raise
    except OSError as error:  # such as a folder in its place, or no permission
        reason = str(error.strerror)
    raise DataError(f"{path} holds no {content}: {reason}; {remedy}") from None


def _text(path: str | os.PathLike[str]) -> str:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return file.read()


def _checked_rows(text: str, kinds: Mapping[str, type]) -> list[Row]:
    """Rows of a table of the pipeline; a ValueError describes what is wrong with it."""
    if not text.strip():
        raise ValueError("it is empty")
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t")
    missing = [name for name in kinds if name not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(f"column{'s' if len(missing) > 1 else ''} {', '.join(missing)} missing")
    rows = []
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"line {reader.line_num} has another number of fields than the heading")
        for name, kind in kinds.items():
            if kind is not str:
                row[name] = _value(row[name], name, kind, reader.line_num)
        rows.append(row)
    if not text.endswith("\n"):
        raise ValueError("its last line is incomplete")
    return rows


#: Conversion of texts by type, and the expected content for messages.
_KINDS: dict[type, tuple[Callable[[str], Any], str]] = {
    int: (int, "a whole number"),
    float: (float, "a number"),
    bool: ({"True": True, "False": False}.__getitem__, "True or False"),
}


def _value(text: str, name: str, kind: type, line: int) -> Any:
    parse, what = _KINDS[kind]
    try:
        return parse(text)
    except (ValueError, KeyError):
        raise ValueError(f"{name} in line {line} is {text[:40]!r}, not {what}") from None


def read_patients(path: str | os.PathLike[str], columns: Mapping[str, type] | None = None) -> list[Row]:
    """Rows of the table of patients.

    Parameters
    ----------
    path
        ``results/patients.tsv``.
    columns
        Types of columns that are not texts, such as ``{"n_cells": int}``.

    Raises
    ------
    DataError
        If the table is damaged or names no patient.
    """
    rows = read_rows(path, dict.fromkeys(PATIENT_COLUMNS, str) | dict(columns or {}), "patients")
    for row in rows:
        if row["status"] not in ("ok", "dropped") or not row["file"]:
            raise DataError(f"{path} holds no patients: status or file of {row['patient']!r} missing; {RUN_AGAIN}")
    if not rows:
        raise DataError(f"{path} holds no patients: it has no rows; {RUN_AGAIN}")
    return rows


def write_score(path: str | os.PathLike[str], row: Row, made_with: str = "") -> None:
    """Write one row of scores as JSON; NaN becomes null.

    Parameters
    ----------
    path
        The file.
    row
        The columns of :data:`SCORE_COLUMNS`.
    made_with
        Mark of the fit's data and options; empty for none.
    """
    clean = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
    clean |= {MADE_WITH: made_with} if made_with else {}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(clean, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_scores(path: str | os.PathLike[str]) -> list[Row]:
    """Rows of a score table in their types (:data:`SCORE_COLUMNS`)."""
    rows = read_rows(path, SCORE_COLUMNS, "scores")
    if not rows:
        raise DataError(f"{path} holds no scores: it has no rows; {RUN_AGAIN}")
    return [{name: row[name] for name in SCORE_COLUMNS} for row in rows]


def table_heading(path: str | os.PathLike[str]) -> list[str]:
    """Names of the columns of a table."""
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        return next(csv.reader(file, delimiter="\t"), [])


def by_patient(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows grouped by patient, in their order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["patient"], []).append(row)
    return groups


def scores_of(path: str | os.PathLike[str], patients: Iterable[str]) -> dict[str, list[Row]]:
    """Rows of the score table by patient.

    Raises
    ------
    DataError
        If the table has no scores of one of these patients.
    """
    rows = by_patient(read_scores(path))
    if lost := [patient for patient in patients if patient not in rows]:
        raise DataError(f"{path} holds no scores of {len(lost)} patients, the first is {lost[0]!r}; {RUN_AGAIN}")
    return rows


def read_score(path: str | os.PathLike[str]) -> Row:
    """Read what :func:`write_score` wrote, without the mark.

    Raises
    ------
    DataError
        If the file is damaged or of another kind.
    """
    return read_marked_score(path)[0]


def read_marked_score(path: str | os.PathLike[str]) -> tuple[Row, str]:
    """Like :func:`read_score`, with the mark of the fit's data and options; empty if there is none."""
    try:
        row = json.loads(_text(path))
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise DataError(f"{path} holds no scores: not a readable JSON file; {RUN_AGAIN}") from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{path} holds no scores: {error.strerror}; {RUN_AGAIN}") from None
    if not isinstance(row, dict):
        raise DataError(f"{path} holds no scores: not the scores of one fit; {RUN_AGAIN}")
    missing = [name for name in SCORE_COLUMNS if name not in row]
    wrong = [name for name, kind in SCORE_COLUMNS.items() if name in row and not _is_of_kind(row[name], kind)]
    if missing or wrong:
        reason = f"{', '.join(missing)} missing" if missing else f"{wrong[0]} is {row[wrong[0]]!r:.40}"
        raise DataError(f"{path} holds no scores: {reason}; {RUN_AGAIN}")
    scores = {name: math.nan if row[name] is None else row[name] for name in SCORE_COLUMNS}
    return scores, str(row.get(MADE_WITH, ""))


def _is_of_kind(value: Any, kind: type) -> bool:
    """Whether a value of a JSON file is of the type of a column; numbers may be null."""
    if kind is float:
        return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def read_sheet(path: str | os.PathLike[str]) -> list[str]:
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
        columns, rows = table_heading(path), read_rows(path)
    except (UnicodeDecodeError, csv.Error):
        raise DataError(
            f"patients: {path} is no tab-separated text in UTF-8: save it as such, from a spreadsheet as text with tabs"
        ) from None
    except OSError as error:
        raise DataError(f"patients: {path} cannot be read: {error.strerror}") from None
    if columns.count("patient") > 1:
        raise DataError(f"patients: {path} has {columns.count('patient')} columns `patient`: remove all but one")
    if not rows or "patient" not in columns:
        found = f"columns {', '.join(map(repr, columns[:_MOST_COLUMNS]))}" if columns else "no columns"
        rows_found = f"{len(rows)} row{'s' if len(rows) != 1 else ''}"
        raise DataError(
            f"patients: {path} needs tab-separated rows under a heading with the column `patient`; it has {rows_found} and "
            f"{found}"
        )
    patients = [row["patient"] for row in rows]
    seen = set()
    for line, patient in enumerate(patients, start=2):
        if not patient:
            raise DataError(f"patients: {path} line {line} names no patient")
        if patient in seen:
            raise DataError(f"patients: {path} line {line} repeats patient {patient!r}")
        seen.add(patient)
    return patients
