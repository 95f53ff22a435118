"""Columns of the table of cells as text: patients, labels, cell types."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from cohortgmm.cohort.h5ad import unknown_name
from cohortgmm.display import format_repr
from cohortgmm.errors import ConfigError, DataError


def check_column(obs: pd.DataFrame, column: str, key: str) -> None:
    """Refuse a column that ``obs`` lacks or has twice; ``key`` is the configuration key that names it."""
    count = list(obs.columns).count(column)
    if count == 0:
        raise unknown_name(f"{key}: obs column", column, obs.columns)
    if count > 1:
        raise DataError(f"{key}: obs has {count} columns of the name {column!r}: rename all but one")


def column_list(patient_col: str | Sequence[str]) -> list[str]:
    """The columns that name the patient of a cell.

    Raises
    ------
    ConfigError
        If there is none, or a column is named twice.
    """
    columns: list[Any] = list(patient_col) if isinstance(patient_col, list | tuple) else [patient_col]
    try:
        if columns and len(set(columns)) == len(columns):
            return columns
    except TypeError:  # such as lists within the list
        pass
    raise ConfigError(
        f"patient_col must be a column of obs, or a list of several different ones, got {format_repr(patient_col)}"
    )


@dataclass(frozen=True)
class Texts:
    """A column as text: ``values[codes[i]]`` is the text of cell i; the code is −1 if the cell has none."""

    codes: np.ndarray
    values: list[str]


def _as_text(value: Any, key: str) -> str:
    text = value
    if isinstance(value, bytes):
        try:
            text = value.decode()
        except UnicodeDecodeError:
            raise DataError(f"{key}: {value!r} is no text in UTF-8") from None
    return str(text)


def column_texts(column: pd.Series, key: str, *, as_ids: bool = False) -> Texts:
    """Values of a column as text; cells with a missing value or an empty text have none.

    Parameters
    ----------
    column
        A column of ``obs``.
    key
        Its name in messages.
    as_ids
        Whether different values with the same text are an error.

    Raises
    ------
    DataError
        With ``as_ids``, for different values with the same text, or equal numbers with different texts.
    """
    missing = column.isna().to_numpy(dtype=bool)
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes = column.cat.codes.to_numpy(dtype=np.int64)
        values = list(column.cat.categories)
        used = np.isin(np.arange(len(values)), codes)
    elif column.dtype == object or isinstance(column.dtype, pd.StringDtype):
        codes, values = _distinct(column.to_numpy(dtype=object), missing, key)
        used = np.ones(len(values), dtype=bool)
    else:
        codes, uniques = pd.factorize(column)
        values, used = list(uniques), np.ones(len(uniques), dtype=bool)
    codes = np.where(missing, -1, codes)
    texts = [_as_text(value, key) for value in values]
    if as_ids:
        _check_distinct([value for value, is_used in zip(values, used, strict=True) if is_used], key)
    elif len(set(texts)) < len(texts):
        places, texts = pd.factorize(np.array(texts, dtype=object))
        codes, texts = np.where(codes >= 0, places[codes], -1), list(texts)
    empty = np.array([text == "" for text in texts], dtype=bool)
    if empty.any():
        codes = np.where((codes >= 0) & empty[codes], -1, codes)
    return Texts(codes, texts)


def _distinct(values: np.ndarray, missing: np.ndarray, key: str) -> tuple[np.ndarray, list[Any]]:
    """Like :func:`pandas.factorize`, but 1, 1.0 and True are different, and so are texts that differ only in a NUL."""
    codes = np.full(len(values), -1, dtype=np.int64)
    found: dict[tuple[str, str], tuple[int, Any]] = {}
    for i in np.flatnonzero(~missing):
        value = values[i]
        identity = (_kind(value), _as_text(value, key))
        code, _ = found.setdefault(identity, (len(found), value))
        codes[i] = code
    return codes, [value for _, value in found.values()]


def _kind(value: Any) -> str:
    if isinstance(value, str | bytes):
        return "text"
    if isinstance(value, bool | np.bool_):
        return "truth"
    return "number" if isinstance(value, Real) else type(value).__name__


def _check_distinct(values: Sequence[Any], key: str) -> None:
    seen: dict[str, Any] = {}
    for value in values:
        text = _as_text(value, key)
        if text in seen:
            raise DataError(
                f"{key}: two different values have the same text, {text!r} ({type(seen[text]).__name__} and "
                f"{type(value).__name__}); convert the column to text"
            )
        seen[text] = value
    numbers: dict[Any, Any] = {}
    for value in values:
        if isinstance(value, Real | np.bool_) and numbers.setdefault(value, value) is not value:
            raise DataError(
                f"{key}: {numbers[value]!r} and {value!r} are the same number, but have different texts; "
                "convert the column to text"
            )


def check_id(patient: str, key: str, *, in_file: bool = True) -> None:
    """Refuse an id that is empty, no valid Unicode or, if it is written to a file, contains a NUL."""
    if patient == "":
        raise DataError(f"{key}: an empty patient id; give every patient a name")
    if in_file and "\0" in patient:
        raise DataError(f"{key}: {patient!r} has a NUL character, which no .h5ad can hold: remove it")
    try:
        patient.encode()
    except UnicodeEncodeError:
        raise DataError(f"{key}: {patient!r} is not valid Unicode (a lone surrogate): rename the patient") from None
