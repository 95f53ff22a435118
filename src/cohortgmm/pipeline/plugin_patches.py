"""All changes that are made to internals of Snakemake and of its SLURM plugin, and the versions they were tested with.

Other versions are not changed, and the run reports what does not work without the changes (:func:`untested_message`).
"""

import asyncio
import atexit
import functools
import importlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cohortgmm.pipeline.slurm.commands import FORGOTTEN, SlurmError, has_sacct, is_never, queued_jobs, run_command

#: First and last version, as (major, minor), with which the changes were tested.
_TESTED = {"snakemake": ((9, 17), (9, 27)), "snakemake-executor-plugin-slurm": ((2, 8), (2, 8))}

#: What does not work with another version, for :func:`untested_message`.
_LOST = {
    "snakemake": (
        "results of a killed run, or results copied without Snakemake's records, may count as up to date, a run may repeat "
        "a final fit that is up to date, a dry run must be able to write, and names with < may damage the report"
    ),
    "snakemake-executor-plugin-slurm": (
        "the run may wait for ever for a job that was preempted, that SLURM has forgotten or that it would never start, "
        "and a job counts as failed if SLURM does not answer when it is submitted"
    ),
}

_logger = logging.getLogger("snakemake.logging")


def is_tested(package: str) -> bool:
    """Whether the changes in this module were tested with the installed version of a package."""
    first, last = _TESTED[package]
    return first <= _version(package) <= last


def _version(package: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version(package))[:2])


def untested_message(package: str) -> str:
    """What does not work with the installed version of a package; empty if it is a tested version."""
    if is_tested(package):
        return ""
    first, last = (".".join(map(str, numbers)) for numbers in _TESTED[package])
    return (
        f"{package} {version(package)} is installed, but this workflow was tested with {first} to {last}. With another "
        f"version {_LOST[package]}."
    )


# Snakemake


def patch_snakemake(results: str | os.PathLike, *, is_main_process: bool, recorded_at_end: str) -> None:
    """Change how Snakemake keeps records and, in a user's call, its dry runs; called when it reads the Snakefile.

    Parameters
    ----------
    results
        The results folder.
    is_main_process
        Whether this is the user's call, not that of a job on a cluster.
    recorded_at_end
        The rule whose parameters are recorded when its jobs end (:func:`record_parameters_at_end`).
    """
    if not is_tested("snakemake"):
        return
    record_parameters_at_end(recorded_at_end)
    if not is_main_process:
        keep_incomplete_marks()
        return
    if not os.access(_SNAKEMAKE if _SNAKEMAKE.is_dir() else ".", os.W_OK):
        keep_records_elsewhere()
    if os.path.isdir(results) and not os.access(results, os.W_OK):
        accept_protected_output()


def keep_incomplete_marks() -> None:
    """In the process of a job on a cluster, keep Snakemake from removing its marks of incomplete files.

    The main process removes the marks after it has recorded the job. Suppose that the job removed them, and that the
    run was killed before it recorded the job. The files would then be neither marked nor recorded, and the next run
    would take them for results even with another configuration.
    """
    from snakemake.persistence import PersistenceBase

    async def finished(self: Any, job: Any) -> None:
        """Nothing is recorded here."""

    PersistenceBase.finished = finished


def record_parameters_at_end(rule: str) -> None:
    """Make Snakemake record the parameters of a rule's jobs with their values at the end of the job.

    Snakemake evaluates the parameters of a job when it plans the job, and records these values. The chosen k, a
    parameter of the final fit, is known only once the scores of the run exist. If the planned value were recorded, the
    next run would repeat the fit.
    """
    from snakemake.persistence import PersistenceBase

    planned = PersistenceBase._params

    def _params(self: Any, job: Any) -> list[Any]:
        if job.rule.name != rule:
            return planned(self, job)
        job._expand_params()
        return planned.__wrapped__(self, job)

    PersistenceBase._params = _params


#: Folder of Snakemake's records in the working directory, and names of the records that a dry run reads.
_SNAKEMAKE, _READ = Path(".snakemake"), ("metadata", "incomplete")


def keep_records_elsewhere() -> None:
    """Make Snakemake read its records from their folder but write to a temporary one, because even a dry run writes."""
    from snakemake.persistence import PersistenceBase

    folder = Path(tempfile.mkdtemp(prefix="cohortgmm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in _READ:
        if (_SNAKEMAKE / name).is_dir():
            (folder / name).symlink_to((_SNAKEMAKE / name).absolute())
    begin = PersistenceBase.__init__

    @functools.wraps(begin)
    def begin_elsewhere(self: Any, *args: Any, path: Path | None = None, **options: Any) -> None:
        begin(self, *args, path=folder if path is None else path, **options)

    PersistenceBase.__init__ = begin_elsewhere


def accept_protected_output() -> None:
    """Keep Snakemake from ending a dry run because existing results cannot be overwritten.

    A run that is not dry is refused before its first job (:func:`cohortgmm.pipeline.settings.check_writable`).
    """
    from snakemake.jobs import Job

    async def check_protected_output(self: Any) -> None:
        """Nothing is refused here."""

    Job.check_protected_output = check_protected_output


def force_rule(workflow: Any, rule: str) -> None:
    """Make a rule run again, as the option ``-R`` does. Called while Snakemake determines the inputs of the rule."""
    if is_tested("snakemake"):
        workflow.dag.forcerules.add(workflow.get_rule(rule))


def has_records(workflow: Any, paths: Sequence[str]) -> bool:
    """Whether Snakemake has a record of at least one of these results; true with an untested version."""
    if not is_tested("snakemake"):
        return True
    from snakemake.io import IOFile

    rule = workflow.get_rule("all")
    return any(workflow.persistence.metadata(IOFile(path, rule=rule)) for path in paths)


@functools.cache
def escape_report_page() -> None:
    """Make Snakemake escape ``<`` in the data of a report, so that no text in them ends the script or begins a tag.

    Snakemake writes JSON between ``<script>`` and ``</script>`` without escaping it. Called only when a report is made,
    because these modules take time to import.
    """
    if not is_tested("snakemake"):
        return
    from snakemake.report import html_reporter
    from snakemake.report.html_reporter import data

    names = (
        "categories",
        "configfiles",
        "metadata",
        "packages",
        "results",
        "rulegraph",
        "rules",
        "runtimes",
        "timeline",
    )
    modules = [importlib.import_module(f"{data.__name__}.{name}") for name in names]
    for module in (html_reporter, *modules):
        module.json = SimpleNamespace(dumps=_dumps)


def _dumps(*args: Any, **kwargs: Any) -> str:
    return json.dumps(*args, **kwargs).replace("<", "\\u003c")


# The SLURM plugin. Without changes, it has these faults:
# - If SLURM answers no question of a status check, the plugin forgets its jobs. It also waits for ever for a job
#   that was preempted and is not requeued, that SLURM has forgotten, or that SLURM would never start.
# - While no job ends, its status checks become rarer, down to one in 180 s. It then notices the end of a job late, or
#   not before SLURM has forgotten the job.
# - If SLURM does not answer when a job is submitted, the plugin counts the job as failed.

#: The longest pause between two status checks, as a multiple of the first pause. If SLURM forgets ended jobs within
#: the longest pause and sacct is installed, the plugin asks sacct, whatever the profile says.
_LONGEST_PAUSE = 3

#: A job counts as forgotten if it is missing from this number of consecutive answers of SLURM.
_ABSENCES = 3

#: Messages of sbatch if SLURM does not answer, and seconds until the job is then submitted again.
_NO_ANSWER = re.compile(
    r"Unable to contact slurm controller|Socket timed out|temporarily unavailable|Zero Bytes were transmitted"
    r"|Unable to test the validity of the given or guessed SLURM account"
)
_RETRY_SECONDS = 15


def patch_slurm_executor(executor: Any, age: int | None) -> None:
    """Make an executor of the SLURM plugin follow every job until the job has succeeded or failed.

    Parameters
    ----------
    executor
        The executor of a run that begins.
    age
        Seconds for which SLURM remembers ended jobs (:func:`cohortgmm.pipeline.slurm.commands.min_job_age`).
    """
    if not is_tested("snakemake-executor-plugin-slurm"):
        return
    checks = _StatusChecks(executor, age)
    executor.report_job_success = checks.noting(executor.report_job_success)
    executor.report_job_error = checks.noting(executor.report_job_error)
    executor.check_active_jobs = checks.check_active_jobs
    executor._report_job_error_threadsafe = _submit_again(executor, executor._report_job_error_threadsafe)


class _StatusChecks:
    """The plugin's status check, followed by a second check of the jobs whose end the plugin has not reported."""

    def __init__(self, executor: Any, age: int | None) -> None:
        self._executor, self._check = executor, executor.check_active_jobs
        self._reported: set[int] = set()
        self._absences: Counter[str] = Counter()
        self._pause: float = longest_pause(executor)
        self._by_sacct = asks_sacct(age, self._pause)
        if age and not self._by_sacct:
            self._pause = min(self._pause, age / 2)

    def noting(self, report: Callable[..., None]) -> Callable[..., None]:
        """A function that calls ``report`` and also stores which job it was called for."""

        def noted(job: Any, *arguments: Any, **options: Any) -> None:
            self._reported.add(id(job))
            report(job, *arguments, **options)

        return noted

    async def check_active_jobs(self, jobs: Sequence[Any]) -> AsyncIterator[Any]:
        """Report the jobs that have ended, and yield the others."""
        executor = self._executor
        self._reported.clear()
        async for _ in self._check(jobs):
            pass
        left = [job for job in jobs if id(job) not in self._reported]
        queue = await asyncio.to_thread(_queue_of, executor.run_uuid) if left else None
        for job in left:
            if state := "" if queue is None else self._terminal_state(job.external_jobid, queue):
                message = f"SLURM-job '{job.external_jobid}' failed, SLURM status is: '{state}'. "
                executor.report_job_error(job, msg=message)
            else:
                yield job
        executor.next_seconds_between_status_checks = min(executor.next_seconds_between_status_checks, self._pause)

    def _terminal_state(self, number: str, queue: Mapping[str, tuple[str, str]]) -> str:
        """The terminal state of a job that the plugin counts as active; empty if the job has not ended."""
        state, reason = queue.get(number, ("", ""))
        if state == "PREEMPTED":  # a job that is requeued is pending
            return state
        if state == "PENDING" and is_never(reason):
            _cancel(number)
            return reason
        # The pending jobs of an array are listed under one number.
        is_listed = number.split("_")[0] in {other.split("_")[0] for other in queue}
        self._absences[number] = 0 if is_listed or self._by_sacct else self._absences[number] + 1
        return FORGOTTEN if self._absences[number] == _ABSENCES else ""


def _queue_of(name: str) -> dict[str, tuple[str, str]] | None:
    try:
        return queued_jobs(f"--name={name}")
    except SlurmError:  # the next status check asks again
        return None


def _cancel(number: str) -> None:
    try:
        run_command("scancel", number)
    except SlurmError as error:
        _logger.warning(f"Job {number} could not be cancelled: {error}")


def _submit_again(executor: Any, report: Callable[[Any, str], None]) -> Callable[[Any, str], None]:
    """A replacement for ``report``, the plugin's function that reports a job which was not submitted as failed.

    If SLURM did not answer, the replacement submits the job again after a pause; otherwise it calls ``report``.
    """
    pool = executor._job_submission_executor

    def report_or_retry(info: Any, message: str) -> None:
        if not _NO_ANSWER.search(message):
            return report(info, message)
        _logger.warning(f"SLURM does not answer; submitting {info.job} again in {_RETRY_SECONDS} s.")
        for _ in range(_RETRY_SECONDS):
            if pool._shutdown:  # the run is ending
                return report(info, message)
            time.sleep(1)
        _cancel_accepted(executor.run_uuid, message)
        try:
            pool.submit(executor.run_job, info.job)
        except RuntimeError:
            report(info, message)

    return report_or_retry


def _cancel_accepted(name: str, message: str) -> None:
    """Cancel a job that SLURM accepted without answering; it is found by its comment, which ``message`` contains."""
    comment = re.search(r"--comment '?([^\s']+)", message)
    if not comment:
        return
    try:
        lines = run_command("squeue", f"--name={name}", "--noheader", "--format=%i %k").splitlines()
    except SlurmError:
        return
    for number, _, of_job in (line.partition(" ") for line in lines):
        if of_job.strip() == comment[1]:
            _cancel(number)


def longest_pause(executor: Any) -> int:
    """Longest pause between two status checks, in seconds."""
    return _LONGEST_PAUSE * executor.workflow.executor_settings.init_seconds_before_status_checks


def asks_sacct(age: int | None, pause: float) -> bool:
    """Whether the plugin asks the accounting database (sacct), because SLURM forgets ended jobs within the pause."""
    return age is not None and age < pause and has_sacct()


def sacct_message(age: int | None, pause: float) -> str:
    """A warning if the accounting database is asked; else empty."""
    if not asks_sacct(age, pause):
        return ""
    return (
        f"SLURM's MinJobAge is {age} s, so its accounting database (sacct) is asked about ended jobs. If this cluster has "
        "none, this run will never end: use make slurm-shards."
    )
