"""What a killed run has left behind: jobs in SLURM's queue, and results that it did not see its jobs write."""

import base64
import binascii
import subprocess
import time
from pathlib import Path

from cohortgmm.errors import CohortgmmError
from cohortgmm.pipeline.lock import wait_for_jobs

#: Names of the jobs of the last run in SLURM, within the results.
RUN_FILE = ".slurm_run"

#: Where Snakemake keeps the names of the files that jobs are about to write.
_MARKS = Path(".snakemake") / "incomplete"

#: Beginnings of the names of files that jobs behind the division of the cohort write.
_BEHIND_SPLIT = tuple(
    f"results/{name}" for name in ("fits/", "selection", "models/", "scores.tsv", "cohort_gmm", "qc/")
)

#: Seconds to wait for cancelled jobs to end.
_PATIENCE = 120


def clear_up(results: str) -> str:
    """End what an earlier run of these results has left at work, in SLURM's queue and on this machine.

    Parameters
    ----------
    results
        The results folder, which the caller has locked.

    Returns
    -------
    str
        What was cancelled; empty if there was nothing.

    Raises
    ------
    CohortgmmError
        If SLURM does not answer, or a job does not end.
    """
    n_cancelled = cancel_orphans(results)
    wait_for_jobs(results)
    return f"Cancelled {n_cancelled} jobs that a run that was killed had left in SLURM's queue." if n_cancelled else ""


def cancel_orphans(results: str) -> int:
    """Cancel what an earlier run of these results has in SLURM's queue, and wait until it is gone.

    A run that is killed cannot cancel its jobs. Were they still at work, the next run would do their work beside them.

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
    jobs = _live(name)
    if jobs:
        _call("scancel", f"--name={name}")
        deadline = time.monotonic() + _PATIENCE
        while left := _live(name):
            if time.monotonic() > deadline:
                raise CohortgmmError(
                    f"jobs {', '.join(left)} of a run that was killed do not end: scancel --name={name}, then run again"
                )
            time.sleep(1)
    forget_run(results)
    return len(jobs)


def remember_run(results: str, name: str) -> None:
    """Keep the name that all jobs of this run have in SLURM, for :func:`cancel_orphans` of the next one."""
    (Path(results) / RUN_FILE).write_text(f"{name}\n", encoding="utf-8")


def forget_run(results: str) -> None:
    """Nothing is left of this run: Snakemake has seen all its jobs end."""
    (Path(results) / RUN_FILE).unlink(missing_ok=True)


def remove_unrecorded() -> None:
    """Remove what jobs wrote after their run, in the working directory, was killed: it may be of another configuration.

    Snakemake makes such files anew where it knows the jobs from the start, but behind a checkpoint it takes them for
    results. The caller sees to it that no run is at work.
    """
    for mark in [path for path in _MARKS.rglob("*") if path.is_file()]:
        coded = "".join(part.removeprefix("@") for part in mark.relative_to(_MARKS).parts)
        try:
            name = base64.urlsafe_b64decode(coded).decode()
        except (binascii.Error, UnicodeDecodeError):  # whatever else Snakemake keeps there
            continue
        if name.startswith(_BEHIND_SPLIT):
            Path(name).unlink(missing_ok=True)


def _live(name: str) -> list[str]:
    return _call("squeue", f"--name={name}", "--noheader", "--format=%A").split()


def _call(*command: str) -> str:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=60, check=True
        ).stdout
    except FileNotFoundError:
        raise CohortgmmError(
            f"jobs of a run that was killed may still be in SLURM's queue, but there is no {command[0]} here: run again on "
            "a login node"
        ) from None
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = (getattr(error, "stderr", "") or "").strip().splitlines()
        raise CohortgmmError(f"SLURM does not answer ({' '.join(command)}): {said[0] if said else error}") from None
