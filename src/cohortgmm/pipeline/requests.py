"""Memory and time that jobs request from a cluster, computed from their rule and the size of their input.

``benchmarks/resources.py`` compares the requests with the memory and time that jobs use.
"""

import ast
import functools
import os
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cohortgmm.cohort.fit_options import fit_settings
from cohortgmm.pipeline.job import SNAKEMAKE_MB
from cohortgmm.pipeline.stored import contents, megabytes

#: Seconds that EM takes from one start, to be multiplied by n K D²; about twice what is measured.
_START_SECONDS = 1.2e-8

#: With incomplete data, continuing EM from the best start takes as long as this many starts.
_LONG_RUN = 12

#: With diagonal covariances, this number replaces every factor D of the time but the first.
_DIAGONAL = 8

#: Cells that each have their own noise or gaps take longer by this number times D.
_OWN = 3

#: Quadrature nodes of a selection: the most per cell, the most in total, and the number of cells that take as long as
#: one node.
_NODES_PER_CELL, _MOST_NODES, _NODE = 64, 1 << 17, 5

#: Memory for the quadrature nodes: MB for scipy's quasi-random numbers, and bytes per node and feature.
_NODES_MB, _NODE_BYTES = 120, 64

#: Memory for one covariance per cell (noise per cell, missing features): MB for any fit, and further MB per feature.
_OWN_MB, _OWN_MB_PER_FEATURE = 80, 1

#: Number of D × D matrices that a fit with full covariances holds per component, such as covariances and their factors.
_FULL_MATRICES = 14

#: Memory for the names of all cells, which a split holds as texts, as a multiple of that for the table of cells.
_NAMES = 8

#: Memory of a merge as multiples of two sizes: of the responsibilities of all cells and of the largest patient's file.
_RESPONSIBILITIES, _LARGEST = 1.4, 5


@dataclass(frozen=True)
class Request:
    """What a job of a rule requests.

    Attributes
    ----------
    memory, memory_per_mb
        MB (those of Snakemake are added), and further MB for every MB of input. Of AnnData files, the arrays count.
    minutes, minutes_per_mb
        Time limit in minutes, and further minutes for every MB of input files.
    """

    memory: float
    memory_per_mb: float = 0.0
    minutes: float = 10.0
    minutes_per_mb: float = 0.0


REQUESTS = {
    "check_input": Request(220, 3, minutes=5),
    "preprocess": Request(500, 6, minutes_per_mb=0.02),
    "split": Request(230, 3.2, minutes_per_mb=0.01),
    "fit": Request(140, 5),
    "select": Request(120, minutes=5),
    "select_cohort": Request(150, 5),
    "refit": Request(140, 5),
    "merge": Request(280, 3, minutes_per_mb=0.01),
    "qc_cells": Request(930, 2, minutes_per_mb=0.01),
    "qc_tables": Request(300, 3, minutes_per_mb=0.01),
    "qc_cohort": Request(300, 5),
    "qc_patient": Request(350, 4),
    "qc_correction": Request(320, 5, minutes_per_mb=0.5),
    "efficiency": Request(150, minutes=5),
}


def memory(rule: str, parts: tuple[str, ...] = ()) -> Callable[..., int]:
    """Resource function: MB for a job of a rule, doubled by every further attempt.

    Parameters
    ----------
    rule
        The rule.
    parts
        Elements of AnnData files that the job reads, such as ``("obs", "obsm")``; all elements by default.
    """
    return _scaled(SNAKEMAKE_MB + REQUESTS[rule].memory, REQUESTS[rule].memory_per_mb, lambda path: _held(path, parts))


def embedding_parts(use_rep: str | None) -> tuple[str, ...]:
    """Elements of an AnnData file that hold the coordinates and annotations of its cells."""
    return ("obs", "obsm") if use_rep else ("obs", "X", "layers")


def minutes(rule: str) -> Callable[..., int]:
    """Resource function: minutes for a job of a rule, doubled by every further attempt."""
    return _scaled(REQUESTS[rule].minutes, REQUESTS[rule].minutes_per_mb, _size)


def _size(path: str) -> float:
    return os.path.getsize(path) / 1e6


def _held(path: str, parts: tuple[str, ...]) -> float:
    return megabytes(path, parts) if path.endswith(".h5ad") else _size(path)


def _scaled(base: float, per_mb: float, size: Callable[[str], float]) -> Callable[..., int]:
    """Resource function: ``base`` plus ``per_mb`` for every MB of input that exists, doubled by every further attempt."""

    def amount(wildcards: Any, input: Any, attempt: int) -> int:
        # Not input.size_mb, which Snakemake does not evaluate in an input function (for a report or checkpoint).
        total = sum(size(path) for path in input if os.path.isfile(path)) if per_mb else 0
        return int((base + per_mb * total) * 2 ** (attempt - 1))

    return amount


def split_memory(rule: str, parts: tuple[str, ...]) -> Callable[..., int]:
    """Resource function: MB for the split: those of :func:`memory`, and further ones for the names of all cells."""
    plain = memory(rule, parts)

    def amount(wildcards: Any, input: Any, attempt: int) -> int:
        files = [path for path in input if path.endswith(".h5ad") and os.path.isfile(path)]
        names = _NAMES * sum(megabytes(path, ("obs",)) for path in files)
        return plain(wildcards, input, attempt) + int(names * 2 ** (attempt - 1))

    return amount


def merge_memory(rule: str, gmm: Any) -> Callable[..., int]:
    """Resource function: MB for merging all mixtures.

    The job holds the tables of cells, the responsibilities of all cells, and the cells and the mixture of one patient at a
    time.

    Parameters
    ----------
    rule
        The rule.
    gmm
        The section ``gmm`` of the configuration.
    """
    base = SNAKEMAKE_MB + REQUESTS[rule].memory
    k = max(gmm.candidates)

    def amount(wildcards: Any, input: Any, attempt: int) -> int:
        there = [path for path in input if os.path.isfile(path)]
        obs = sum(megabytes(path, ("obs",)) for path in there if path.endswith(".h5ad"))
        sizes = {path: _size(path) for path in there if path.endswith(".npz")}
        # The positions take 8 bytes per cell, as much as one responsibility.
        responsibilities = k * sizes.pop(str(input.positions), 0.0)
        largest = max(sizes.values(), default=0.0)
        # If covariances are diagonal, the models of all patients are in memory at the same time.
        together = sum(sizes.get(str(path), 0.0) for path in input.models) if gmm.covariance_type == "diag" else 0.0
        mb = base + 3 * obs + _RESPONSIBILITIES * responsibilities + _LARGEST * largest + 3 * together
        return int(mb * 2 ** (attempt - 1))

    return amount


def most_merge_memory(path: str, embedding: tuple[str, ...], gmm: Any) -> int:
    """Upper limit of :func:`merge_memory`, known before the cohort is divided: as if one patient had all cells.

    Parameters
    ----------
    path
        The cohort.
    embedding
        The elements that are modelled; see :func:`embedding_parts`.
    gmm
        The section ``gmm`` of the configuration.
    """
    found = contents(path)
    n_cells = (found or {}).get("n_cells") or 0
    responsibilities = 8e-6 * n_cells * max(gmm.candidates)
    mb = 3 * megabytes(path, ("obs",)) + _RESPONSIBILITIES * responsibilities + _LARGEST * megabytes(path, embedding)
    return int(SNAKEMAKE_MB + REQUESTS["merge"].memory + mb)


def fit_memory(rule: str, gmm: Any) -> Callable[..., int]:
    """Resource function: MB for a fit, as :func:`memory`, and for full covariances and incomplete data.

    Parameters
    ----------
    rule
        The rule.
    gmm
        The section ``gmm`` of the configuration.
    """
    plain = memory(rule)

    def amount(wildcards: Any, input: Any, attempt: int) -> int:
        n, d = cells_shape(input.cells)
        extra = 0.0
        if gmm.covariance_type == "full" and (rule == "fit" or gmm.refit == "full"):
            k = int(wildcards.k) if hasattr(wildcards, "k") else max(gmm.candidates)
            extra += _FULL_MATRICES * 8 * k * d**2 / 1e6
        if gmm.completeness is not None:
            extra += _NODES_MB + _NODE_BYTES * _n_nodes(n) * d / 1e6
        if gmm.noise is not None or gmm.missing:
            extra += _OWN_MB + _OWN_MB_PER_FEATURE * d
        return plain(wildcards, input, attempt) + int(extra * 2 ** (attempt - 1))

    return amount


def fit_threads(rule: str, gmm: Any, most: int) -> int | Callable[..., int]:
    """Threads of a fit, or a function that returns them: one, and one more for every minute of work, up to ``most``.

    Parameters
    ----------
    rule, gmm
        See :func:`fit_minutes`.
    most
        Upper limit of threads.
    """
    if most == 1:  # a constant, so that Snakemake need not call a function for each of thousands of jobs
        return 1
    seconds = _fit_seconds(rule, gmm)
    return lambda wildcards, input: min(most, 1 + int(seconds(wildcards, input) / 60))


def fit_minutes(rule: str, gmm: Any) -> Callable[..., int]:
    """Resource function: minutes for a fit, doubled by every further attempt.

    The time is divided by the square root of the number of threads.

    Parameters
    ----------
    rule
        ``fit``, which uses the training cells, or ``refit``, which uses all cells or none. A fit requests at least the
        minutes of its rule in :data:`REQUESTS`.
    gmm
        The section ``gmm`` of the configuration.
    """
    seconds = _fit_seconds(rule, gmm)

    def amount(wildcards: Any, input: Any, threads: int, attempt: int) -> int:
        minutes = seconds(wildcards, input) / (60 * threads**0.5)
        return int(max(REQUESTS[rule].minutes, minutes) * 2 ** (attempt - 1))

    return amount


def _fit_seconds(rule: str, gmm: Any) -> Callable[..., float]:
    """Function from the wildcards and the input of a job to the seconds that it may take on one thread."""
    share = gmm.effective_train_size if rule == "fit" else float(gmm.refit == "full")
    starts = 0 if gmm.reference is not None else fit_settings(gmm)["n_init"]
    long_run = _LONG_RUN if gmm.converges_slowly else 0

    def seconds(wildcards: Any, input: Any) -> float:
        k = int(wildcards.k) if hasattr(wildcards, "k") else max(gmm.candidates)
        n, d = cells_shape(input.cells)
        cells = (starts + long_run) * n * share
        if gmm.completeness is not None:
            cells += long_run * _NODE * _n_nodes(n * share)
        is_full = gmm.covariance_type == "full" or len(array_shape(input.cells, "noise")) == 3
        features = d * (d if is_full else _DIAGONAL)
        if gmm.noise is not None or gmm.missing:
            features *= _OWN * d if is_full else _DIAGONAL
        return _START_SECONDS * k * features * cells * (1 + gmm.split_merge)

    return seconds


def _n_nodes(n: float) -> float:
    """Upper limit of quadrature nodes of a selection (``completeness``) for ``n`` observed cells."""
    return min(_NODES_PER_CELL * n, _MOST_NODES)


def cells_shape(path: str | os.PathLike) -> tuple[int, int]:
    """Numbers of cells and features in the array file of a patient; (0, 0) without such a file."""
    shape = array_shape(path, "x")
    return shape if len(shape) == 2 else (0, 0)


def array_shape(path: str | os.PathLike, name: str) -> tuple[int, ...]:
    """Shape of an array in an ``.npz`` file, read from its header without numpy; empty if there is no such array."""
    try:
        stat = os.stat(path)
    except OSError:  # the file does not exist yet
        return ()
    return _array_shape(os.fspath(path), name, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=100_000)
def _array_shape(path: str, name: str, *version: int) -> tuple[int, ...]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as array:
            magic = array.read(8)
            length = struct.unpack("<H", array.read(2)) if magic[6] == 1 else struct.unpack("<I", array.read(4))
            shape = ast.literal_eval(array.read(*length).decode("latin1"))["shape"]
        return tuple(int(size) for size in shape)
    except Exception:  # the run continues, and the job that reads the damaged file reports it
        return ()
