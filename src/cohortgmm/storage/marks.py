"""Notes in ``.npz`` files of what their content was made with."""

import os
import zipfile


def mark_archive(path: str | os.PathLike, mark: str) -> None:
    """Note in an ``.npz`` file what its content was made with; numpy does not see it."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = mark.encode("ascii")


def mark_of_archive(path: str | os.PathLike) -> str:
    """What :func:`mark_archive` noted; empty if there is nothing, or no readable file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.comment.decode("ascii")
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError):
        return ""
