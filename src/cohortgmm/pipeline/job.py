"""A job of the pipeline: its log, its error as one line, and a record of the memory and time that it used."""

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

#: Beginning of the last line in the log of a failed job.
ERROR_PREFIX = "error: "

#: Environment variable with the logging level of the jobs.
LEVEL_VARIABLE = "COHORTGMM_LOG_LEVEL"

#: Environment variable with the number of the attempt.
ATTEMPT_VARIABLE = "COHORTGMM_ATTEMPT"

#: MB that Snakemake itself uses in a job on a cluster, where two processes of it run.
SNAKEMAKE_MB = 270


@dataclass(frozen=True)
class Usage:
    """Memory and time that a job requested and used, stored as a table of one row beside its log.

    Attributes
    ----------
    rule
        Name of the rule.
    memory
        Peak resident memory in MB.
    memory_asked
        Requested memory in MB.
    seconds
        Elapsed (wall-clock) time in seconds.
    seconds_asked
        Requested time limit in seconds.
    attempt
        Number of the attempt, from 1. Every attempt requests twice as much as the one before.
    """

    rule: str
    memory: int
    memory_asked: int
    seconds: float
    seconds_asked: int
    attempt: int = 1

    @property
    def need(self) -> int:
        """MB that the job needs on a cluster, including the memory of Snakemake."""
        return self.memory + SNAKEMAKE_MB

    @property
    def first(self) -> "Usage":
        """The same memory and time used, with the requests of the first attempt in place of those of this one."""
        factor = 2 ** (self.attempt - 1)
        return replace(self, memory_asked=self.memory_asked // factor, seconds_asked=self.seconds_asked // factor)

    def write(self, path: str | os.PathLike) -> None:
        """Write a table with this row."""
        write_table(path, [field.name for field in fields(self)], [asdict(self)])

    @classmethod
    def read(cls, path: str | os.PathLike) -> "Usage | None":
        """The row of a table that :meth:`write` wrote; None if the file is missing or is not such a table."""
        kinds = {field.name: field.type for field in fields(cls)}
        try:
            return cls(**{name: row[name] for row in read_rows(path, kinds, "usage") for name in kinds})
        except (CohortgmmError, OSError, TypeError):
            return None


def usage_path(log: str | os.PathLike) -> Path:
    """Path of the table that records what a job used, from the path of its log."""
    return Path(log).with_suffix(".tsv")


@contextmanager
def job_log(job: Any) -> Iterator[None]:
    """Send the output of a job to its log, end the job with one line if it fails, and record what it used.

    Parameters
    ----------
    job
        The object ``snakemake`` of a script, with rule, log, resources and wildcards. An error message begins with the
        wildcards ("patient 'P1', k=3").

    Raises
    ------
    SystemExit
        With status 1 after an exception. One line about it is printed on the terminal and at the end of the log. Unless
        it is a :class:`CohortgmmError`, the log also has its traceback, before that line.
    """
    path, terminal = Path(job.log[0]), sys.stderr
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # remove the record of an earlier attempt, because a killed job writes none of its own
        usage_path(path).unlink()
    with (
        job_at_work("results"),
        open(path, "w", encoding="utf-8", errors="backslashreplace") as file,
        redirect_stdout(file),
        redirect_stderr(file),
        warnings.catch_warnings(),
    ):
        # No warning is needed: the log reports every fit, and the closing notes of the run report all patients.
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
            with suppress(CohortgmmError):  # e.g. a full disk: a missing record must not make the job fail
                _usage(job.rule, job.resources).write(usage_path(path))


def _usage(rule: str, requested: Any) -> Usage:
    """Memory and time that this process has used so far; zero if the system does not report them."""
    memory, seconds = 0, 0.0
    with suppress(OSError, TypeError, IndexError, ValueError):  # not every system has these files
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
    """One line that reports an exception."""
    message = " ".join(str(error).split()) if isinstance(error, CohortgmmError) else _unforeseen(error)
    return f"{ERROR_PREFIX}{context}{': ' if context else ''}{message}"


def _unforeseen(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "out of memory; give the job more (resources mem_mb)"
    return f"{type(error).__name__}: {' '.join(str(error).split())} (traceback in the log)"
