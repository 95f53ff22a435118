"""A job of the pipeline: its log, one line where it fails, and a record of the memory and time that it used."""

import logging
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from cohortgmm.cohort.tables import read_rows, write_table
from cohortgmm.errors import CohortgmmError, ConvergenceWarning
from cohortgmm.pipeline.lock import job_at_work
from cohortgmm.storage.names import describe

#: How the last line of a failed job's log begins.
ERROR_PREFIX = "error: "

#: Environment variable with the level of what goes to the log.
LEVEL_VARIABLE = "COHORTGMM_LOG_LEVEL"

#: Environment variable with the number of the attempt.
ATTEMPT_VARIABLE = "COHORTGMM_ATTEMPT"

#: MB of Snakemake itself, which runs twice in a job of a cluster.
SNAKEMAKE_MB = 270


@dataclass(frozen=True)
class Usage:
    """What a job used and what it had requested: the row of a table beside its log.

    Attributes
    ----------
    rule
        Name of the rule.
    memory
        Peak resident memory in MB.
    memory_asked
        MB.
    seconds
        Wall time.
    seconds_asked
        Time limit.
    attempt
        Number of the attempt; every further one requests twice as much.
    """

    rule: str
    memory: int
    memory_asked: int
    seconds: float
    seconds_asked: int
    attempt: int = 1

    @property
    def need(self) -> int:
        """MB that the job needs on a cluster, with those of Snakemake."""
        return self.memory + SNAKEMAKE_MB

    @property
    def first(self) -> "Usage":
        """The same use, compared with the request of the first attempt."""
        factor = 2 ** (self.attempt - 1)
        return replace(self, memory_asked=self.memory_asked // factor, seconds_asked=self.seconds_asked // factor)

    def write(self, path: str | os.PathLike) -> None:
        """Write a table with this row."""
        write_table(path, [field.name for field in fields(self)], [asdict(self)])

    @classmethod
    def read(cls, path: str | os.PathLike) -> "Usage | None":
        """The row of a table; None if it is no such table."""
        kinds = {field.name: field.type for field in fields(cls)}
        try:
            return cls(**{name: row[name] for row in read_rows(path, kinds, "usage") for name in kinds})
        except (CohortgmmError, OSError, TypeError):
            return None


def usage_path(log: str | os.PathLike) -> Path:
    """The table that records what a job used, by its log."""
    return Path(log).with_suffix(".tsv")


@contextmanager
def job_log(job: Any) -> Iterator[None]:
    """Send the output of a job to its log, end the job with one line if it fails, and record what it used.

    Parameters
    ----------
    job
        The object ``snakemake`` of a script, with rule, log, resources and wildcards, which precede the message of an
        error ("patient 'P1', k=3").

    Raises
    ------
    SystemExit
        With status 1 after an exception. Its one line is on the terminal and at the end of the log; the traceback of an
        exception that is not a :class:`CohortgmmError` precedes it in the log.
    """
    path, terminal = Path(job.log[0]), sys.stderr
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # of an earlier attempt; a job that is killed records nothing
        usage_path(path).unlink()
    with (
        job_at_work("results"),
        open(path, "w", encoding="utf-8", errors="backslashreplace") as file,
        redirect_stdout(file),
        redirect_stderr(file),
        warnings.catch_warnings(),
    ):
        # The log says it of every fit, and the end of the run of all patients.
        warnings.simplefilter("ignore", ConvergenceWarning)
        root = logging.getLogger()
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        root.addHandler(handler)
        root.setLevel(os.environ.get(LEVEL_VARIABLE, "INFO"))
        try:
            yield
        except Exception as error:
            if not isinstance(error, CohortgmmError):
                traceback.print_exc(file=file)
            line = failure_line(error, describe(job.wildcards))
            print(line, file=file, flush=True)
            print(line, file=terminal)
            raise SystemExit(1) from None
        finally:
            root.removeHandler(handler)
            with suppress(CohortgmmError):  # a full disk: the result of the job counts, not this record
                _usage(job.rule, job.resources).write(usage_path(path))


def _usage(rule: str, requested: Any) -> Usage:
    """What this process has used so far; zero where the system does not tell."""
    memory, seconds = 0, 0.0
    with suppress(OSError, TypeError, IndexError, ValueError):  # systems differ in what they tell
        # Not getrusage: its peak includes what Snakemake used before it started this process.
        status, stat = (
            Path("/proc/self/status").read_text(encoding="utf-8"),
            Path("/proc/self/stat").read_text(encoding="utf-8"),
        )
        memory = int(re.search(r"^VmHWM:\s+(\d+)", status, re.MULTILINE)[1]) >> 10
        started = int(stat.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        seconds = round(time.clock_gettime(time.CLOCK_BOOTTIME) - started, 1)
    attempt = int(os.environ.get(ATTEMPT_VARIABLE, "1"))
    return Usage(rule, memory, int(requested.get("mem_mb", 0)), seconds, 60 * int(requested.get("runtime", 0)), attempt)


def failure_line(error: Exception, context: str = "") -> str:
    """One line for an exception."""
    message = " ".join(str(error).split()) if isinstance(error, CohortgmmError) else _unforeseen(error)
    return f"{ERROR_PREFIX}{context}{': ' if context else ''}{message}"


def _unforeseen(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "out of memory; give the job more (resources mem_mb)"
    return f"{type(error).__name__}: {' '.join(str(error).split())} (traceback in the log)"
