"""Names of the columns of ``obs`` and the keys of ``obsm`` that a result writes."""

from collections.abc import Mapping, Sequence


def unit_column(patient_col: str | Sequence[str], gmm_key: str) -> str:
    """Column of ``obs`` that names the patient in a result: ``patient_col``, or the joined column if it has several."""
    if isinstance(patient_col, str):
        return patient_col
    return patient_col[0] if len(patient_col) == 1 else f"{gmm_key}_patient"


def joined_column(patient_col: str | Sequence[str] | None, gmm_key: str) -> str | None:
    """Column with the joined texts of several patient columns; None for a single column, which is used as it is."""
    several = isinstance(patient_col, list | tuple) and len(patient_col) > 1
    return f"{gmm_key}_patient" if several else None


def columns_of(gmm_key: str, patient_col: str | Sequence[str] = "") -> list[str]:
    """Columns of ``obs`` that a result may write."""
    return [f"{gmm_key}_comp", f"{gmm_key}_background", *filter(None, [joined_column(patient_col, gmm_key)])]


def overwritten(
    gmm_key: str, columns: Mapping[str, str | Sequence[str] | None], obsm: Mapping[str, str | None]
) -> list[tuple[str, str]]:
    """Columns of ``obs`` and keys of ``obsm`` that are read to make a result and that writing it would overwrite.

    Parameters
    ----------
    gmm_key
        Key of the result.
    columns, obsm
        For configuration keys: the columns of ``obs`` (one or several) and the key of ``obsm`` that they name.

    Returns
    -------
    list
        Pairs of configuration key and description of what it names.
    """
    found = []
    for name, value in columns.items():
        read = value if isinstance(value, list | tuple) else [value]
        written = columns_of(gmm_key, value or "")
        found += [(name, f"the column {column!r}") for column in read if column in written]
    return found + [(name, f"obsm[{value!r}]") for name, value in obsm.items() if value == f"{gmm_key}_resp"]
