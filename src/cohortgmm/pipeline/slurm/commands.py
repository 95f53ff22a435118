"""The commands of SLURM: every call of squeue, scancel, sbatch and scontrol goes through :func:`run_command`."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cohortgmm.errors import CohortgmmError

#: State of a job that SLURM no longer knows; this name is not one of SLURM's own.
FORGOTTEN = "FORGOTTEN"

#: Seconds after which a command without an answer counts as failed.
_TIMEOUT = 60

#: Reasons for which SLURM keeps a job pending for ever.
_NEVER = re.compile(r"PartitionTimeLimit|PartitionNodeLimit|BadConstraints|(Assoc|QOS)Max\w+PerJob(Limit)?")


class SlurmError(CohortgmmError):
    """A command of SLURM is not installed, failed, or did not answer in time."""


def run_command(*command: str) -> str:
    """The output of a command of SLURM.

    Raises
    ------
    SlurmError
        If the command is not installed, fails or does not answer. Callers that can continue without an answer catch it.
    """
    try:
        return subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=_TIMEOUT, check=True
        ).stdout
    except FileNotFoundError:
        raise SlurmError(f"there is no {command[0]} here: run again on a login node") from None
    except (OSError, subprocess.SubprocessError) as error:
        lines = (getattr(error, "stderr", "") or "").strip().splitlines()
        reason = "; ".join(filter(None, map(str.strip, lines))) or error
        raise SlurmError(f"`{' '.join(command)}` failed: {reason}") from None


def queued_jobs(selection: str) -> dict[str, tuple[str, str]]:
    """Jobs that SLURM knows, including those that have ended.

    Parameters
    ----------
    selection
        Option of squeue, such as ``--name=NAME``.

    Returns
    -------
    dict of str to (str, str)
        By job number, the state of the job and SLURM's reason for it, such as why the job is pending.

    Raises
    ------
    SlurmError
        If SLURM does not answer.
    """
    output = run_command("squeue", selection, "--states=all", "--noheader", "--format=%i %T %r")
    rows = [line.split(maxsplit=2) for line in output.splitlines()]
    return {number: (state, reason) for number, state, reason in rows}


def live_jobs(name: str) -> list[str]:
    """Numbers of the jobs with this name that have not ended."""
    return run_command("squeue", f"--name={name}", "--noheader", "--format=%A").split()


def never_starts(selection: str) -> str:
    """The reason why SLURM will never start one of the selected jobs; empty if there is none or no answer."""
    try:
        jobs = queued_jobs(selection)
    except SlurmError:
        return ""
    return next((reason for state, reason in jobs.values() if state == "PENDING" and is_never(reason)), "")


def is_never(reason: str) -> bool:
    """Whether a job that is pending for this reason will never start."""
    return _NEVER.fullmatch(reason) is not None


def min_job_age() -> int | None:
    """Seconds for which SLURM remembers jobs that have ended (MinJobAge); None if SLURM does not report it."""
    try:
        found = re.search(r"^MinJobAge\s*=\s*(\d+)", run_command("scontrol", "show", "config"), re.MULTILINE)
    except SlurmError:
        return None
    return int(found[1]) if found else None


def has_sacct() -> bool:
    """Whether the command that asks SLURM's accounting database is installed."""
    return shutil.which("sacct") is not None


def submit_script(path: Path, options: Sequence[str] = ()) -> str:
    """Submit a batch script.

    Returns
    -------
    str
        The number of its job.

    Raises
    ------
    SlurmError
        If SLURM refuses the script, or does not report a number.
    """
    output = run_command("sbatch", "--parsable", *options, str(path))
    # At some sites sbatch prints a banner beside the number.
    lines = [line.strip() for line in output.strip().splitlines()]
    numbers = [line.split(";")[0] for line in lines if re.fullmatch(r"[0-9]+(;.*)?", line)]
    if not numbers:
        answer = repr(lines[-1]) if lines else "nothing"
        raise SlurmError(
            f"sbatch reported no job number for {path}, but {answer}: cancel it with scancel if squeue --me lists it"
        )
    return numbers[-1]
