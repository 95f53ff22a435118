"""Names, shapes and sizes of the arrays in an AnnData file, without reading the arrays.

The file is opened in a separate process (``python -m cohortgmm.pipeline.stored cohort.h5ad``), because h5py and numpy
would otherwise stay in the memory of Snakemake.
"""

import functools
import json
import os
import subprocess
import sys
from typing import Any


def megabytes(path: str | os.PathLike, parts: tuple[str, ...] = ()) -> float:
    """MB that the arrays of a file take in memory, without the compression of the file.

    Parameters
    ----------
    path
        An HDF5 file. For any other file, the result is the size of the file.
    parts
        Elements at the root of the file that count, such as ``"obsm"``; all elements by default.
    """
    found = contents(path)
    if found is None:
        return os.stat(path).st_size / 1e6
    sizes = found["sizes"]
    return sum(sizes.get(part, 0) for part in parts or sizes) / 1e6


def contents(path: str | os.PathLike) -> dict[str, Any] | None:
    """The contents of a file; None if it is not HDF5. Read again only if the file has changed.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    dict
        ``root``: names of the elements at the root; ``sizes``: bytes of the arrays in each of them; ``columns``: names
        of the columns of ``obs`` and of ``var``, None if unknown; ``n_cells``: rows of ``obs``; ``shapes``: by
        path, the shape of X and of every element of ``obsm`` and ``layers``, None if unknown; ``uns``: the names within
        every entry, and the names within its ``model``.
    """
    stat = os.stat(path)
    return _contents(os.fspath(path), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache
def _contents(path: str, *version: int) -> dict[str, Any] | None:
    source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    command = [sys.executable, "-m", "cohortgmm.pipeline.stored", os.path.abspath(path)]
    result = subprocess.run(command, cwd=source, capture_output=True, check=False)
    return json.loads(result.stdout) if result.returncode == 0 else None


def _read(path: str) -> dict[str, Any]:
    import h5py

    sizes: dict[str, int] = {}

    def add(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            part = name.split("/", 1)[0]
            sizes[part] = sizes.get(part, 0) + item.size * item.dtype.itemsize

    with h5py.File(path) as file:
        file.visititems(add)
        return {
            "root": list(file),
            "sizes": sizes,
            "columns": {name: _columns(file.get(name)) for name in ("obs", "var")},
            "n_cells": next(iter(_shape(file.get("obs")) or ()), None),
            "shapes": _shapes(file),
            "uns": _entries(file.get("uns")),
        }


def _columns(table: Any) -> list[str] | None:
    """Names of the columns of a table that anndata wrote; None for anything else."""
    names = getattr(table, "attrs", {}).get("column-order")
    return None if names is None else [_text(name) for name in names]


def _text(name: Any) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


def _shapes(file: Any) -> dict[str, list[int] | None]:
    found = {"X": _shape(file["X"])} if "X" in file else {}
    for group in ("obsm", "layers"):
        elements = file.get(group)
        if hasattr(elements, "keys"):
            for name in elements:
                # For a link to a missing file, `get` returns None; the job that reads the element reports the error.
                found[f"{group}/{name}"] = _shape(elements.get(name))
    return found


def _entries(uns: Any) -> dict[str, dict[str, list[str]]]:
    """For every entry of ``uns``, its names and those within its ``model``; empty for an entry that is not a group."""
    found = {}
    for key in uns if hasattr(uns, "keys") else ():
        entry = uns.get(key)
        names = list(entry) if hasattr(entry, "keys") else []
        found[key] = {name: list(getattr(entry.get(name), "keys", list)()) if name == "model" else [] for name in names}
    return found


def _shape(element: Any) -> list[int] | None:
    """Shape of an array, a sparse matrix or a table; None if it is unknown."""
    if element is None:
        return None
    attributes = element.attrs
    if "column-order" in attributes:
        index = element.get(_text(attributes.get("_index", "")))
        return None if index is None else [int(index.shape[0]), len(attributes["column-order"])]
    shape = attributes.get("shape", getattr(element, "shape", None))
    return None if shape is None else [int(size) for size in shape]


if __name__ == "__main__":
    print(json.dumps(_read(sys.argv[1])))
