"""The table ``efficiency.tsv``: memory and time that jobs requested and used, by rule."""

import os
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from cohortgmm.cohort.tables import write_table
from cohortgmm.pipeline.job import Usage

COLUMNS = (
    "rule",
    "jobs",
    "asked_mb",
    "used_mb_median",
    "used_mb_most",
    "used_share_most",
    "limit_minutes",
    "used_seconds_median",
    "used_seconds_most",
    "hours_asked",
    "hours_used",
    "suggestion",
)

#: Shares of a request: a job that uses more than the first is close to its limit; less than the second wastes memory.
_NEAR, _FAR = 0.83, 0.33

#: The suggested request, as a multiple of the largest use.
_SLACK = 1.5

#: No lower request is suggested for jobs that request up to this many MB, because Snakemake takes most of them.
_SMALL_MB = 700


def read_usage(logs: str | os.PathLike) -> list[Usage]:
    """Memory and time that all jobs used, from the tables beside their logs, with the requests of the first attempt.

    A repeated job requested twice as much, but the first request is the one that was too small.
    """
    rows = (Usage.read(path) for path in sorted(Path(logs).rglob("*.tsv")))
    return [row.first for row in rows if row is not None and row.memory_asked]


def efficiency_table(jobs: Iterable[Usage]) -> list[dict[str, Any]]:
    """One row per rule (:data:`COLUMNS`), in descending order of the hours requested."""
    rules: dict[str, list[Usage]] = {}
    for job in jobs:
        rules.setdefault(job.rule, []).append(job)
    rows = [_row(rule, jobs) for rule, jobs in rules.items()]
    return sorted(rows, key=lambda row: (-row["hours_asked"], row["rule"]))


def _row(rule: str, jobs: list[Usage]) -> dict[str, Any]:
    memory, seconds = [job.memory for job in jobs], [job.seconds for job in jobs]
    limits = [job.seconds_asked for job in jobs]
    share = max(job.need / job.memory_asked for job in jobs)
    return {
        "rule": rule,
        "jobs": len(jobs),
        "asked_mb": max(job.memory_asked for job in jobs),
        "used_mb_median": round(median(memory)),
        "used_mb_most": max(memory),
        "used_share_most": round(share, 2),
        "limit_minutes": max(limits) // 60,
        "used_seconds_median": round(median(seconds), 1),
        "used_seconds_most": round(max(seconds), 1),
        "hours_asked": round(sum(limits) / 3600, 2),
        "hours_used": round(sum(seconds) / 3600, 3),
        "suggestion": _suggestion(rule, jobs, share),
    }


def _suggestion(rule: str, jobs: list[Usage], share: float) -> str:
    """An entry for `set-resources` in the profile; empty if the requests fit."""
    found, asked = [], max(job.memory_asked for job in jobs)
    if share > _NEAR or (share < _FAR and asked > _SMALL_MB):
        found.append(f"mem_mb: {_rounded(_SLACK * max(job.need for job in jobs), 100)} * attempt")
    late = max((job.seconds / job.seconds_asked for job in jobs if job.seconds_asked), default=0.0)
    if late > _NEAR:
        found.append(f"runtime: {_rounded(_SLACK * max(job.seconds for job in jobs) / 60, 5)} * attempt")
    return f"{rule}: {{{', '.join(found)}}}" if found else ""


def _rounded(value: float, step: int) -> int:
    return int(-(-value // step) * step)


def write_efficiency(logs: str | os.PathLike, path: str | os.PathLike) -> None:
    """Write the table of a run."""
    write_table(path, COLUMNS, efficiency_table(read_usage(logs)))
