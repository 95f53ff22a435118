"""Messages of a run when it begins and when it has succeeded."""

import io
import logging
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from cohortgmm import __version__
from cohortgmm.cohort.tables import FRAME_COLUMNS, read_rows
from cohortgmm.errors import DataError
from cohortgmm.pipeline.failures import event_of
from cohortgmm.pipeline.slurm.shards import PATIENT_RULES
from cohortgmm.pipeline.usage import COLUMNS
from cohortgmm.storage.names import COHORT

#: Shards are recommended if the median fit takes fewer seconds than the first number, and the number of fits is at
#: least the second.
_SHORT_FIT, _MANY_FITS = 60, 20


def start_message(executor: str, jobs: Sequence[Any], n_patients: int | None, has_results: bool) -> str:
    """Message before the first job: where the run works, what it requests, and whether every patient is fitted again.

    Parameters
    ----------
    executor
        Name of Snakemake's executor.
    jobs
        The jobs that Snakemake knows so far.
    n_patients
        Number of patients of the cohort; None while it is unknown. Not used if any of the jobs is for a patient; then
        the patients of the jobs are counted.
    has_results
        Whether scores of an earlier run exist.
    """
    jobs = [job for job in jobs if job.rule.name != "all"]
    planned = Counter(job.rule.name for job in jobs)
    hours = sum(job.threads * int(job.resources.get("runtime", 0)) for job in jobs) / 60
    named = {job.wildcards.patient for job in jobs if hasattr(job.wildcards, "patient")} - {COHORT}
    n_patients = len(named) or n_patients
    more = ", more once the patients are known" if n_patients is None or planned.get("split") else ""
    whom = "" if n_patients is None else f" for {n_patients:,} patient{'s' if n_patients != 1 else ''}"
    lines = [
        f"cohortgmm {__version__}: {len(jobs):,} jobs{whom}{more}, executor {executor}; "
        f"time limits of {hours:,.1f} core-hours in all"
    ]
    lines += ["  " + ", ".join(f"{count:,} {rule}" for rule, count in sorted(planned.items()))] if planned else []
    if planned.get("preprocess") and has_results:
        lines.append(
            "The embedding is computed again from all patients, which moves the cells of every patient, so all are fitted "
            "again. To add patients without that, use an embedding of your own with preprocess.enabled: false."
        )
    return "\n".join(lines)


class AfterSplit(logging.Handler):
    """Handler that calls a function when the first job of a patient begins, as all jobs are known to Snakemake then.

    Parameters
    ----------
    tell
        The function; it is called only once.
    """

    def __init__(self, tell: Callable[[], None]) -> None:
        super().__init__(logging.INFO)
        self._tell: Callable[[], None] | None = tell

    def emit(self, record: logging.LogRecord) -> None:
        if event_of(record) == "JOB_INFO" and self._tell and getattr(record, "rule_name", "") in PATIENT_RULES:
            tell, self._tell = self._tell, None
            tell()


def show_everything(logger: logging.Logger) -> None:
    """Make Snakemake's log escape characters that the encoding of the locale cannot represent, instead of failing."""
    for handler in logger.handlers:
        stream = getattr(handler, "stream", None)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def way_message(executor: str, n_fits: int, scores: str | os.PathLike) -> str:
    """Advice to use shards if fits are so short that one SLURM job per fit is inefficient; else empty.

    Parameters
    ----------
    executor
        Name of Snakemake's executor.
    n_fits
        Number of fits of this run.
    scores
        Table of scores of an earlier run, or of this one; it need not exist.
    """
    if executor != "slurm" or n_fits < _MANY_FITS or not os.path.exists(scores):
        return ""
    try:
        texts = [row["seconds"] for row in read_rows(scores, ["seconds"], "scores")]
        seconds = [float(text) for text in texts if text not in ("", "nan")]  # a skipped fit has no seconds
    except ValueError:  # the job that reads the damaged table reports it
        return ""
    if not seconds or median(seconds) >= _SHORT_FIT:
        return ""
    return (
        f"A fit takes {median(seconds):.1f} s here (median of {scores}), a SLURM job about 6 s more: "
        "make slurm-shards runs them in few SLURM jobs."
    )


def report_problem(
    jobs: Sequence[Any], configfiles: Iterable[str | os.PathLike], workflow_dir: str | os.PathLike
) -> str:
    """Why no report can be made: a table is damaged, or the results are not up to date; empty if it can be made.

    Parameters
    ----------
    jobs
        Snakemake's jobs that would run.
    configfiles, workflow_dir
        Files of the configuration and folder of the Snakefile, for :func:`run_options`.
    """
    try:
        _check_tables()
    except DataError as error:
        return f"no report: {error}"
    planned = Counter(job.rule.name for job in jobs if job.rule.name != "all")
    if not planned:
        return ""
    what = ", ".join(f"{count:,} {rule}" for rule, count in sorted(planned.items()))
    return (
        f"no report: the results are not, or not all, those of this configuration and input; jobs that would run: {what}. "
        f"Run first: snakemake{run_options(configfiles, workflow_dir)} --cores all"
    )


def _check_tables() -> None:
    """Raise an error if a table that the report shows is damaged."""
    tables = {"results/qc/efficiency.tsv": ("efficiency", COLUMNS)}
    for content, columns in FRAME_COLUMNS.items():
        folder = "results" if content in ("scores", "selection") else "results/qc"
        tables[f"{folder}/{content}.tsv"] = (content, columns)
    for path, (content, columns) in tables.items():
        if os.path.exists(path):
            read_rows(path, columns, content)


def finish_message(configfiles: Iterable[str | os.PathLike], workflow_dir: str | os.PathLike) -> str:
    """Message at the end of a run: how to make the report, with the options of this run."""
    return f"Finished. For the report: snakemake{run_options(configfiles, workflow_dir)} --report results/report.html"


def run_options(configfiles: Iterable[str | os.PathLike], workflow_dir: str | os.PathLike) -> str:
    """Options of Snakemake that select the configuration and the working directory of this run."""
    options = "".join(f" --configfile {shlex.quote(str(path))}" for path in configfiles)
    if Path.cwd() != Path(workflow_dir).resolve():
        options = f" --directory {shlex.quote(str(Path.cwd()))}{options}"
    return options
