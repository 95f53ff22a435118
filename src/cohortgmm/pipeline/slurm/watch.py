"""What Snakemake's SLURM plugin would lose sight of, or take for a failure (seen in 2.8.0).

- It forgets its jobs where all its questions of a round stay without an answer, and waits for ever for a job that was
  preempted and is not requeued, that SLURM has forgotten, or that SLURM would never start.
- It asks ever more rarely while no job ends, every 180 s at last: a job that has ended waits as long for the next to start,
  and SLURM may have forgotten it.
- A job that it cannot submit because SLURM does not answer has failed.
"""

import asyncio
import logging
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

#: No pause between two looks becomes longer than this many times the first; where SLURM keeps ended jobs for less, the
#: plugin asks sacct if there is one, whatever the profile says.
_GROWTH = 3

#: A job that SLURM does not list in so many looks, one after the other, is lost.
_LOOKS = 3

#: The state of a job that SLURM does not know any more.
FORGOTTEN = "FORGOTTEN"

#: Why SLURM keeps a job in its queue for ever.
_NEVER = re.compile(r"PartitionTimeLimit|PartitionNodeLimit|BadConstraints|(Assoc|QOS)Max\w+PerJob(Limit)?")

#: What is said where SLURM does not answer to a submission, and seconds until it is asked again.
_NO_ANSWER = re.compile(
    r"Unable to contact slurm controller|Socket timed out|temporarily unavailable|Zero Bytes were transmitted"
    r"|Unable to test the validity of the given or guessed SLURM account"
)
_AGAIN_SECONDS = 15

_logger = logging.getLogger("snakemake.logging")


def watch_jobs(executor: Any, age: int | None) -> None:
    """Let an executor of the plugin keep all its jobs in view, until each has succeeded or failed.

    Parameters
    ----------
    executor
        The executor of a run that begins.
    age
        Seconds that SLURM keeps ended jobs (:func:`min_job_age`); None if it does not say.
    """
    watch = _Watch(executor, age)
    executor.report_job_success = watch.noting(executor.report_job_success)
    executor.report_job_error = watch.noting(executor.report_job_error)
    executor.check_active_jobs = watch.check_active_jobs
    if hasattr(executor, "_job_submission_executor"):  # not all versions submit beside the run
        executor._report_job_error_threadsafe = _submitting_again(executor, executor._report_job_error_threadsafe)


class _Watch:
    """A look at the jobs as the plugin has it, and then at those of which it said nothing."""

    def __init__(self, executor: Any, age: int | None) -> None:
        self._executor, self._check = executor, executor.check_active_jobs
        self._told: set[int] = set()
        self._absences: Counter[str] = Counter()
        self._pause: float = longest_pause(executor)
        self._by_sacct = asks_sacct(age, self._pause)
        if age and not self._by_sacct:
            self._pause = min(self._pause, age / 2)

    def noting(self, report: Callable[..., None]) -> Callable[..., None]:
        """The same function, but so that it is known of which jobs something was said."""

        def noted(job: Any, *arguments: Any, **options: Any) -> None:
            self._told.add(id(job))
            report(job, *arguments, **options)

        return noted

    async def check_active_jobs(self, jobs: Sequence[Any]) -> AsyncIterator[Any]:
        """Report the jobs that have ended; the others."""
        executor = self._executor
        self._told.clear()
        async for _ in self._check(jobs):
            pass
        left = [job for job in jobs if id(job) not in self._told]
        queue = await asyncio.to_thread(queued, f"--name={executor.run_uuid}") if left else None
        for job in left:
            if state := "" if queue is None else self._fate(job.external_jobid, queue):
                message = f"SLURM-job '{job.external_jobid}' failed, SLURM status is: '{state}'. "
                executor.report_job_error(job, msg=message)
            else:
                yield job
        executor.next_seconds_between_status_checks = min(executor.next_seconds_between_status_checks, self._pause)

    def _fate(self, number: str, queue: Mapping[str, tuple[str, str]]) -> str:
        """The state in which a job that the plugin takes for active has ended; empty if it has not."""
        state, reason = queue.get(number, ("", ""))
        if state == "PREEMPTED":  # one that is requeued is pending
            return state
        if state == "PENDING" and is_never(reason):
            _said("scancel", number)
            return reason
        listed = number.split("_")[0] in {other.split("_")[0] for other in queue}  # an array pends under one number
        self._absences[number] = 0 if listed or self._by_sacct else self._absences[number] + 1
        return FORGOTTEN if self._absences[number] == _LOOKS else ""


def _submitting_again(executor: Any, report: Callable[[Any, str], None]) -> Callable[[Any, str], None]:
    """Instead of ``report``, which takes a job that was not submitted for failed: where SLURM did not answer, wait."""
    pool = executor._job_submission_executor

    def report_or_wait(info: Any, message: str) -> None:
        if not _NO_ANSWER.search(message):
            return report(info, message)
        _logger.warning(f"SLURM does not answer; submitting {info.job} again in {_AGAIN_SECONDS} s.")
        for _ in range(_AGAIN_SECONDS):
            if pool._shutdown:  # the run is at its end
                return report(info, message)
            time.sleep(1)
        _cancel_taken(executor.run_uuid, message)
        try:
            pool.submit(executor.run_job, info.job)
        except RuntimeError:
            report(info, message)

    return report_or_wait


def _cancel_taken(name: str, message: str) -> None:
    """Cancel a job that SLURM did take, although it did not say so; the plugin's message has the call of sbatch."""
    comment = re.search(r"--comment '?([^\s']+)", message)
    if comment:
        said = _said("squeue", f"--name={name}", "--noheader", "--format=%i %k") or ""
        for line in said.splitlines():
            number, _, of = line.partition(" ")
            if of.strip() == comment[1]:
                _said("scancel", number)


def queued(selection: str) -> dict[str, tuple[str, str]] | None:
    """Jobs that SLURM knows.

    Parameters
    ----------
    selection
        Option of squeue.

    Returns
    -------
    dict of str to (str, str), or None
        State, and the reason why it is pending, by number; None if SLURM does not answer.
    """
    said = _said("squeue", selection, "--states=all", "--noheader", "--format=%i %T %r")
    if said is None:
        return None
    rows = [line.split(maxsplit=2) for line in said.splitlines()]
    return {number: (state, reason) for number, state, reason in rows}


def never_starts(selection: str) -> str:
    """Why SLURM would never start one of some jobs; empty if it would."""
    pending = [reason for state, reason in (queued(selection) or {}).values() if state == "PENDING"]
    return next(filter(is_never, pending), "")


def is_never(reason: str) -> bool:
    """Whether something that SLURM says of a job is a reason why it would never start."""
    return _NEVER.fullmatch(reason) is not None


def longest_pause(executor: Any) -> int:
    """Seconds between two looks at the jobs, at most."""
    return _GROWTH * executor.workflow.executor_settings.init_seconds_before_status_checks


def min_job_age() -> int | None:
    """Seconds that SLURM keeps ended jobs; None if it does not say."""
    found = re.search(r"^MinJobAge\s*=\s*(\d+)", _said("scontrol", "show", "config") or "", re.MULTILINE)
    return int(found[1]) if found else None


def asks_sacct(age: int | None, pause: int) -> bool:
    """Whether the plugin asks the accounting database, as SLURM seems to forget ended jobs within the longest pause."""
    return age is not None and age < pause and shutil.which("sacct") is not None


def age_message(age: int | None, pause: int) -> str:
    """What to know where the accounting database is asked; mostly empty."""
    if not asks_sacct(age, pause):
        return ""
    return (
        f"SLURM's MinJobAge is {age} s, so its accounting database (sacct) is asked about ended jobs. If this cluster has "
        "none, this run will never end: use make slurm-shards."
    )


def _said(*command: str) -> str | None:
    """What a command of SLURM's says; None where it fails."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
