"""Marks: hashes of the options and inputs of a result, which differ for results of another configuration."""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from cohortgmm.cohort.fit_options import fit_options
from cohortgmm.storage.atomic import atomic_path

#: Folder in the results in which jobs of the whole cohort store the options and inputs that they used.
FOLDER = ".made_with"

#: Options of the split that change the table of patients, but not the cells of a patient.
_OF_TABLE = ("label_col", "on_mixed_label", "min_cells", "on_small_patient", "smallest_k")


def fit_mark(cells: str | os.PathLike, described: Iterable[str], **options: Any) -> str:
    """Hash of everything that determines a fit.

    Parameters
    ----------
    cells
        The patient's array file.
    described
        Further files that the fit reads, such as a reference.
    options
        All other values that determine the fit, such as its options and the seed of the run.
    """
    return _digest([options, _content_of_archive(cells), [_content(path) for path in described]])


def preprocess_values(cohort: str, options: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Everything that determines the preprocessed cohort."""
    return {"input": _name_and_size(cohort), "preprocess": dict(options), "seed": seed}


def split_values(cohort: str, sheet: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that determines the division of the cohort into patients."""
    return {"cohort": _name_and_size(cohort), "patients": sheet and [_place(sheet), _content(sheet)], **options}


def merge_values(config: str, models: Iterable[str]) -> dict[str, Any]:
    """Everything that determines the merged file: the configuration as JSON, and the marks of all models."""
    return {"config": config, "models": _digest(list(models))}


def write_values(results: str | os.PathLike, job: str, values: Mapping[str, Any]) -> None:
    """Store the values that determine the output of a job of the whole cohort; called when the job has ended."""
    with atomic_path(Path(results) / FOLDER / f"{job}.json") as temporary:
        temporary.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_values(results: str | os.PathLike, job: str) -> dict[str, Any] | None:
    """The values that :func:`write_values` stored; None if there is no readable file."""
    try:
        values = json.loads((Path(results) / FOLDER / f"{job}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def differing(made: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """Names of the values that have changed; none if the earlier values are unknown."""
    return [] if made is None else [name for name in now if _plain(made.get(name)) != _plain(now[name])]


@dataclass(frozen=True)
class Expected:
    """The marks that results of a configuration must have.

    Attributes
    ----------
    config
        The checked configuration, with its files found.
    results
        The results folder.
    """

    config: Any
    results: Path = Path("results")

    def fit(self, name: str) -> str:
        """Mark that the fits of a patient must have, which is the same for every candidate k."""
        gmm = self.config.gmm
        options = {"options": fit_options(gmm), "seed": self.config.seed, "default_range": gmm.k_comps is None}
        return fit_mark(self._cells(name), self._described, **options)

    def model(self, name: str, k: int) -> str:
        """Mark that the final mixture of a patient must have."""
        gmm = self.config.gmm
        options = {"options": fit_options(gmm), "seed": self.config.seed, "refit": gmm.refit, "k": k}
        return fit_mark(self._cells(name), self._described, **options)

    @cached_property
    def changed(self) -> dict[str, list[str]]:
        """For every job of the whole cohort, the keys of the configuration that have changed since it ran."""
        config, cohort = self.config, self.config.input
        found = {}
        if config.preprocess.enabled:
            cohort = str(self.results / "preprocessed" / "cohort.h5ad")
            now = preprocess_values(config.input, config.preprocess.model_dump(), config.seed)
            found["preprocess"] = differing(read_values(self.results, "preprocess"), now)
        now = split_values(cohort, config.patients, config.split_options())
        found["split"] = differing(read_values(self.results, "split"), now)
        return {job: names for job, names in found.items() if names}

    @property
    def moves_cells(self) -> bool:
        """Whether one of the keys that have changed since the split determines the cells of the patients."""
        return bool(self.changed.get("preprocess") or set(self.changed.get("split", ())) - set(_OF_TABLE))

    def is_merged(self, models: Iterable[str]) -> bool:
        """Whether the merged file was made with this configuration and models with these marks; true if unknown."""
        return not differing(read_values(self.results, "merge"), merge_values(self.config.provenance_json(), models))

    def _cells(self, name: str) -> Path:
        return self.results / "patients" / f"{name}.npz"

    @property
    def _described(self) -> list[str]:
        return list(self.config.gmm.files.values())


def _digest(values: Any) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(values: Any) -> Any:
    """The values as they are after writing them to a JSON file and reading them again (tuples become lists)."""
    return json.loads(json.dumps(values))


def _name_and_size(path: str) -> list[Any]:
    """Path and size, for a file that is too large to be hashed."""
    try:
        return [_place(path), os.stat(path).st_size]
    except OSError:
        return [_place(path), None]


def _place(path: str) -> str:
    """Path of a file with links followed: the links of :func:`cohortgmm.pipeline.texts.plain_path` change no mark."""
    return os.path.relpath(os.path.realpath(path))


def _content_of_archive(path: str | os.PathLike) -> list[Any]:
    """Names and checksums of the arrays in an ``.npz`` file; empty if it is missing or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [[info.filename, info.CRC] for info in archive.infolist()]
    except (OSError, zipfile.BadZipFile):
        return []


def _content(path: str | os.PathLike) -> str:
    """Checksum of a small file; empty if it is missing."""
    try:
        stat = os.stat(path)
        return _checksum(os.fspath(path), stat.st_mtime_ns, stat.st_size)
    except OSError:
        return ""


@lru_cache
def _checksum(path: str, *version: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
