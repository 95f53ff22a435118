"""How much data the parts of an AnnData file hold, by themselves: ``python -m cohortgmm.runs.stored cohort.h5ad``.

A process of its own: h5py and numpy would stay in the memory of Snakemake, which needs neither.
"""

import functools
import json
import os
import subprocess
import sys


def megabytes(path: str | os.PathLike, parts: tuple[str, ...] = ()) -> float:
    """MB that the arrays of a file take in memory, where the file may hold them compressed.

    Parameters
    ----------
    path
        An HDF5 file; of another one, its own size counts.
    parts
        Names in its root, as ``"obsm"``; all of them by default.
    """
    stat = os.stat(path)
    found = _sizes(os.fspath(path), stat.st_mtime_ns, stat.st_size)
    if found is None:
        return stat.st_size / 1e6
    return sum(found.get(part, 0) for part in parts or found) / 1e6


@functools.lru_cache
def _sizes(path: str, *version: int) -> dict[str, int] | None:
    """Bytes of every part; None for a file of another kind, of which its own job will tell."""
    source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    command = [sys.executable, "-m", "cohortgmm.runs.stored", os.path.abspath(path)]
    result = subprocess.run(command, cwd=source, capture_output=True, check=False)
    return json.loads(result.stdout) if result.returncode == 0 else None


def _measure(path: str) -> dict[str, int]:
    import h5py

    sizes: dict[str, int] = {}

    def add(name: str, item) -> None:
        if isinstance(item, h5py.Dataset):
            part = name.split("/", 1)[0]
            sizes[part] = sizes.get(part, 0) + item.size * item.dtype.itemsize

    with h5py.File(path) as file:
        file.visititems(add)
    return sizes


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1])))
