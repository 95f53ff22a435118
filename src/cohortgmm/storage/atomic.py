"""Writing files so that a half-written file never has the final name."""

import filecmp
import glob
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cohortgmm.errors import CohortgmmError, OutputError

#: Name of this machine in temporary file names, because process ids are unique on one machine only.
_NODE = f"{zlib.crc32(os.uname().nodename.encode()):08x}"

_HOUR = 3600


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, keep_if_same: bool = False) -> Iterator[Path]:
    """Give a temporary path beside ``path``, which is renamed to ``path`` on success and removed on failure.

    Parameters
    ----------
    path
        The final name. Missing parent folders are made.
    keep_if_same
        Keep an existing file, with its modification time, if its content is the same.

    Yields
    ------
    Path
        Where to write. It has the suffix of ``path``, as some writers choose the format by it.

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
    """Remove temporary files of ``path`` whose process was killed; those of other machines after an hour."""
    for leftover in path.parent.glob(f".*.{glob.escape(path.name)}"):
        writer = leftover.name[1:].removesuffix(f".{path.name}")
        node, _, process = writer.partition("-")
        if not process.isdigit():
            continue
        with suppress(FileNotFoundError):  # another process may have removed the same file
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
    """Turn an error of the operating system about ``path``, its temporary name or its folders into an OutputError."""
    try:
        yield
    except OSError as error:
        # The error of a failed copy names both files, the error of a failed write names none.
        names = (error.filename, error.filename2)
        about = {os.path.abspath(name) for name in names if isinstance(name, (str, os.PathLike))}
        ours = {os.path.abspath(name) for name in (path, temporary, *path.absolute().parents)}
        if isinstance(error, CohortgmmError) or (about and not about & ours):
            raise
        reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
        remedy = "free space"
        if "unable to lock file" in str(error):  # the error of HDF5 on a file system without locks
            reason, remedy = "it cannot be locked here", "set the environment variable HDF5_USE_FILE_LOCKING=FALSE"
        raise OutputError(
            f"cannot write {path}: {reason}; {remedy}, or choose another folder with --directory"
        ) from error
