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

from cohortgmm.cohort.fit_options import fit_settings
from cohortgmm.pipeline.job import SNAKEMAKE_MB
from cohortgmm.pipeline.stored import contents, megabytes

#: Seconds for a cell, a component and an iteration of EM, about twice what is measured: of plain cells for every squared
#: feature; of cells that each have noise or gaps of their own for every cubed feature, with diagonals for every feature.
_PLAIN_COST, _OWN_COST, _OWN_DIAGONAL_COST = 2e-10, 7.5e-10, 1.5e-8

#: What stands for the second D of plain cells where covariances are diagonal.
_DIAGONAL = 8

#: Iterations that are counted on, where ``max_iter`` allows as many: of every start; of hidden cells after trial starts.
_PLAIN_ITER, _HIDDEN_ITER, _TRIAL_ITER = 60, 600, 50

#: Nodes that stand for unseen cells: in trial starts, for every cell, at most; one of them takes as long as so many cells.
_TRIAL_NODES, _NODES_PER_CELL, _MOST_NODES, _NODE = 1 << 12, 64, 1 << 17, 5

#: MB that nodes bring with them (scipy's quasi-random numbers), and bytes for a node and feature.
_NODES_MB, _NODE_BYTES = 120, 64

#: MB for the covariances of cells that each have noise or gaps of their own, in all and for every feature.
_OWN_MB, _OWN_MB_PER_FEATURE = 80, 1

#: Full matrices that a fit holds for every component: covariances, their factors, moments, and those of the last step.
_FULL_MATRICES = 14

#: Multiples of the table of cells beside it, of which a split holds the names of all cells as texts.
_NAMES = 8

#: Multiples of what a merge holds: of the responsibilities of all cells, of the largest file of a patient.
_RESPONSIBILITIES, _LARGEST = 1.4, 5


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


def split_memory(rule: str, parts: tuple[str, ...]) -> Callable[..., int]:
    """Resource function: MB for the division into patients, as :func:`memory`, and for the names of all cells."""
    plain = memory(rule, parts)

    def amount(wildcards, input, attempt) -> int:
        files = [path for path in input if path.endswith(".h5ad") and os.path.isfile(path)]
        names = _NAMES * sum(megabytes(path, ("obs",)) for path in files)
        return plain(wildcards, input, attempt) + int(names * 2 ** (attempt - 1))

    return amount


def merge_memory(rule: str, gmm: Any) -> Callable[..., int]:
    """Resource function: MB for gathering all mixtures.

    It holds the responsibilities of all cells, and of one patient at a time the cells and the mixture, beside the tables of
    cells.

    Parameters
    ----------
    rule
        The rule.
    gmm
        The section ``gmm`` of the configuration.
    """
    base = SNAKEMAKE_MB + REQUESTS[rule].memory
    k = max(gmm.candidates)

    def amount(wildcards, input, attempt) -> int:
        there = [path for path in input if os.path.isfile(path)]
        obs = sum(megabytes(path, ("obs",)) for path in there if path.endswith(".h5ad"))
        sizes = {path: _size(path) for path in there if path.endswith(".npz")}
        # 8 bytes a cell, as long as a responsibility.
        responsibilities = k * sizes.pop(str(input.positions), 0.0)
        largest = max(sizes.values(), default=0.0)
        # Means, and of diagonal covariances all, are held together.
        together = sum(sizes.get(str(path), 0.0) for path in input.models) if gmm.covariance_type == "diag" else 0.0
        mb = base + 3 * obs + _RESPONSIBILITIES * responsibilities + _LARGEST * largest + 3 * together
        return int(mb * 2 ** (attempt - 1))

    return amount


def most_merge_memory(path: str, embedding: tuple[str, ...], gmm: Any) -> int:
    """MB that the merge asks for at most, before the cohort was divided: as :func:`merge_memory` for a single patient.

    Parameters
    ----------
    path
        The cohort.
    embedding
        What is modelled of it; see :func:`embedding_parts`.
    gmm
        The section ``gmm`` of the configuration.
    """
    found = contents(path)
    n_cells = (found or {}).get("n_cells") or 0
    responsibilities = 8e-6 * n_cells * max(gmm.candidates)
    mb = 3 * megabytes(path, ("obs",)) + _RESPONSIBILITIES * responsibilities + _LARGEST * megabytes(path, embedding)
    return int(SNAKEMAKE_MB + REQUESTS["merge"].memory + mb)


def fit_memory(rule: str, gmm: Any) -> Callable[..., int]:
    """Resource function: MB for a fit, as :func:`memory`, and for what hides the cells.

    Parameters
    ----------
    rule
        The rule.
    gmm
        The section ``gmm`` of the configuration.
    """
    plain = memory(rule)

    def amount(wildcards, input, attempt) -> int:
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
    """Threads, or a function for them: as many as have a minute's work each, ``most`` at most.

    Parameters
    ----------
    rule, gmm
        As of :func:`fit_minutes`.
    most
        Most threads.
    """
    if most == 1:  # not a call for each of thousands of jobs
        return 1
    seconds = _fit_seconds(rule, gmm)
    return lambda wildcards, input: min(most, 1 + int(seconds(wildcards, input) / 60))


def fit_minutes(rule: str, gmm: Any) -> Callable[..., int]:
    """Resource function: minutes for a fit, doubled by every further attempt; threads save the square root of their number.

    Parameters
    ----------
    rule
        The rule, whose limit is the least: ``fit`` takes the training cells, ``refit`` all or none.
    gmm
        The section ``gmm`` of the configuration.
    """
    seconds = _fit_seconds(rule, gmm)

    def amount(wildcards, input, threads, attempt) -> int:
        minutes = seconds(wildcards, input) / (60 * threads**0.5)
        return int(max(REQUESTS[rule].minutes, minutes) * 2 ** (attempt - 1))

    return amount


def _fit_seconds(rule: str, gmm: Any) -> Callable[..., float]:
    """Function from the wildcards and the input of a job to the seconds that it may take on one thread."""
    share = gmm.effective_train_size if rule == "fit" else float(gmm.refit == "full")
    n_iter, n_trial = _iterations(gmm)

    def seconds(wildcards, input) -> float:
        k = int(wildcards.k) if hasattr(wildcards, "k") else max(gmm.candidates)
        n, d = cells_shape(input.cells)
        n *= share
        steps = (n_iter + n_trial) * n
        if gmm.completeness is not None:
            steps += _NODE * (n_iter * _n_nodes(n) + n_trial * min(_TRIAL_NODES, _n_nodes(n)))
        return k * _cost(gmm, input.cells, d) * steps * (1 + gmm.split_merge)

    return seconds


def _iterations(gmm: Any) -> tuple[int, int]:
    """Iterations of a fit, and of its trial starts."""
    settings = fit_settings(gmm)
    n_init, max_iter = settings["n_init"], settings["max_iter"]
    if not gmm.converges_slowly:
        return n_init * min(_PLAIN_ITER, max_iter), 0
    return min(_HIDDEN_ITER, max_iter), n_init * min(_TRIAL_ITER, max_iter) if gmm.reference is None else 0


def _n_nodes(n: float) -> float:
    """Most nodes that stand for unseen cells of a patient with so many seen ones."""
    return min(_NODES_PER_CELL * n, _MOST_NODES)


def _cost(gmm: Any, path: str, d: int) -> float:
    """Seconds for a cell, a component and an iteration."""
    is_full = gmm.covariance_type == "full"
    if gmm.noise is None and not gmm.missing:
        return _PLAIN_COST * d * (d if is_full else _DIAGONAL)
    if is_full or len(array_shape(path, "noise")) == 3:
        return _OWN_COST * d**3
    return _OWN_DIAGONAL_COST * d


def cells_shape(path: str | os.PathLike) -> tuple[int, int]:
    """Numbers of cells and features in the array file of a patient; (0, 0) where there is none, or one of another kind."""
    shape = array_shape(path, "x")
    return shape if len(shape) == 2 else (0, 0)


def array_shape(path: str | os.PathLike, name: str) -> tuple[int, ...]:
    """Shape of an array in such a file, from its header (numpy would cost the start of a run); empty if there is none."""
    try:
        stat = os.stat(path)
    except OSError:  # only foreseen
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
    except Exception:  # whatever a damaged file leads to, its own job will tell; the run goes on
        return ()
