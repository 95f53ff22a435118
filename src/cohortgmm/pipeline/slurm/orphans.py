"""Cleaning up after a killed run: its jobs in SLURM's queue, and results that Snakemake has not recorded."""

import base64
import binascii
import time
from pathlib import Path

from cohortgmm.errors import CohortgmmError
from cohortgmm.pipeline.lock import wait_for_jobs
from cohortgmm.pipeline.slurm.commands import SlurmError, live_jobs, run_command

#: File in the results folder with the name that all jobs of the last run have in SLURM.
RUN_FILE = ".slurm_run"

#: Folder in which Snakemake marks the files that unfinished jobs write.
_MARKS = Path(".snakemake") / "incomplete"

#: Beginnings of the paths of files that are written by jobs after the split.
_BEHIND_SPLIT = tuple(
    f"results/{name}" for name in ("fits/", "selection", "models/", "scores.tsv", "cohort_gmm", "qc/")
)

#: Seconds to wait for cancelled jobs to end.
_PATIENCE = 120


def clear_up(results: str) -> str:
    """Cancel the SLURM jobs that a killed run has left behind, and wait for its jobs on this machine.

    Parameters
    ----------
    results
        The results folder, which the caller has locked.

    Returns
    -------
    str
        How many jobs were cancelled; empty if there were none.

    Raises
    ------
    CohortgmmError
        If SLURM does not answer, or a job does not end.
    """
    n_cancelled = cancel_orphans(results)
    wait_for_jobs(results)
    return f"Cancelled {n_cancelled} jobs that a killed run had left in SLURM's queue." if n_cancelled else ""


def cancel_orphans(results: str) -> int:
    """Cancel the jobs that the last run of these results still has in SLURM's queue, and wait until they have ended.

    A killed run cannot cancel its jobs. If they continued, the next run would do the same work at the same time.

    Parameters
    ----------
    results
        The results folder, which the caller has locked.

    Returns
    -------
    int
        Number of jobs that were cancelled.

    Raises
    ------
    CohortgmmError
        If SLURM does not answer, or a job does not end.
    """
    path = Path(results) / RUN_FILE
    name = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
    if not name:
        return 0
    try:
        jobs = live_jobs(name)
        if jobs:
            run_command("scancel", f"--name={name}")
            _wait_for_end(name)
    except SlurmError as error:
        raise CohortgmmError(f"jobs of a killed run may still be in SLURM's queue: {error}") from None
    forget_run(results)
    return len(jobs)


def _wait_for_end(name: str) -> None:
    """Wait until no job with this name is left in SLURM's queue."""
    deadline = time.monotonic() + _PATIENCE
    while left := live_jobs(name):
        if time.monotonic() > deadline:
            raise CohortgmmError(
                f"jobs {', '.join(left)} of a killed run do not end: scancel --name={name}, then run again"
            )
        time.sleep(1)


def remember_run(results: str, name: str) -> None:
    """Store the name that all jobs of this run have in SLURM, so that the next run can cancel those that are left."""
    (Path(results) / RUN_FILE).write_text(f"{name}\n", encoding="utf-8")


def forget_run(results: str) -> None:
    """Remove what :func:`remember_run` stored, when all jobs of the run have ended."""
    (Path(results) / RUN_FILE).unlink(missing_ok=True)


def remove_unrecorded() -> None:
    """Remove files that jobs wrote after their run was killed, which may be of another configuration.

    Snakemake makes such files again if it knows their jobs from the start. For jobs after a checkpoint, it takes the
    files for results. Only the working directory is searched; the caller makes sure that no run is using it.
    """
    for mark in [path for path in _MARKS.rglob("*") if path.is_file()]:
        coded = "".join(part.removeprefix("@") for part in mark.relative_to(_MARKS).parts)
        try:
            name = base64.urlsafe_b64decode(coded).decode()
        except (binascii.Error, UnicodeDecodeError):  # another file of Snakemake's
            continue
        if name.startswith(_BEHIND_SPLIT):
            Path(name).unlink(missing_ok=True)
