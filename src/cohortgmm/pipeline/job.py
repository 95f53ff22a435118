"""What a job of the pipeline says: a log file that ends with what it used, and one line where it fails."""

import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cohortgmm.errors import CohortgmmError
from cohortgmm.pipeline.lock import job_at_work
from cohortgmm.storage.names import describe

#: How the last line of a failed job's log begins.
ERROR_PREFIX = "error: "

#: Environment variable with the level of what goes to the log.
LEVEL_VARIABLE = "COHORTGMM_LOG_LEVEL"

#: Environment variable with the number of the attempt.
ATTEMPT_VARIABLE = "COHORTGMM_ATTEMPT"


@dataclass(frozen=True)
class Usage:
    """What a job used and what it had asked for.

    Attributes
    ----------
    memory
        Peak resident memory in MB.
    memory_asked
        MB.
    seconds
        Wall time.
    seconds_asked
        Time limit.
    attempt
        Which attempt it was; every further one asks for twice as much.
    """

    memory: int
    memory_asked: int
    seconds: float
    seconds_asked: int
    attempt: int = 1

    def __str__(self) -> str:
        which = f", attempt {self.attempt}" if self.attempt > 1 else ""
        return f"used {self.memory} MB of {self.memory_asked}, {self.seconds:.1f} s of {self.seconds_asked}{which}"

    @classmethod
    def find(cls, log: str) -> "Usage | None":
        """The last one in the text of a log; None without."""
        found = re.findall(r"^used (\d+) MB of (\d+), (\d+\.\d) s of (\d+)(?:, attempt (\d+))?$", log, re.MULTILINE)
        if not found:
            return None
        memory, memory_asked, seconds, seconds_asked, attempt = found[-1]
        return cls(int(memory), int(memory_asked), float(seconds), int(seconds_asked), int(attempt or 1))

    @property
    def first(self) -> "Usage":
        """The same against what the first attempt asked for."""
        factor = 2 ** (self.attempt - 1)
        return replace(self, memory_asked=self.memory_asked // factor, seconds_asked=self.seconds_asked // factor)


@contextmanager
def job_log(job: Any) -> Iterator[None]:
    """Send everything a job says to its log; end the job with one line where it fails.

    Parameters
    ----------
    job
        The object ``snakemake`` of a script: its log, the wildcards that say what it is about ("patient 'P1', k=3") and
        are put before the message of an error, the resources it asked for.

    Raises
    ------
    SystemExit
        With status 1, where an exception was raised: its one line is on the terminal and last in the log; for an
        exception that cohortgmm did not foresee, the traceback stands above it in the log.
    """
    path, terminal = Path(job.log[0]), sys.stderr
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        job_at_work("results"),
        open(path, "w", encoding="utf-8", errors="backslashreplace") as file,
        redirect_stdout(file),
        redirect_stderr(file),
    ):
        root = logging.getLogger()
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        root.addHandler(handler)
        root.setLevel(os.environ.get(LEVEL_VARIABLE, "INFO"))
        line = ""
        try:
            yield
        except Exception as error:
            if not isinstance(error, CohortgmmError):
                traceback.print_exc(file=file)
            line = failure_line(error, describe(job.wildcards))
            print(line, file=terminal)
            raise SystemExit(1) from None
        finally:
            root.removeHandler(handler)
            print(_usage(job.resources), *filter(None, [line]), sep="\n", file=file, flush=True)


def _usage(asked: Any) -> Usage:
    """Of this process so far; zero where the system does not tell."""
    memory, seconds = 0, 0.0
    with suppress(OSError, TypeError, IndexError, ValueError):  # systems differ in what they tell
        # Not getrusage: its peak counts what Snakemake used before it started us.
        status, stat = (
            Path("/proc/self/status").read_text(encoding="utf-8"),
            Path("/proc/self/stat").read_text(encoding="utf-8"),
        )
        memory = int(re.search(r"^VmHWM:\s+(\d+)", status, re.MULTILINE)[1]) >> 10
        started = int(stat.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        seconds = time.clock_gettime(time.CLOCK_BOOTTIME) - started
    attempt = int(os.environ.get(ATTEMPT_VARIABLE, "1"))
    return Usage(memory, int(asked.get("mem_mb", 0)), seconds, 60 * int(asked.get("runtime", 0)), attempt)


def failure_line(error: Exception, context: str = "") -> str:
    """One line for an exception."""
    message = " ".join(str(error).split()) if isinstance(error, CohortgmmError) else _unforeseen(error)
    return f"{ERROR_PREFIX}{context}{': ' if context else ''}{message}"


def _unforeseen(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "out of memory; give the job more (resources mem_mb)"
    return f"{type(error).__name__}: {' '.join(str(error).split())} (traceback in the log)"
