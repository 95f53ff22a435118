"""Marks in ``.npz`` files: short texts that stand for the inputs and options their content was computed with."""

import os
import zipfile


def mark_archive(path: str | os.PathLike[str], mark: str) -> None:
    """Write a mark into an ``.npz`` file, as the comment of the archive, which numpy ignores."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = mark.encode("ascii")


def mark_of_archive(path: str | os.PathLike[str]) -> str:
    """The mark of an ``.npz`` file; empty if it has none, or cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.comment.decode("ascii")
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError):
        return ""
