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
        MB, Snakemake's own aside, and for every MB of input.
    minutes, minutes_per_mb
        Time limit.
    """

    memory: float
    memory_per_mb: float = 0.0
    minutes: float = 10.0
    minutes_per_mb: float = 0.0


REQUESTS = {
    "check_input": Request(250, 1, minutes=5),
    "preprocess": Request(700, 30, minutes_per_mb=0.2),
    "split": Request(250, 3, minutes_per_mb=0.02),
    "fit": Request(120, 5),
    "select": Request(120, minutes=5),
    "select_cohort": Request(150, 5),
    "refit": Request(120, 5),
    "merge": Request(300, 3, minutes_per_mb=0.05),
    "qc_cells": Request(700, 4, minutes_per_mb=0.05),
    "qc_tables": Request(350, 3, minutes_per_mb=0.02),
    "qc_cohort": Request(350, 5),
    "qc_patient": Request(350, 4),
    "qc_correction": Request(350, 5, minutes_per_mb=0.5),
    "efficiency": Request(200, minutes=5),
}


def memory(rule: str) -> Callable[..., int]:
    """Resource function: MB for a job of a rule, doubled by every further attempt."""
    return _scaled(SNAKEMAKE_MB + REQUESTS[rule].memory, REQUESTS[rule].memory_per_mb)


def minutes(rule: str) -> Callable[..., int]:
    """Resource function: minutes for a job of a rule, doubled by every further attempt."""
    return _scaled(REQUESTS[rule].minutes, REQUESTS[rule].minutes_per_mb)


def _scaled(base: float, per_mb: float) -> Callable[..., int]:
    """Resource function: ``base`` plus ``per_mb`` for every MB of input that exists, doubled by every further attempt."""

    def amount(wildcards, input, attempt) -> int:
        # Not input.size_mb: within an input function (a report, a checkpoint) Snakemake leaves it unevaluated.
        size = sum(os.path.getsize(path) for path in input if os.path.isfile(path)) / 1e6
        return int((base + per_mb * size) * 2 ** (attempt - 1))

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
