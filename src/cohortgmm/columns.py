"""Names of the columns of ``obs`` that a result writes."""

from collections.abc import Sequence


def unit_column(patient_col: str | Sequence[str], gmm_key: str) -> str:
    """Column of ``obs`` with the patient of every cell in what is written: the one given, or that of several joined."""
    if isinstance(patient_col, list | tuple):
        return patient_col[0] if len(patient_col) == 1 else f"{gmm_key}_patient"
    return patient_col


def joined_column(patient_col: str | Sequence[str], gmm_key: str) -> str | None:
    """The column of :func:`unit_column` where it is written: of several columns; None of one."""
    several = isinstance(patient_col, list | tuple) and len(patient_col) > 1
    return unit_column(patient_col, gmm_key) if several else None


def columns_of(gmm_key: str, patient_col: str | Sequence[str] = "") -> list[str]:
    """Columns of ``obs`` that a result may write: a patient joined of several columns gets one of its own."""
    return [f"{gmm_key}_comp", f"{gmm_key}_background", *filter(None, [joined_column(patient_col, gmm_key)])]
