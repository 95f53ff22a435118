"""The failures of a run: one line per failed job, with patient and k, the error, the state in SLURM, and a remedy."""

import errno
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cohortgmm.cohort.tables import read_rows, write_table
from cohortgmm.pipeline.job import ERROR_PREFIX
from cohortgmm.pipeline.slurm.commands import FORGOTTEN, is_never
from cohortgmm.storage.names import describe

#: Name of the table of failures in the results folder.
FAILED_TABLE = "failed.tsv"

#: Advice for a job that SLURM ended, by the job's terminal state; `{rule}`, `{memory}` and `{minutes}` are filled in.
_REMEDIES = {
    "OUT_OF_MEMORY": "give it more: --set-resources '{rule}:mem_mb={memory}*attempt'",
    "TIMEOUT": "give it longer: --set-resources '{rule}:runtime={minutes}*attempt'",
    "DEADLINE": "run again",
    "CANCELLED": "somebody cancelled it: run again",
    "PREEMPTED": "run again, or on a partition without preemption",
    "NODE_FAIL": "run again",
    "BOOT_FAIL": "run again",
    FORGOTTEN: "SLURM has lost it: run again",
}
_NEVER = (
    "SLURM would never have started it: lower its limits (--set-resources '{rule}:runtime=...', '{rule}:mem_mb=...'), or "
    "choose another partition"
)
_UNKNOWN = "see the output of the SLURM job"
_FULL = f"{os.strerror(errno.ENOSPC)} for its log: free space, then run again"
_KILLED = (
    "it was killed (out of memory?): give it more with --set-resources '{rule}:mem_mb={memory}*attempt', or run again"
)

#: Seconds by which the clocks of two nodes may differ.
_CLOCKS_APART = 120

#: A disk with fewer free bytes counts as full.
_FULL_BYTES = 1 << 14


@dataclass(frozen=True)
class Failure:
    """A job that failed and was not repeated successfully.

    Attributes
    ----------
    rule, patient, k
        Rule of the job, and patient and k as in file names; patient and k are empty if the job has none.
    reason
        The error, and how to avoid it.
    log
        Path of its log.
    slurm_job, slurm_state, slurm_log
        Number, terminal state and path of the output of its SLURM job; empty for a local job.
    """

    rule: str
    patient: str
    k: str
    reason: str
    log: str
    slurm_job: str = ""
    slurm_state: str = ""
    slurm_log: str = ""

    def __str__(self) -> str:
        job = f"SLURM job {self.slurm_job} {self.slurm_state}".rstrip() if self.slurm_job else ""
        return f"{self.reason}  [{', '.join(filter(None, [self.log, job, self.slurm_log]))}]"


def event_of(record: logging.LogRecord) -> str:
    """Name of Snakemake's event in a record of its log; empty if the record has no event."""
    return getattr(getattr(record, "event", None), "name", "")


class JobErrors(logging.Handler):
    """Handler that keeps, for every job number of Snakemake, the last log record that reports an error of the job."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._started = time.time()
        self._last: dict[Any, Any] = {}  # records with Snakemake's own attributes
        self._error = ""

    def emit(self, record: Any) -> None:
        event = event_of(record)
        if event == "JOB_ERROR":
            self._last[record.jobid] = record
        elif event == "JOB_INFO":  # the job starts again, so the error of its last attempt no longer counts
            self._last.pop(record.jobid, None)
        elif event == "ERROR":
            self._error = " ".join(record.getMessage().split())

    def failures(self, jobs: Iterable[Any], numbers: Any, on_cluster: bool = False) -> list[Failure]:
        """A :class:`Failure` for each of some failed jobs.

        Parameters
        ----------
        jobs
            Snakemake's jobs that failed and are not repeated; a group counts as its jobs.
        numbers
            Function from a job to Snakemake's number of the job.
        on_cluster
            Whether the jobs ran on SLURM.
        """
        since = self._started - _CLOCKS_APART
        single = [member for job in jobs for member in getattr(job, "jobs", [job])]  # a group is replaced by its jobs
        unseen = (self._error or _UNKNOWN) if on_cluster else _KILLED
        found = [_failure(job, self._last.get(numbers(job)), since, unseen) for job in single]
        return sorted(found, key=lambda failure: (failure.rule, failure.patient, int(failure.k or 0)))


def _failure(job: Any, record: Any, since: float, unseen: str) -> Failure:
    log = str(job.log[0]) if job.log else ""
    rule, wildcards = job.rule.name, job.wildcards
    text = "" if record is None else f"{record.getMessage()} {getattr(record, 'rule_msg', '')}"
    state = match[1] if (match := re.search(r"SLURM status is: '(\w+)", text)) else ""
    number = "" if record is None else str((getattr(record, "aux", None) or {}).get("external_jobid") or "")
    others = [] if record is None or not number else [path for path in record.log if path != log]
    slurm_log = next((path for path in others if Path(path).name == f"{number}.log"), "")
    if state == "FAILED" and _ran_out_of_memory(slurm_log):
        state = "OUT_OF_MEMORY"
    refusal = "" if number else _refusal(text)
    reason = last_error(log, since)
    if refusal:
        reason = f"{describe(wildcards) or rule}: SLURM refused the job: {refusal}"
    elif not reason or state in _REMEDIES or is_never(state):
        unknown = _FULL if _disk_is_full(log) else _NEVER if is_never(state) else _UNKNOWN if number else unseen
        remedy = _REMEDIES.get(state, unknown)
        for name, value in (("rule", rule), ("memory", _doubled(job, "mem_mb")), ("minutes", _doubled(job, "runtime"))):
            remedy = remedy.replace(f"{{{name}}}", value)
        attempts = f", {job.attempt} attempts" if job.attempt > 1 else ""
        reason = f"{describe(wildcards) or rule}: {rule} ended without a result{attempts}; {remedy}"
    return Failure(
        rule=rule,
        patient=str(getattr(wildcards, "patient", "")),
        k=str(getattr(wildcards, "k", "")),
        reason=reason,
        log=log,
        slurm_job=number,
        slurm_state=state,
        slurm_log=slurm_log,
    )


def _doubled(job: Any, resource: str) -> str:
    return str(2 * int(job.resources.get(resource, 0)))


def _refusal(text: str) -> str:
    """SLURM's message about a job that it did not accept; empty if it accepted the job."""
    found = re.search(
        r"The error message was '(.*?)'\.\n|submission failed with exception: (.*?)(?:For further error details|\Z)",
        text,
        re.S,
    )
    lines = (found[1] or found[2] or "").splitlines() if found else []
    lines = [line.strip().removeprefix("sbatch: error: ") for line in lines]
    return "; ".join(filter(None, lines))


def _disk_is_full(log: str) -> bool:
    """Whether the disk is so full that a job could not write its log."""
    try:
        return shutil.disk_usage(Path(log).parent).free < _FULL_BYTES
    except OSError:
        return False


def _ran_out_of_memory(slurm_log: str) -> bool:
    """Whether the output of a SLURM job reports a lack of memory, in which case its state may still be FAILED."""
    try:
        text = Path(slurm_log).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return re.search(r"oom.kill|Out Of Memory|exceeded (job )?memory limit", text, re.IGNORECASE) is not None


def last_error(log: str, since: float = 0.0) -> str:
    """The error in the last line of a job's log; empty if there is none, or if the log is older than ``since``."""
    try:
        if os.stat(log).st_mtime < since:
            return ""
        last = Path(log).read_text(encoding="utf-8", errors="replace").rstrip().rsplit("\n", 1)[-1]
    except OSError:
        return ""
    return last.removeprefix(ERROR_PREFIX) if last.startswith(ERROR_PREFIX) else ""


def write_failures(results: str, failures: Iterable[Failure]) -> None:
    """Write the table of failures; if there are none, remove the table of an earlier run."""
    path, rows = Path(results) / FAILED_TABLE, [vars(failure) for failure in failures]
    if rows:
        write_table(path, [field.name for field in fields(Failure)], rows)
    else:
        path.unlink(missing_ok=True)


def read_failures(results: str) -> list[Failure]:
    """The failures of the last run."""
    names = [field.name for field in fields(Failure)]
    try:
        rows = read_rows(Path(results) / FAILED_TABLE, names, "failures", "remove it")
        return [Failure(**{name: row[name] for name in names}) for row in rows]
    except FileNotFoundError:
        return []
