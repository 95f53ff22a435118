"""Patient ids as file names."""

import re
from typing import Any

from cohortgmm.errors import DataError

#: File name that stands for all patients together. Escaped patient ids never start with an underscore.
COHORT = "_cohort"

#: Name of all patients together in tables, figures and messages.
ALL_PATIENTS = "all patients"

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_MAX_NAME = 200

#: Snakemake refuses wildcards that end in a pattern repeated this often, as it takes them for an infinite recursion.
_MAX_REPEATS = 20


def escape_id(patient: str) -> str:
    """File name of a patient id: reversible, and safe in paths, wildcards, shells and SLURM.

    Letters, digits, ``.``, ``_`` and ``-`` stay; every other byte of the UTF-8 text, and a leading ``.``, ``_``
    or ``-``, becomes ``=XX`` (hexadecimal).

    Parameters
    ----------
    patient
        Any non-empty text.

    Returns
    -------
    str
        The escaped name.

    Raises
    ------
    DataError
        If the id is empty, its escaped name is longer than 200 characters, or ends in a pattern repeated 20 times.
    """
    if not patient:
        raise DataError("an empty patient id: give every cell a patient")
    name = "".join(
        chr(byte) if byte in _PLAIN and (i > 0 or chr(byte) not in "._-") else f"={byte:02X}"
        for i, byte in enumerate(patient.encode())
    )
    if len(name) > _MAX_NAME:
        raise DataError(
            f"patient id {patient[:40]!r}... needs {len(name)} characters as a file name, {_MAX_NAME} at most: shorten it"
        )
    if re.search(rf"(.+?)\1{{{_MAX_REPEATS - 1},}}$", name):
        raise DataError(
            f"patient id {patient[:40]!r} ends in a pattern repeated {_MAX_REPEATS} times or more (padding?): shorten it"
        )
    return name


def unescape_id(name: str) -> str:
    """Patient id of a file name made by :func:`escape_id`."""
    return re.sub(rb"=([0-9A-F]{2})", lambda m: bytes([int(m[1], 16)]), name.encode()).decode()


def patient_name(name: str) -> str:
    """Patient id of a file name for messages and the report."""
    return ALL_PATIENTS if name == COHORT else unescape_id(name)


def describe(wildcards: Any) -> str:
    """Patient and k of a job, for messages."""
    words = []
    if hasattr(wildcards, "patient"):
        name = wildcards.patient
        words.append(ALL_PATIENTS if name == COHORT else f"patient {patient_name(name)!r}")
    if hasattr(wildcards, "k"):
        words.append(f"k={wildcards.k}")
    return ", ".join(words)
