"""Arrays of real numbers from data of any type; data that cannot be converted without loss are refused."""

from numbers import Real
from typing import Any

import numpy as np

from cohortgmm.display import format_error
from cohortgmm.errors import DataError

#: Kinds of numpy types for real numbers: booleans, integers and floating-point numbers.
_REAL_KINDS = "biuf"
_OBJECT = np.dtype(object)

#: Integers below this are exact in double precision.
_EXACT = 2.0**53


def real_array(values: Any, name: str) -> Any:
    """An array, or a sparse matrix, of real numbers in single or double precision.

    Single and double precision are kept, without a copy. Half precision becomes single. Booleans, integers and extended
    precision become double precision, if it can represent them. Masked values, and missing values of nullable
    tables, become NaN. Arrays in files (h5py) and lazy arrays (dask) are loaded completely.

    Parameters
    ----------
    values
        Array, table, sparse matrix, masked array, or anything that numpy converts to an array.
    name
        Name of the data in messages.

    Returns
    -------
    ndarray or CSR matrix
        Of float32 or float64 in native byte order, with the shape of ``values``.

    Raises
    ------
    DataError
        For complex numbers, texts, dates and anything else that is not a real number; for numbers beyond the range of
        double precision, and for integers that it would round.
    """
    values = _in_memory(values, name)
    if hasattr(values, "tocsr"):
        return _sparse(values, name)
    if hasattr(values, "iloc"):
        return _as_float(_from_table(values, name), name)
    if isinstance(values, np.ma.MaskedArray):
        return _without_mask(values, name)
    try:
        array = np.asarray(values)
    except MemoryError:
        raise
    except Exception as error:  # the __array__ method of another library's class may raise anything
        raise DataError(f"{name} must be a numeric array: {format_error(error)}") from None
    if array.dtype.kind == "O" and array.ndim == 0 and not isinstance(values, Real):
        raise DataError(f"{name} must be a numeric array, got {type(values).__name__}")
    return _as_float(array, name)


def dense_array(values: Any, name: str) -> np.ndarray:
    """As :func:`real_array`, with sparse matrices converted to dense arrays."""
    values = real_array(values, name)
    return values.toarray() if hasattr(values, "toarray") else values


def _in_memory(values: Any, name: str) -> Any:
    """Load values that are stored in a file or computed lazily."""
    try:
        if hasattr(values, "to_memory"):  # a sparse matrix of an AnnData that is backed by its file
            return values.to_memory()
        if hasattr(values, "dask") and hasattr(values, "compute"):
            return values.compute()
    except MemoryError:
        raise
    except Exception as error:  # reading the file, or the lazy computation, may raise anything
        raise DataError(f"{name} cannot be read: {format_error(error)}") from None
    return values


def _sparse(values: Any, name: str) -> Any:
    """A CSR matrix of floats; elements that are given twice are added after the conversion to floats."""
    if values.format not in ("csr", "csc"):
        values = values.tocoo()
    data = _as_float(values.data, name)
    if data is not values.data:
        inside = (values.indices, values.indptr) if hasattr(values, "indptr") else values.coords
        inside = inside if hasattr(values, "indptr") else (inside,)
        values = type(values)((data, *inside), shape=values.shape)
    try:
        if hasattr(values, "indptr"):
            values.check_format(full_check=True)
        return values.tocsr()
    except ValueError as error:
        raise DataError(f"{name} is a damaged sparse matrix: {format_error(error)}") from None


def _from_table(table: Any, name: str) -> np.ndarray:
    """Values of a pandas table or column, NaN where they are missing."""
    columns = list(table.dtypes.items()) if hasattr(table, "columns") else [("", table.dtype)]
    for column, dtype in columns:
        if dtype.kind not in _REAL_KINDS and dtype is not _OBJECT:
            which = f", column {column!r} is {dtype}" if column != "" else f", got {dtype}"
            raise DataError(f"{name} must be numeric{which}")
    if any(dtype is _OBJECT for _, dtype in columns):
        values = np.where(table.isna().to_numpy(), np.nan, table.to_numpy(dtype=object))
        for i, (column, dtype) in enumerate(columns):
            if column != "" and not _is_real(values[:, i]):
                raise DataError(f"{name} must be numeric, column {column!r} is {dtype}")
        return values
    array = table.to_numpy()
    return array if array.dtype.kind in _REAL_KINDS else table.to_numpy(dtype=np.float64, na_value=np.nan)


def _without_mask(values: np.ma.MaskedArray, name: str) -> np.ndarray:
    mask = np.ma.getmaskarray(values)
    # Masked objects may be of any type, so they are replaced before the conversion.
    array = _as_float(np.where(mask, 0, values.data) if values.dtype.kind == "O" else values.data, name)
    return np.where(mask, np.array(np.nan, dtype=array.dtype), array) if mask.any() else array


def _is_real(objects: np.ndarray) -> bool:
    return all(isinstance(value, Real | np.bool_) for value in objects.flat)


def _as_float(array: np.ndarray, name: str) -> np.ndarray:
    """The array in single or double precision."""
    if array.dtype.kind == "O":
        if not _is_real(array):
            raise DataError(f"{name} must be numeric, it holds objects that are no real numbers")
        try:
            return array.astype(np.float64)
        except OverflowError:
            raise _too_large(name) from None
    if array.dtype.kind not in _REAL_KINDS:
        raise DataError(f"{name} must hold real numbers, got {array.dtype}")
    if array.dtype in (np.float32, np.float64):  # not equal to these in another byte order
        return array
    keeps_digits = array.dtype.kind == "f" and array.dtype.itemsize <= np.dtype(np.float32).itemsize
    with np.errstate(over="ignore"):
        result = array.astype(np.float32 if keeps_digits else np.float64)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8 and (np.isinf(result) & np.isfinite(array)).any():
        raise _too_large(name)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8 and np.any(np.abs(result) >= _EXACT):
        raise DataError(f"{name} has integers of 2**53 or more, which double precision would round: rescale them")
    return result


def _too_large(name: str) -> DataError:
    return DataError(f"{name} has numbers beyond the range of double precision: rescale them")


def check_labels(values: Any, other: Any, name: str, of: str = "the cells") -> None:
    """Refuse a table whose row or column names are in another order than those of the table that it belongs to.

    The values of both are combined by position, so names in another order show that values would be assigned to the wrong
    cells or features. Numbered rows are accepted, unless both tables have the same numbers in another order.

    Parameters
    ----------
    values, other
        Tables of pandas. Anything else has no names and is accepted.
    name, of
        Names of both in messages.

    Raises
    ------
    DataError
        For other row names, or for row or column names in another order.
    """
    rows, others = getattr(values, "index", None), getattr(other, "index", None)
    if hasattr(values, "iloc") and hasattr(other, "iloc") and values.ndim == other.ndim == 2:
        check_names(rows, others, f"{name}: its rows", f"those of {of}", complete=True)
        check_names(values.columns, other.columns, f"{name}: its columns", f"those of {of}")


def check_names(names: Any, others: Any, what: str, those: str, *, complete: bool = False) -> None:
    """Refuse ``names`` that are ``others`` in another order; with ``complete``, also names that are other texts."""
    names, others = list(names), list(others)
    if names == others or len(names) != len(others):
        return
    places = {label: i for i, label in enumerate(others)}
    moved = any(places.get(label, i) != i for i, label in enumerate(names))
    texts = all(isinstance(label, str) for label in (*names, *others))
    if (texts and (complete or moved)) or set(names) == set(others):
        first = next(i for i, (one, two) in enumerate(zip(names, others, strict=True)) if one != two)
        raise DataError(
            f"{what} are not {those} in the same order: the first that differs is {names[first]!r}, not "
            f"{others[first]!r}; put them in the same order"
        )
