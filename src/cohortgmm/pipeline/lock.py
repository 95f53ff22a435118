"""Locks of a results folder: one run may use it, or the shards of one division."""

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cohortgmm.errors import CohortgmmError

#: Name of the lock in the results folder.
LOCK = ".lock"

#: Name of the lock that every job holds while it runs.
JOBS_LOCK = ".jobs"

#: Seconds to wait for the jobs of a killed run.
_JOBS_PATIENCE = 10

#: How often a lock is tried, and seconds in between.
_TRIES, _PAUSE = 5, 0.05


@dataclass(frozen=True)
class Shard:
    """One of several runs that divide the patients among them.

    Attributes
    ----------
    index
        Which one, from 1 to ``count``.
    count
        Of how many.
    """

    index: int
    count: int

    @classmethod
    def read(cls, text: str) -> "Shard":
        """From text such as ``3/20``.

        Raises
        ------
        CohortgmmError
            If it is something else.
        """
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise CohortgmmError(f"a shard is written I/N with 1 <= I <= N, such as 3/20, got {text!r}")
        return cls(int(index), int(count))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def lock_results(folder: str | os.PathLike, shard: Shard | None = None) -> list[int]:
    """Keep other runs out of a results folder as long as this process lives.

    The lock ends with the process, so that nothing has to be unlocked after a killed run. Different shards of the same
    division may run at the same time.

    Parameters
    ----------
    folder
        The results.
    shard
        The shard of the patients that the run is for; None for a run of all patients.

    Returns
    -------
    list of int
        Open file descriptors that hold the lock; empty if the file system has no locks.

    Raises
    ------
    CohortgmmError
        If another run holds it, naming the process.
    """
    path = Path(folder) / LOCK
    if shard is None:
        return _take(path, fcntl.LOCK_EX)
    held = _take(path, fcntl.LOCK_SH)
    try:
        held += _take(Path(f"{path}.shard-{shard.index}-of-{shard.count}"), fcntl.LOCK_EX)
        # Checked after this shard has its lock, so that shards of another division can see it.
        others = [other for other in _shard_locks(path) if not other.name.endswith(f"-of-{shard.count}")]
        if holder := next(filter(None, map(_holder, others)), ""):
            raise CohortgmmError(_in_use(path, holder))
    except CohortgmmError:
        for descriptor in held:
            os.close(descriptor)
        raise
    return held


def lock_holders(folder: str | os.PathLike) -> list[str]:
    """The runs that hold the lock of a results folder."""
    path = Path(folder) / LOCK
    return [holder for holder in map(_holder, [path, *_shard_locks(path)]) if holder]


def held_since(folder: str | os.PathLike) -> float:
    """Time at which the first run that holds the lock of a results folder took it; 0 if no run holds it."""
    path, times = Path(folder) / LOCK, []
    for lock in [path, *_shard_locks(path)]:
        if _holder(lock):
            with suppress(OSError):
                times.append(lock.stat().st_mtime)
    return min(times, default=0.0)


@contextmanager
def job_at_work(folder: str | os.PathLike) -> Iterator[None]:
    """Hold a lock on a results folder while a job runs, for :func:`wait_for_jobs`; without effect if that is impossible."""
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
    """Wait until no job of a killed run is at work. When Snakemake is killed, its jobs go on.

    Parameters
    ----------
    folder
        The results, which the caller has locked.
    seconds
        Longest time to wait.

    Raises
    ------
    CohortgmmError
        If jobs are still at work after that time, with their processes on this machine.
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
    """Processes of this machine that hold a lock, if the system lists them."""
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
        except BlockingIOError:  # perhaps `lock_holders`, which holds it for a moment only
            if not tries_left:
                os.close(descriptor)
                raise CohortgmmError(_in_use(path, _text(path))) from None
            time.sleep(_PAUSE)
        except OSError:
            os.close(descriptor)
            return []
    with suppress(OSError):  # a full disk: the text is only for messages
        os.ftruncate(descriptor, 0)
        if kind == fcntl.LOCK_EX:
            os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode())
    return [descriptor]


def _holder(path: Path, kind: int = fcntl.LOCK_SH) -> str:
    """The process that holds a lock, so that a lock of a kind cannot be taken; empty if it can be taken."""
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
