"""The commands of SLURM: every call of squeue, scancel, sbatch and scontrol goes through :func:`run_command`."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cohortgmm.errors import CohortgmmError

#: Our name for the state of a job that SLURM does not know any more.
FORGOTTEN = "FORGOTTEN"

#: Seconds to wait for the answer to a command.
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
        If the command is not installed, fails or does not answer. Whoever can go on without the answer catches this.
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
    """Jobs that SLURM knows, also those that have ended.

    Parameters
    ----------
    selection
        Option of squeue, such as ``--name=NAME``.

    Returns
    -------
    dict of str to (str, str)
        State, and the reason why it is pending, by number.

    Raises
    ------
    SlurmError
        If SLURM does not answer.
    """
    output = run_command("squeue", selection, "--states=all", "--noheader", "--format=%i %T %r")
    rows = [line.split(maxsplit=2) for line in output.splitlines()]
    return {number: (state, reason) for number, state, reason in rows}


def live_jobs(name: str) -> list[str]:
    """Numbers of the jobs of a name that have not ended."""
    return run_command("squeue", f"--name={name}", "--noheader", "--format=%A").split()


def never_starts(selection: str) -> str:
    """The reason why SLURM would never start one of some jobs; empty if it would start them, or does not answer."""
    try:
        jobs = queued_jobs(selection)
    except SlurmError:
        return ""
    return next((reason for state, reason in jobs.values() if state == "PENDING" and is_never(reason)), "")


def is_never(reason: str) -> bool:
    """Whether the reason why a job is pending is one that never passes."""
    return _NEVER.fullmatch(reason) is not None


def min_job_age() -> int | None:
    """Seconds for which SLURM remembers jobs that have ended; None if it does not say."""
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
