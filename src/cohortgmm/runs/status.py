"""What has come of every patient and k, from the files alone."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cohortgmm.cohort.tables import read_rows
from cohortgmm.errors import CohortgmmError
from cohortgmm.files import COHORT, patient_name
from cohortgmm.runs.failures import last_error
from cohortgmm.runs.lock import lock_holders

#: States of a fit and how they are drawn.
SIGNS = {"done": "+", "failed": "!", "running": "r", "stopped": "x", "to do": "."}

#: Up to so many patients are all drawn; of more, those that are not finished.
_MOST_ROWS = 50


@dataclass(frozen=True)
class Status:
    """How far a run has come.

    Attributes
    ----------
    candidates
        The k.
    fits
        By patient: the state of every fit, a key of :data:`SIGNS`.
    models
        Patients whose final mixture is there.
    errors
        The last line of every log of a failed fit, by patient and k.
    holders
        Runs at work on it.
    merged
        Whether there is a merged file.
    """

    candidates: Sequence[int]
    fits: dict[str, list[str]]
    models: set[str]
    holders: list[str] = field(default_factory=list)
    errors: dict[tuple[str, int], str] = field(default_factory=dict)
    merged: bool = False

    def __str__(self) -> str:
        counts = Counter(state for states in self.fits.values() for state in states)
        total = len(self.fits) * len(self.candidates)
        parts = [f"{counts[state]:,} {state}" for state in SIGNS if counts[state] and state != "done"]
        lines = [
            f"{len(self.fits):,} patients × {len(self.candidates)} k: {counts['done']:,} of {total:,} fits done"
            + "".join(f", {part}" for part in parts),
            f"{len(self.models):,} of {len(self.fits):,} final mixtures; cohort_gmm.h5ad is "
            + ("there" if self.merged else "not there yet"),
            *(f"at work: {holder}" for holder in self.holders or ["nobody"]),
        ]
        return "\n".join([*lines, *self._grid(), *self._errors()])

    def _grid(self) -> list[str]:
        rows = list(self.fits)
        if len(rows) > _MOST_ROWS:
            rows = [name for name in rows if name not in self.models]
        if not rows:
            return []
        hidden = max(0, len(rows) - _MOST_ROWS)
        rows = rows[:_MOST_ROWS]
        names = {name: patient_name(name) for name in rows}
        width = max(7, *(len(name) for name in names.values()))
        cells = [max(2, len(str(k))) for k in self.candidates]
        head = "  ".join(f"{k:>{size}}" for k, size in zip(self.candidates, cells, strict=True))
        lines = ["", f"{'patient':<{width}}  {head}  model"]
        for row in rows:
            signs = "  ".join(f"{SIGNS[s]:>{size}}" for s, size in zip(self.fits[row], cells, strict=True))
            lines.append(f"{names[row]:<{width}}  {signs}  {SIGNS['done'] if row in self.models else SIGNS['to do']}")
        lines += [f"... and {hidden:,} more that are not finished"] if hidden else []
        return [*lines, "", ", ".join(f"{sign} {state}" for state, sign in SIGNS.items())]

    def _errors(self) -> list[str]:
        return ["", *(f"{text}" for text in self.errors.values())] if self.errors else []


def read_status(results: str | os.PathLike, candidates: Iterable[int], component_sharing: str) -> Status:
    """Look at the files of a run.

    Parameters
    ----------
    results
        The results folder.
    candidates
        The k of the configuration.
    component_sharing
        Of the configuration, resolved.

    Raises
    ------
    CohortgmmError
        If the cohort has not been split yet.
    """
    results, candidates = Path(results), list(candidates)
    table = results / "patients.tsv"
    if not table.is_file():
        raise CohortgmmError(f"{table} is not there: the run has not come to the division of the patients yet")
    kept = [row["file"] for row in read_rows(table) if row["status"] == "ok"]
    names = [COHORT] if component_sharing == "global" else kept
    holders = lock_holders(results)
    scores, logs = _ks(results / "fits", names, "json"), _ks(results / "logs" / "fit", names, "log")
    fits: dict[str, list[str]] = {}
    errors = {}
    for name in names:
        fits[name] = []
        for k in candidates:
            state = "done" if k in scores[name] else "to do"
            if state == "to do" and k in logs[name]:
                error = last_error(str(results / "logs" / "fit" / name / f"k{k}.log"))
                state = "failed" if error else "running" if holders else "stopped"
                if error:
                    errors[name, k] = error
            fits[name].append(state)
    models = {path.stem for path in (results / "models").glob("*.npz")}.intersection(names)
    return Status(candidates, fits, models, holders, errors, (results / "cohort_gmm.h5ad").is_file())


def _ks(folder: Path, names: Iterable[str], suffix: str) -> dict[str, set[int]]:
    """The k of files such as ``folder/name/k3.json``; a listing for each patient, not a look at each file."""
    found = {}
    for name in names:
        try:
            files = os.listdir(folder / name)
        except OSError:
            files = []
        stems = (file.removesuffix(f".{suffix}")[1:] for file in files if file.endswith(f".{suffix}"))
        found[name] = {int(stem) for stem in stems if stem.isdecimal()}
    return found
