"""What jobs ask of a cluster: memory and time, by rule, from the size of their input.

``benchmarks/resources.py`` compares what jobs ask for with what they use.
"""

import ast
import functools
import os
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cohortgmm.runs.stored import megabytes

#: MB of Snakemake itself, which runs twice in a job of a cluster.
SNAKEMAKE_MB = 270

#: Seconds for every cell × component × squared feature and iteration of EM: of plain cells, and of cells that each have
#: their own noise, missing features or selection.
_PLAIN_COST, _HIDDEN_COST = 1e-10, 2e-8

#: What stands for the second D where covariances are diagonal.
_DIAGONAL = 8

#: Iterations that are counted on, where ``max_iter`` allows as many; of corrected cells also those of every trial start.
_PLAIN_ITER, _HIDDEN_ITER, _TRIAL_ITER = 60, 300, 50


@dataclass(frozen=True)
class Request:
    """What a job of a rule asks for.

    Attributes
    ----------
    memory, memory_per_mb
        MB, Snakemake's own aside, and for every MB of input; of AnnData files, for every MB that their arrays hold.
    minutes, minutes_per_mb
        Time limit, and for every MB of input files.
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
        What it reads of AnnData files, as ``("obs", "obsm")``; all by default.
    """
    return _scaled(SNAKEMAKE_MB + REQUESTS[rule].memory, REQUESTS[rule].memory_per_mb, lambda path: _held(path, parts))


def embedding_parts(use_rep: str | None) -> tuple[str, ...]:
    """What is read of an AnnData file for its cells' coordinates and annotations."""
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

    def amount(wildcards, input, attempt) -> int:
        # Not input.size_mb: within an input function (a report, a checkpoint) Snakemake leaves it unevaluated.
        total = sum(size(path) for path in input if os.path.isfile(path)) if per_mb else 0
        return int((base + per_mb * total) * 2 ** (attempt - 1))

    return amount


def fit_minutes(rule: str, gmm: Any, n_threads: int) -> Callable[..., int]:
    """Resource function: minutes for a fit, doubled by every further attempt.

    Parameters
    ----------
    rule
        The rule, whose limit comes on top.
    gmm
        The section ``gmm`` of the configuration.
    n_threads
        Threads of a fit.
    """
    request, settings = REQUESTS[rule], gmm.settings
    n_init, max_iter = settings["n_init"], settings["max_iter"]
    if gmm.is_hidden:
        n_iter, cost = n_init * min(_TRIAL_ITER, max_iter) + min(_HIDDEN_ITER, max_iter), _HIDDEN_COST
    else:
        n_iter, cost = n_init * min(_PLAIN_ITER, max_iter), _PLAIN_COST
    cost *= n_iter * (1 + gmm.split_merge) / (60 * n_threads)

    def amount(wildcards, input, attempt) -> int:
        k = int(wildcards.k) if hasattr(wildcards, "k") else max(gmm.candidates)
        n, d = cells_shape(input.cells) if os.path.isfile(input.cells) else (0, 0)
        work = n * k * d * (d if gmm.covariance_type == "full" else _DIAGONAL)
        return int((request.minutes + cost * work) * 2 ** (attempt - 1))

    return amount


def cells_shape(path: str | os.PathLike) -> tuple[int, int]:
    """Numbers of cells and features in the array file of a patient, from its header (numpy would cost the start of a run).

    A file of another kind has none: its own job will say so.
    """
    stat = os.stat(path)
    return _cells_shape(os.fspath(path), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=100_000)
def _cells_shape(path: str, *version: int) -> tuple[int, int]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open("x.npy") as array:
            magic = array.read(8)
            length = struct.unpack("<H", array.read(2)) if magic[6] == 1 else struct.unpack("<I", array.read(4))
            n, d = ast.literal_eval(array.read(*length).decode("latin1"))["shape"]
        return int(n), int(d)
    except Exception:  # whatever a damaged file leads to, its own job will tell; the run goes on
        return 0, 0
