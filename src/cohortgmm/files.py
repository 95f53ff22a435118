"""File names of patients and atomic writing."""

import filecmp
import glob
import os
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cohortgmm.errors import CohortgmmError, DataError, OutputError

#: File name of all patients together; escaped patient names never start with an underscore.
COHORT = "_cohort"

#: What all patients together are called in tables, figures and messages.
ALL_PATIENTS = "all patients"

#: This machine in temporary names: a process has its number on one only.
_NODE = f"{zlib.crc32(os.uname().nodename.encode()):08x}"

_HOUR = 3600

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_MAX_NAME = 200

#: Snakemake refuses wildcards that end in a pattern repeated this often, as signs of an infinite recursion.
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
    """Patient id of a file name, as messages and the report show it."""
    return ALL_PATIENTS if name == COHORT else unescape_id(name)


def shown_path(path: str | os.PathLike) -> str:
    """A path as messages show it: UTF-8, as configurations and tables are, whatever the locale."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def shown_text(text: str) -> str:
    """A text for a line of a terminal: itself, or as Python writes it where characters of it would not be seen as they are.

    Examples
    --------
    >>> print(shown_text("P 1 é"), shown_text("P\\n1"), shown_text(" "))
    P 1 é 'P\\n1' ' '
    """
    return text if text.isprintable() and text == text.strip() and text else repr(text)


def describe(wildcards: Any) -> str:
    """What a job is about, for messages: patient and k."""
    words = []
    if hasattr(wildcards, "patient"):
        name = wildcards.patient
        words.append(ALL_PATIENTS if name == COHORT else f"patient {patient_name(name)!r}")
    if hasattr(wildcards, "k"):
        words.append(f"k={wildcards.k}")
    return ", ".join(words)


@contextmanager
def atomic_path(path: str | os.PathLike, *, keep_if_same: bool = False) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success it is renamed to ``path``, on failure removed.

    Parameters
    ----------
    path
        The final name. Missing parent folders are made.
    keep_if_same
        Leave a file that already has the same content as it is, with its time.

    Yields
    ------
    Path
        Where to write. It keeps the suffix of ``path``, which some writers look at.

    Raises
    ------
    OutputError
        If writing fails (disk full, no permission, not a folder); nothing is left at the temporary name.
    """
    path = Path(path)
    temporary = path.with_name(f".{_NODE}-{os.getpid()}.{path.name}")
    try:
        with _output_errors(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path)
            yield temporary
            if not (keep_if_same and path.is_file() and filecmp.cmp(temporary, path, shallow=False)):
                os.replace(temporary, path)
    finally:
        if path.parent.is_dir():
            temporary.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of ``path`` whose process was killed; of one on another machine, after an hour."""
    for leftover in path.parent.glob(f".*.{glob.escape(path.name)}"):
        writer = leftover.name[1:].removesuffix(f".{path.name}")
        node, _, process = writer.partition("-")
        if not process.isdigit():
            continue
        with suppress(FileNotFoundError):  # another process may be here for the same reason
            is_old = time.time() - leftover.stat().st_mtime > _HOUR
            if is_old if node != _NODE else not _is_alive(int(process)):
                leftover.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def _output_errors(path: Path, temporary: Path) -> Iterator[None]:
    """Turn an error of the operating system about ``path``, its temporary name or its folders into one line."""
    try:
        yield
    except OSError as error:
        # A copy that fails names both files, a write that fails names none.
        names = (error.filename, error.filename2)
        about = {os.path.abspath(name) for name in names if isinstance(name, (str, os.PathLike))}
        ours = {os.path.abspath(name) for name in (path, temporary, *path.absolute().parents)}
        if isinstance(error, CohortgmmError) or (about and not about & ours):
            raise
        reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
        remedy = "free space"
        if "unable to lock file" in str(error):  # HDF5 says so where a file system knows no locks
            reason, remedy = "it cannot be locked here", "set the environment variable HDF5_USE_FILE_LOCKING=FALSE"
        raise OutputError(
            f"cannot write {path}: {reason}; {remedy}, or choose another folder with --directory"
        ) from error
