"""Jobs in SLURM's queue that a killed run has left behind."""

import subprocess
import time
from pathlib import Path

from cohortgmm.errors import CohortgmmError

#: Names of the jobs of the last run in SLURM, within the results.
RUN_FILE = ".slurm_run"

#: Seconds to wait for cancelled jobs to end.
_PATIENCE = 120


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
    name = path.read_text().strip() if path.is_file() else ""
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
    (Path(results) / RUN_FILE).write_text(f"{name}\n")


def forget_run(results: str) -> None:
    """Nothing is left of this run: Snakemake has seen all its jobs end."""
    (Path(results) / RUN_FILE).unlink(missing_ok=True)


def _live(name: str) -> list[str]:
    return _call("squeue", f"--name={name}", "--noheader", "--format=%A").split()


def _call(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except FileNotFoundError:
        raise CohortgmmError(
            f"jobs of a run that was killed may still be in SLURM's queue, but there is no {command[0]} here: run again on "
            "a login node"
        ) from None
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = (getattr(error, "stderr", "") or "").strip().splitlines()
        raise CohortgmmError(f"SLURM does not answer ({' '.join(command)}): {said[0] if said else error}") from None
