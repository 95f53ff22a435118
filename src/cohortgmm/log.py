"""What a job of the pipeline says: a log file, and one line where it fails."""

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from cohortgmm.errors import CohortgmmError

#: How the last line of a failed job's log begins.
ERROR_PREFIX = "error: "

#: Environment variable with the level of what goes to the log.
LEVEL_VARIABLE = "COHORTGMM_LOG_LEVEL"


@contextmanager
def job_log(path: str | os.PathLike, context: str = "") -> Iterator[None]:
    """Send everything a job says to its log; end the job with one line where it fails.

    Parameters
    ----------
    path
        The log file.
    context
        What the job is about ("patient P1, k=3"), put before the message of an error.

    Raises
    ------
    SystemExit
        With status 1, where an exception was raised: its one line is on the terminal and last in the log; for an
        exception that cohortgmm did not foresee, the traceback stands above it in the log.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    terminal = sys.stderr
    with open(path, "w") as file, redirect_stdout(file), redirect_stderr(file):
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
            print(line := failure_line(error, context), file=file, flush=True)
            print(line, file=terminal)
            raise SystemExit(1) from None
        finally:
            root.removeHandler(handler)


def failure_line(error: Exception, context: str = "") -> str:
    """One line for an exception."""
    message = " ".join(str(error).split()) if isinstance(error, CohortgmmError) else _unforeseen(error)
    return f"{ERROR_PREFIX}{context}{': ' if context else ''}{message}"


def _unforeseen(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "out of memory; give the job more (resources mem_mb)"
    return f"{type(error).__name__}: {' '.join(str(error).split())} (traceback in the log)"
