"""The state of every patient and k, read from the files of a run."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cohortgmm.cohort.selection import select_k
from cohortgmm.cohort.tables import Row, read_marked_score, read_patients
from cohortgmm.display import format_text
from cohortgmm.errors import CohortgmmError, DataError
from cohortgmm.pipeline.failures import FAILED_TABLE, Failure, last_error, read_failures
from cohortgmm.pipeline.lock import held_since, lock_holders
from cohortgmm.pipeline.made_with import Expected
from cohortgmm.storage.marks import mark_of_archive
from cohortgmm.storage.names import COHORT, patient_name

#: States of a fit, and the character that stands for each in the grid.
SIGNS = {
    "done": "+",
    "of another configuration": "~",
    "damaged": "?",
    "failed": "!",
    "running": "r",
    "stopped": "x",
    "to do": ".",
}

#: States that the legend lists only if they occur.
_RARE = ("of another configuration", "damaged")

#: The file with all mixtures.
MERGED = "cohort_gmm.h5ad"

#: Largest number of rows of the grid. If there are more patients, only unfinished ones are shown.
_MOST_ROWS = 50

#: Largest number of errors that are shown.
_MOST_ERRORS = 20

#: Seconds by which the log of a job may seem older than the run, because the clocks of nodes differ.
_LEEWAY = 10

#: Rules that run before the cohort is divided into patients.
_FIRST_RULES = ("check_input", "preprocess", "split")

#: For every rule, the output that its jobs write last. A rule ``qc_NAME`` that is not listed writes ``qc/NAME.png``.
_LAST_OUTPUTS = {
    "check_input": "preprocessed/input.checked",
    "preprocess": "preprocessed/cohort.h5ad",
    "split": "patients.tsv",
    "select": "selection/{patient}.tsv",
    "select_cohort": "selection.tsv",
    "refit": "models/{patient}.npz",
    "merge": "cohort_gmm.h5ad",
    "qc_cells": "qc/cells.npz",
    "qc_tables": "qc/composition.tsv",
    "qc_patient": "qc/patients/{patient}.png",
    "qc_correction": "qc/corrections/{patient}.png",
    "efficiency": "qc/efficiency.tsv",
}


@dataclass(frozen=True)
class Status:
    """The progress of a run.

    Attributes
    ----------
    candidates
        The candidate numbers of components k.
    fits
        The state of every fit (a key of :data:`SIGNS`), by patient.
    models
        Patients with a final mixture of this configuration.
    holders
        Runs that hold the lock of the results.
    errors
        Error of every failed fit, by patient and k.
    merged
        Whether there is a merged file of this configuration.
    stale
        Results of another configuration: the patients whose final mixture is one, and "cohort_gmm.h5ad" if it is one.
    changed
        Keys of the configuration that have changed since the cohort was divided.
    other_errors
        Errors of jobs other than fits in the last completed run, without jobs whose output has been made since.
    """

    candidates: Sequence[int]
    fits: dict[str, list[str]]
    models: set[str]
    holders: list[str] = field(default_factory=list)
    errors: dict[tuple[str, int], str] = field(default_factory=dict)
    merged: bool = False
    stale: Collection[str] = ()
    changed: Sequence[str] = ()
    other_errors: Sequence[str] = ()

    def __str__(self) -> str:
        counts = Counter(state for states in self.fits.values() for state in states)
        total = len(self.fits) * len(self.candidates)
        parts = [f"{counts[state]:,} {state}" for state in SIGNS if counts[state] and state != "done"]
        lines = [
            f"{len(self.fits):,} patients × {len(self.candidates)} k: {counts['done']:,} of {total:,} fits done"
            + "".join(f", {part}" for part in parts),
            f"{len(self.models):,} of {len(self.fits):,} final mixtures{self._stale_models()}; cohort_gmm.h5ad is "
            + ("there" if self.merged else "of another configuration" if MERGED in self.stale else "not there yet"),
            *(f"at work: {holder}" for holder in self.holders or ["nobody"]),
            *self._advice(counts),
        ]
        return "\n".join([*lines, *self._grid(), *self._errors()])

    def _stale_models(self) -> str:
        n_stale = len(set(self.stale) - {MERGED})
        return f" ({n_stale:,} more are of another configuration)" if n_stale else ""

    def _advice(self, counts: Mapping[str, int]) -> list[str]:
        """Line about the keys that have changed since the results were made; empty if the results are current."""
        if not (self.stale or self.changed or counts["of another configuration"]):
            return []
        keys = f" ({', '.join(self.changed)})" if self.changed else ""
        return [f"the configuration has changed since{keys}: the next run repeats the jobs that depend on it"]

    def _model_sign(self, name: str) -> str:
        state = "done" if name in self.models else "of another configuration" if name in self.stale else "to do"
        return SIGNS[state]

    def _grid(self) -> list[str]:
        rows = list(self.fits)
        if len(rows) > _MOST_ROWS:
            rows = [name for name in rows if name not in self.models]
        if not rows:
            return []
        hidden = max(0, len(rows) - _MOST_ROWS)
        rows = rows[:_MOST_ROWS]
        names = {name: format_text(patient_name(name)) for name in rows}
        width = max(7, *(len(name) for name in names.values()))
        cells = [max(2, len(str(k))) for k in self.candidates]
        head = "  ".join(f"{k:>{size}}" for k, size in zip(self.candidates, cells, strict=True))
        lines = ["", f"{'patient':<{width}}  {head}  model"]
        for row in rows:
            signs = "  ".join(f"{SIGNS[s]:>{size}}" for s, size in zip(self.fits[row], cells, strict=True))
            lines.append(f"{names[row]:<{width}}  {signs}  {self._model_sign(row)}")
        lines += [f"... and {hidden:,} more that are not finished"] if hidden else []
        seen = {state for row in rows for state in self.fits[row]}
        seen |= {"of another configuration"} if self.stale else set()
        signs = [f"{sign} {state}" for state, sign in SIGNS.items() if state in seen or state not in _RARE]
        return [*lines, "", ", ".join(signs)]

    def _errors(self) -> list[str]:
        # The grid shows failed fits too, but no other failed jobs, so the errors of other jobs come first.
        errors = list(dict.fromkeys([*self.other_errors, *self.errors.values()]))
        if not errors:
            return []
        hidden = len(errors) - _MOST_ERRORS
        more = [f"... and {hidden:,} more in results/{FAILED_TABLE} or results/logs"] if hidden > 0 else []
        return ["", *errors[:_MOST_ERRORS], *more]


class _Jobs:
    """The state of jobs without a result, from logs and the table of failures.

    Parameters
    ----------
    results
        The results folder.
    """

    def __init__(self, results: Path) -> None:
        self.results = results
        self.holders = lock_holders(results)
        self.began = held_since(results) - _LEEWAY
        self.failed_at = _time(results / FAILED_TABLE)
        self.failures = {(job.rule, job.patient, job.k): job for job in read_failures(str(results))}

    def fit(self, name: str, k: int, has_log: bool) -> tuple[str, str]:
        """State of a fit, and its error if it failed."""
        log, failure = self.results / "logs" / "fit" / name / f"k{k}.log", self.failures.get(("fit", name, str(k)))
        time = _time(log) if has_log else 0.0
        error = last_error(str(log), self.failed_at if failure else 0.0) if has_log else ""
        is_of_this_run = bool(self.holders) and time > self.began
        if not error and failure and not (is_of_this_run and time > self.failed_at):
            error = str(failure)
        if error:
            return "failed", error
        if not has_log or (self.holders and not is_of_this_run):
            return "to do", ""
        return "running" if self.holders else "stopped", ""

    def others(self, names: Iterable[str]) -> list[str]:
        """Errors of jobs other than fits that concern the cohort or one of its patients."""
        known = {"", *names}
        return [
            str(job)
            for job in self.failures.values()
            if job.rule != "fit" and job.patient in known and self._is_left(job)
        ]

    def before_split(self) -> str:
        """The error that kept the run from dividing the cohort; empty if none is known."""
        # While a run is at work, the table of failures is still that of the previous run.
        failures = [] if self.holders else self.failures.values()
        failure = next((job for job in failures if job.rule in _FIRST_RULES and self._is_left(job)), None)
        newest = max((self.results / "logs" / f"{rule}.log" for rule in _FIRST_RULES), key=_time)
        return str(failure) if failure else last_error(str(newest), self.began)

    def _is_left(self, job: Failure) -> bool:
        """Whether a failure still stands: the output of the job has not been made since."""
        output = _LAST_OUTPUTS.get(job.rule, f"qc/{job.rule.removeprefix('qc_')}.png")
        return _time(self.results / output.format(patient=job.patient)) <= self.failed_at


def read_status(
    results: str | os.PathLike, candidates: Iterable[int], component_sharing: str, expected: Expected | None = None
) -> Status:
    """The state of a run, from its files.

    Parameters
    ----------
    results
        The results folder.
    candidates
        The k of the configuration.
    component_sharing
        Value of this key in the configuration, ``"sample_specific"`` or ``"global"``.
    expected
        The marks that results of the configuration must have; None accepts all results as made with it.

    Raises
    ------
    CohortgmmError
        If a table is damaged, or if the cohort has not been divided into patients yet. The message then has the error
        that stopped the run, if it is known.
    """
    results, candidates = Path(results), list(candidates)
    jobs, table = _Jobs(results), results / "patients.tsv"
    if not table.is_file():
        error = jobs.before_split()
        raise CohortgmmError(
            f"{table} does not exist: the cohort has not been divided into patients yet"
            + (f", because of an error: {error}" if error else "")
        )
    kept = [row["file"] for row in read_patients(table) if row["status"] == "ok"]
    names = [COHORT] if component_sharing == "global" else kept
    scores, logs = _ks(results / "fits", names, "json"), _ks(results / "logs" / "fit", names, "log")
    made = _Made(results, expected)
    fits: dict[str, list[str]] = {}
    errors = {}
    for name in names:
        fits[name] = []
        for k in candidates:
            state, error = made.fit(name, k) if k in scores[name] else ("to do", "")
            if state != "done":
                now, reason = jobs.fit(name, k, k in logs[name])
                state, error = (now, reason) if state == "to do" or now == "running" else (state, error)
            fits[name].append(state)
            if error:
                errors[name, k] = error
    there = {path.stem for path in (results / "models").glob("*.npz")}.intersection(names)
    models = {name for name in there if made.model(name, fits[name])}
    is_there, merged = (results / MERGED).is_file(), False
    if is_there:
        merged = expected is None or (models == set(names) and expected.is_merged(map(made.mark, names)))
    stale = (there - models) | ({MERGED} if is_there and not merged else set())
    return Status(
        candidates,
        fits,
        models,
        jobs.holders,
        errors,
        merged,
        stale,
        [] if expected is None else sorted({key for keys in expected.changed.values() for key in keys}),
        jobs.others(names),
    )


class _Made:
    """Whether results are those of a configuration.

    Parameters
    ----------
    results
        The results folder.
    expected
        The marks that results of the configuration must have; None accepts all results as made with it.
    """

    def __init__(self, results: Path, expected: Expected | None) -> None:
        self._results, self._expected = results, expected
        self._rows: dict[str, list[Row]] = {}
        self._marks: dict[str, str] = {}

    def fit(self, name: str, k: int) -> tuple[str, str]:
        """State of a fit that has scores, and the error if they are damaged."""
        if self._expected is None:
            return "done", ""
        if self._expected.moves_cells:
            return "of another configuration", ""
        try:
            row, mark = read_marked_score(self._results / "fits" / name / f"k{k}.json")
        except (DataError, OSError) as error:
            return "damaged", str(error)
        if name not in self._marks:
            self._marks[name] = self._expected.fit(name)
        if mark != self._marks[name]:
            return "of another configuration", ""
        self._rows.setdefault(name, []).append(row)
        return "done", ""

    def model(self, name: str, states: Sequence[str]) -> bool:
        """Whether the final mixture of a patient, whose fits are in these states, is that of the configuration."""
        if self._expected is None:
            return True
        if set(states) != {"done"}:
            return False
        try:
            k = select_k(self._rows[name], self._expected.config.gmm.k_selection_metric)["k"]
        except DataError:
            return False
        return self.mark(name) == self._expected.model(name, k)

    def mark(self, name: str) -> str:
        """The mark in the file of a patient's final mixture."""
        return mark_of_archive(self._results / "models" / f"{name}.npz")


def _ks(folder: Path, names: Iterable[str], suffix: str) -> dict[str, set[int]]:
    """The k of files such as ``folder/name/k3.json``, from one listing per patient."""
    found = {}
    for name in names:
        try:
            files = os.listdir(folder / name)
        except OSError:
            files = []
        stems = (file.removesuffix(f".{suffix}")[1:] for file in files if file.endswith(f".{suffix}"))
        found[name] = {int(stem) for stem in stems if stem.isdecimal()}
    return found


def _time(path: Path) -> float:
    """Time at which a file was written; 0 if it does not exist."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
