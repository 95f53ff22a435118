"""Reading and writing ``.npz`` files, with one-line errors for files that are damaged or of another kind."""

import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, BinaryIO, Literal

import numpy as np

from cohortgmm.errors import ConfigError, DataError, MissingFileError, OutputError

#: A file: its path, or the file itself, opened in binary mode.
File = str | os.PathLike[str] | BinaryIO


def read_arrays(
    file: File, names: Iterable[str], content: str = "mixture", optional: Iterable[str] = ()
) -> dict[str, np.ndarray]:
    """Arrays of an ``.npz`` file by name.

    Parameters
    ----------
    file
        Its path, or the file opened in binary mode.
    names
        Arrays that must be there.
    content
        What the file holds, for messages.
    optional
        Arrays that may be there.

    Returns
    -------
    dict
        The arrays that are there, by name.

    Raises
    ------
    MissingFileError
        If there is no such file.
    DataError
        If the file is of another kind, damaged, or lacks one of the required arrays.
    ConfigError
        If ``file`` is neither a path nor a file.
    """
    names = tuple(names)
    with _opened(file, "rb") as stream:
        try:
            with np.load(stream) as archive:
                arrays = {name: archive[name] for name in (*names, *optional) if name in archive.files}
        except MemoryError:
            raise DataError(f"{name_of(file)}: larger than the memory, or damaged") from None
        except Exception:  # numpy, zipfile and zlib raise many kinds of errors for a damaged file
            raise DataError(
                f"{name_of(file)} holds no {content}: not a readable .npz file; if a run made it, remove it "
                "and run again"
            ) from None
    missing = [name for name in names if name not in arrays]
    if missing:
        raise DataError(f"{name_of(file)} holds no {content}: {', '.join(sorted(missing))} missing")
    return arrays


def write_arrays(file: File, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to a file of exactly the given name; :func:`numpy.savez` would append ``.npz`` to other suffixes.

    Raises
    ------
    OutputError
        If the file cannot be written.
    ConfigError
        If ``file`` is neither a path nor a file.
    """
    with _opened(file, "wb") as stream:
        try:
            np.savez(stream, **dict[str, Any](arrays))
        except (OSError, ValueError) as error:  # ValueError: a file that is closed
            raise _unwritable(file, error) from error


def name_of(file: File) -> str:
    """Name of a file in messages."""
    if isinstance(file, str | os.PathLike):
        return os.fspath(file)
    return str(getattr(file, "name", "the open file"))


def _opened(file: File, mode: Literal["rb", "wb"]) -> AbstractContextManager[BinaryIO]:
    """The file itself, or the file at a path, which is closed at the end."""
    verb = "read" if mode == "rb" else "write"
    if not isinstance(file, str | os.PathLike) and hasattr(file, verb):
        if hasattr(file, "encoding"):  # reading or writing bytes would fail
            raise ConfigError(f"{name_of(file)} is open as text: open it in binary mode, {mode!r}")
        return nullcontext(file)
    if not isinstance(file, str | os.PathLike):
        raise ConfigError(f"a file to {verb} must be a path or an open binary file, got {type(file).__name__}")
    try:
        return open(file, mode)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if mode == "wb":
            raise _unwritable(file, error) from error
        if isinstance(error, FileNotFoundError):
            raise MissingFileError(f"{file}: no such file") from None
        raise DataError(f"{file}: cannot be read: {_reason(error)}") from error


def _unwritable(file: File, error: Exception) -> OutputError:
    return OutputError(f"cannot write {name_of(file)}: {_reason(error)}")


def _reason(error: Exception) -> str:
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else " ".join(str(error).split())
