"""Reading ``.npz`` files, with one clear line for those that are damaged or of another kind."""

import os
import zipfile
from collections.abc import Iterable

import numpy as np

from cohortgmm.errors import DataError


def read_arrays(
    file: str | os.PathLike, names: Iterable[str], content: str = "mixture", optional: Iterable[str] = ()
) -> dict[str, np.ndarray]:
    """Arrays of an ``.npz`` file by name.

    Parameters
    ----------
    file
        Its path.
    names
        Arrays that must be there.
    content
        What the file holds, for messages.
    optional
        Arrays that may be there.

    Raises
    ------
    DataError
        If the file is of another kind, damaged, or without one of them.
    """
    try:
        # np.load leaves a damaged file open that it opened itself.
        with open(file, "rb") as stream, np.load(stream) as archive:
            arrays = {name: archive[name] for name in (*names, *optional) if name in archive.files}
    except (TypeError, ValueError, EOFError, zipfile.BadZipFile):
        raise DataError(f"{file} holds no {content}: not a readable .npz file; remove it and run again") from None
    missing = [name for name in names if name not in arrays]
    if missing:
        raise DataError(f"{file} holds no {content}: {', '.join(sorted(missing))} missing")
    return arrays
