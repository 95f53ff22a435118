"""Locks of a results folder: either one run may use it, or all shards of one run (``1/N`` to ``N/N``)."""

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cohortgmm.errors import CohortgmmError

#: Name in the results folder of the lock file that a run holds.
LOCK = ".lock"

#: Name in the results folder of the lock file that every job holds while it runs.
JOBS_LOCK = ".jobs"

#: Seconds to wait until the jobs of a killed run have ended.
_JOBS_PATIENCE = 10

#: Number of attempts to take a lock, and seconds between two of them.
_TRIES, _PAUSE = 5, 0.05


@dataclass(frozen=True)
class Shard:
    """One of several runs that divide the patients among them.

    Attributes
    ----------
    index
        Number of the shard, from 1 to ``count``.
    count
        Number of all shards.
    """

    index: int
    count: int

    @classmethod
    def read(cls, text: str) -> "Shard":
        """Parse a text such as ``3/20``.

        Raises
        ------
        CohortgmmError
            If the text is not of this form.
        """
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise CohortgmmError(f"a shard is written I/N with 1 <= I <= N, such as 3/20, got {text!r}")
        return cls(int(index), int(count))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def lock_results(folder: str | os.PathLike, shard: Shard | None = None) -> list[int]:
    """Keep other runs out of a results folder as long as this process lives.

    The operating system releases the lock when the process ends, also if it is killed. Different shards out of the same
    number of shards may run at the same time.

    Parameters
    ----------
    folder
        The results.
    shard
        The shard of the patients that the run fits; None for a run of all patients.

    Returns
    -------
    list of int
        Open file descriptors that hold the lock; empty if the file system has no locks.

    Raises
    ------
    CohortgmmError
        If another run holds the lock; the message names its process.
    """
    path = Path(folder) / LOCK
    if shard is None:
        return _take(path, fcntl.LOCK_EX)
    held = _take(path, fcntl.LOCK_SH)
    try:
        held += _take(Path(f"{path}.shard-{shard.index}-of-{shard.count}"), fcntl.LOCK_EX)
        # Checked only once this shard holds its lock: of two shards with different counts, at least one sees the other.
        others = [other for other in _shard_locks(path) if not other.name.endswith(f"-of-{shard.count}")]
        if holder := next(filter(None, map(_holder, others)), ""):
            raise CohortgmmError(_in_use(path, holder))
    except CohortgmmError:
        for descriptor in held:
            os.close(descriptor)
        raise
    return held


def lock_holders(folder: str | os.PathLike) -> list[str]:
    """Descriptions of the runs that hold a lock of a results folder, such as "process 12 on node3"."""
    path = Path(folder) / LOCK
    return [holder for holder in map(_holder, [path, *_shard_locks(path)]) if holder]


def held_since(folder: str | os.PathLike) -> float:
    """Earliest time at which one of the present holders took its lock of a results folder; 0 if there is no holder."""
    path, times = Path(folder) / LOCK, []
    for lock in [path, *_shard_locks(path)]:
        if _holder(lock):
            with suppress(OSError):
                times.append(lock.stat().st_mtime)
    return min(times, default=0.0)


@contextmanager
def job_at_work(folder: str | os.PathLike) -> Iterator[None]:
    """Hold a lock while a job runs, for :func:`wait_for_jobs`; if it cannot be taken, the job runs without it."""
    descriptor = None
    with suppress(OSError):
        descriptor = os.open(Path(folder) / JOBS_LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def wait_for_jobs(folder: str | os.PathLike, seconds: float = _JOBS_PATIENCE) -> None:
    """Wait until no job of a killed run is running; the jobs of Snakemake continue when Snakemake itself is killed.

    Parameters
    ----------
    folder
        The results, which the caller has locked.
    seconds
        Longest time to wait.

    Raises
    ------
    CohortgmmError
        If jobs are still running after that time; the message lists their processes on this machine.
    """
    deadline = time.monotonic() + seconds
    path = Path(folder) / JOBS_LOCK
    while path.exists() and _holder(path, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            jobs = " ".join(_processes_of_lock(path))
            what = f"end them with: kill {jobs}" if jobs else "they are on other machines"
            raise CohortgmmError(
                f"{path.parent.resolve()}: jobs of a killed run are still at work; wait for them, or {what}"
            )
        time.sleep(_PAUSE)


def _processes_of_lock(path: Path) -> list[str]:
    """Numbers of the processes on this machine that hold a lock; empty if the system does not list locks."""
    with suppress(OSError):
        inode = path.stat().st_ino
        return re.findall(
            rf"FLOCK\s+ADVISORY\s+\w+\s+(\d+)\s+\w+:\w+:{inode}\s", Path("/proc/locks").read_text(encoding="utf-8")
        )
    return []


def _shard_locks(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.shard-*"))


def _take(path: Path, kind: int) -> list[int]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise CohortgmmError(f"cannot lock {path}: {error.strerror}; it may be another user's run") from None
    for tries_left in reversed(range(_TRIES)):
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            break
        except BlockingIOError:  # the holder may be a call of `lock_holders`, which releases the lock at once
            if not tries_left:
                os.close(descriptor)
                raise CohortgmmError(_in_use(path, _text(path))) from None
            time.sleep(_PAUSE)
        except OSError:
            os.close(descriptor)
            return []
    with suppress(OSError):  # e.g. a full disk: the lock holds without this text, which is only shown in messages
        os.ftruncate(descriptor, 0)
        if kind == fcntl.LOCK_EX:
            os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode())
    return [descriptor]


def _holder(path: Path, kind: int = fcntl.LOCK_SH) -> str:
    """Description of the process whose lock prevents a lock of this kind (``fcntl``); empty if none does."""
    try:
        # Network file systems give an exclusive lock only for files that are open for writing.
        descriptor = os.open(path, os.O_RDWR if kind == fcntl.LOCK_EX else os.O_RDONLY)
    except OSError:
        return ""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return _text(path)
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or "shards of it"
    except OSError:
        return "another process"


def _in_use(path: Path, holder: str) -> str:
    return f"{path.parent.resolve()} is in use by another run ({holder}): wait for it, or use --directory"
