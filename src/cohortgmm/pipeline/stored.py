"""The contents of an AnnData file and their sizes, from its header: ``python -m cohortgmm.pipeline.stored cohort.h5ad``.

The header is read in a process of its own, as h5py and numpy would otherwise stay in the memory of Snakemake.
"""

import functools
import json
import os
import subprocess
import sys
from typing import Any


def megabytes(path: str | os.PathLike, parts: tuple[str, ...] = ()) -> float:
    """MB of the arrays of a file in memory; the file may hold them compressed.

    Parameters
    ----------
    path
        An HDF5 file; for another file the result is its size.
    parts
        Names in its root, such as ``"obsm"``; all by default.
    """
    found = contents(path)
    if found is None:
        return os.stat(path).st_size / 1e6
    sizes = found["sizes"]
    return sum(sizes.get(part, 0) for part in parts or sizes) / 1e6


def contents(path: str | os.PathLike) -> dict[str, Any] | None:
    """The contents of a file, read once for each version of it; None if it is not HDF5.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    dict
        ``root``: names in the root; ``sizes``: bytes of the arrays by name in the root; ``columns``: those of ``obs`` and
        ``var``, or None if they are unknown; ``n_cells``: rows of ``obs``; ``shapes``: shape of every element of
        ``obsm`` and ``layers`` and of X, by path, or None if it is unknown; ``uns``: names in every
        entry, and of those within its ``model``.
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
    """Names of the columns of a table in anndata's layout; None for another one."""
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
                # A link to a missing file gives None: the job that reads it reports it.
                found[f"{group}/{name}"] = _shape(elements.get(name))
    return found


def _entries(uns: Any) -> dict[str, dict[str, list[str]]]:
    """Names in every entry of ``uns``, and those within its model; none for an entry that is not a group."""
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
