"""What jobs asked for against what they used, by rule, from their logs."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from cohortgmm.cohort.tables import write_table
from cohortgmm.pipeline.job import Usage
from cohortgmm.pipeline.requests import SNAKEMAKE_MB

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

#: Shares of the request that are neither too near to it nor too far from it.
_NEAR, _FAR = 0.83, 0.33

#: A new request is so much larger than the largest use.
_SLACK = 1.5

#: Requests of memory up to this are left alone: they are mostly Snakemake's own.
_SMALL_MB = 700


@dataclass(frozen=True)
class JobUsage:
    """One job."""

    rule: str
    usage: Usage

    @property
    def need(self) -> int:
        """MB that the job needs on a cluster, with Snakemake's own."""
        return self.usage.memory + SNAKEMAKE_MB


def read_usage(logs: str | Path) -> list[JobUsage]:
    """What all jobs used, from the last lines of their logs (``logs/<rule>.log``, ``logs/<rule>/<patient>...``)."""
    logs, found = Path(logs), []
    for path in sorted(logs.rglob("*.log")):
        usage = Usage.find(_tail(path))
        if usage is not None and usage.memory_asked:
            # Were jobs retried with twice as much, it is the first request that did not fit.
            found.append(JobUsage(path.relative_to(logs).with_suffix("").parts[0], usage.first))
    return found


def _tail(path: Path, size: int = 4096) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def efficiency_table(jobs: Iterable[JobUsage]) -> list[dict[str, Any]]:
    """One row a rule (:data:`COLUMNS`), the largest requests first."""
    rules: dict[str, list[JobUsage]] = {}
    for job in jobs:
        rules.setdefault(job.rule, []).append(job)
    rows = [_row(rule, jobs) for rule, jobs in rules.items()]
    return sorted(rows, key=lambda row: (-row["hours_asked"], row["rule"]))


def _row(rule: str, jobs: list[JobUsage]) -> dict[str, Any]:
    memory, seconds = [job.usage.memory for job in jobs], [job.usage.seconds for job in jobs]
    limits = [job.usage.seconds_asked for job in jobs]
    share = max(job.need / job.usage.memory_asked for job in jobs)
    return {
        "rule": rule,
        "jobs": len(jobs),
        "asked_mb": max(job.usage.memory_asked for job in jobs),
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


def _suggestion(rule: str, jobs: list[JobUsage], share: float) -> str:
    """What to put into the profile, under `set-resources`; empty where the requests fit."""
    found, asked = [], max(job.usage.memory_asked for job in jobs)
    if share > _NEAR or (share < _FAR and asked > _SMALL_MB):
        found.append(f"mem_mb: {_rounded(_SLACK * max(job.need for job in jobs), 100)} * attempt")
    late = max((job.usage.seconds / job.usage.seconds_asked for job in jobs if job.usage.seconds_asked), default=0.0)
    if late > _NEAR:
        found.append(f"runtime: {_rounded(_SLACK * max(job.usage.seconds for job in jobs) / 60, 5)} * attempt")
    return f"{rule}: {{{', '.join(found)}}}" if found else ""


def _rounded(value: float, step: int) -> int:
    return int(-(-value // step) * step)


def write_efficiency(logs: str | Path, path: str | Path) -> None:
    """Write the table of a run."""
    write_table(path, COLUMNS, efficiency_table(read_usage(logs)))
