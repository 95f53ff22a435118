"""Names of what a result writes to ``obs`` and ``obsm``."""

from collections.abc import Mapping, Sequence


def unit_column(patient_col: str | Sequence[str], gmm_key: str) -> str:
    """Column of ``obs`` that names the patient of every cell in a result: the given one, or that of the joined texts."""
    if isinstance(patient_col, str):
        return patient_col
    return patient_col[0] if len(patient_col) == 1 else f"{gmm_key}_patient"


def joined_column(patient_col: str | Sequence[str] | None, gmm_key: str) -> str | None:
    """Column of the joined texts if several columns name the patient; None if one does, as nothing is written then."""
    several = isinstance(patient_col, list | tuple) and len(patient_col) > 1
    return f"{gmm_key}_patient" if several else None


def columns_of(gmm_key: str, patient_col: str | Sequence[str] = "") -> list[str]:
    """Columns of ``obs`` that a result may write."""
    return [f"{gmm_key}_comp", f"{gmm_key}_background", *filter(None, [joined_column(patient_col, gmm_key)])]


def overwritten(
    gmm_key: str, columns: Mapping[str, str | Sequence[str] | None], obsm: Mapping[str, str | None]
) -> list[tuple[str, str]]:
    """Columns and entries that a result is made from and would overwrite.

    Parameters
    ----------
    gmm_key
        Key of the result.
    columns, obsm
        Columns of ``obs`` (one or several) and keys of ``obsm`` that are read, by the configuration key that names them.

    Returns
    -------
    list
        Configuration key and description of each.
    """
    found = []
    for name, value in columns.items():
        read = value if isinstance(value, list | tuple) else [value]
        written = columns_of(gmm_key, value or "")
        found += [(name, f"the column {column!r}") for column in read if column in written]
    return found + [(name, f"obsm[{value!r}]") for name, value in obsm.items() if value == f"{gmm_key}_resp"]
