"""What Snakemake's SLURM plugin would lose sight of: jobs while SLURM does not answer, preempted ones, and ended ones.

The plugin (seen in 2.8.0) forgets its jobs where all its questions of a round stay without an answer, waits for ever for a
job that was preempted and is not requeued, and asks ever more rarely while no job ends, every 180 s at last: a job that has
ended waits as long for the next to start, and SLURM may have forgotten it.
"""

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator, Sequence
from typing import Any

#: No pause between two looks becomes longer than this many times the first; where SLURM keeps ended jobs for less, the
#: plugin asks sacct, whatever the profile says.
_GROWTH = 3


def watch_jobs(executor: Any, age: int | None) -> None:
    """Let an executor of the plugin keep all its jobs in view.

    Parameters
    ----------
    executor
        The executor of a run that begins.
    age
        Seconds that SLURM keeps ended jobs (:func:`min_job_age`); None if it does not say.
    """
    check, told = executor.check_active_jobs, set()
    pause = longest_pause(executor)
    pause = min(pause, age / 2) if age else pause

    def noting(report: Any) -> Any:
        def noted(job: Any, *arguments: Any, **options: Any) -> None:
            told.add(id(job))
            report(job, *arguments, **options)

        return noted

    async def check_all(jobs: Sequence[Any]) -> AsyncIterator[Any]:
        told.clear()
        async for _ in check(jobs):
            pass
        left = [job for job in jobs if id(job) not in told]
        preempted = await asyncio.to_thread(_preempted, executor.run_uuid) if left else set()
        for job in left:
            if job.external_jobid in preempted:
                message = f"SLURM-job '{job.external_jobid}' failed, SLURM status is: 'PREEMPTED'. "
                executor.report_job_error(job, msg=message)
            else:
                yield job
        executor.next_seconds_between_status_checks = min(executor.next_seconds_between_status_checks, pause)

    executor.report_job_success = noting(executor.report_job_success)
    executor.report_job_error = noting(executor.report_job_error)
    executor.check_active_jobs = check_all


def min_job_age() -> int | None:
    """Seconds that SLURM keeps ended jobs; None if it does not say."""
    found = re.search(r"^MinJobAge\s*=\s*(\d+)", _said("scontrol", "show", "config"), re.MULTILINE)
    return int(found[1]) if found else None


def longest_pause(executor: Any) -> int:
    """Seconds between two looks at the jobs, at most."""
    return _GROWTH * executor.workflow.executor_settings.init_seconds_before_status_checks


def age_message(age: int | None, pause: int) -> str:
    """What to know where SLURM forgets ended jobs within the longest pause; mostly empty."""
    if age is None or age >= pause:
        return ""
    return (
        f"SLURM keeps ended jobs for {age} s only (MinJobAge), so its accounting database (sacct) is asked about them. "
        "If this cluster has none, this run will never end: use make slurm-shards."
    )


def _preempted(name: str) -> set[str]:
    """Numbers of the jobs of a name that were preempted for good: one that is requeued is pending."""
    return set(_said("squeue", f"--name={name}", "--states=PREEMPTED", "--noheader", "--format=%i").split())


def _said(*command: str) -> str:
    """What a command of SLURM's says; nothing where it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
