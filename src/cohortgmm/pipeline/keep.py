"""Copy the models of a run out of its results folder, so that configurations of later runs can name them."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cohortgmm.cohort.tables import FRAME_COLUMNS, read_rows
from cohortgmm.display import format_path
from cohortgmm.errors import CohortgmmError
from cohortgmm.pipeline.inputs import KEPT, result_of_run
from cohortgmm.pipeline.made_with import Expected
from cohortgmm.pipeline.messages import run_options
from cohortgmm.pipeline.status import MERGED, Status, read_status

#: Tables that are copied with the models; a damaged table is an error.
_TABLES = tuple(pattern for pattern in KEPT if pattern.endswith(".tsv"))


def keep(results: str | os.PathLike, target: Path, config: Any, configfile: Path, workflow_dir: Path) -> list[str]:
    """Copy the models and tables of a finished run, and its configuration, to a new folder.

    Parameters
    ----------
    results
        The results folder.
    target
        The new folder. It is created only when all files in it are complete.
    config
        The checked configuration.
    configfile
        The file of the configuration, which is copied too.
    workflow_dir
        The folder of the Snakefile.

    Returns
    -------
    list of str
        Names of the copies within the folder.

    Raises
    ------
    CohortgmmError
        If the new folder cannot be made, is not empty or is within the results; if a run is using the results; or if
        results are missing, damaged, or of another configuration.
    """
    results, target = Path(results), Path(os.path.abspath(target))
    _check_target(target, results)
    names = _results_of(results, config, configfile, workflow_dir)
    _copy([(results / name, name) for name in names] + [(configfile, "config.yaml")], target)
    return [*names, "config.yaml"]


def _check_target(target: Path, results: Path) -> None:
    shown = format_path(target)
    if result_of_run(target, results) or _is_within(target, results):
        raise CohortgmmError(f"{shown} is in the results, which the next run removes: choose a folder outside of them")
    if target.is_symlink() or target.exists():
        if not target.is_dir():
            raise CohortgmmError(f"{shown} is there and is no folder: choose another name")
        if any(target.iterdir()):
            raise CohortgmmError(f"{shown} is there and is not empty: choose another name, or empty it first")


def _is_within(path: Path, folder: Path) -> bool:
    """Whether a path, which need not exist, is within a folder after links have been followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _results_of(results: Path, config: Any, configfile: Path, workflow_dir: Path) -> list[str]:
    """Names of the results to copy; an error unless all of them exist and are of this configuration."""
    run = f"run snakemake{run_options([configfile], workflow_dir)} --cores all"
    made = f"{run}, or name the configuration that made them with --configfile"
    found = read_status(results, config.gmm.candidates, config.component_sharing, Expected(config, results))
    if found.holders:
        raise CohortgmmError(f"a run is at work on {format_path(results)} ({found.holders[0]}): wait for its end")
    if problem := _problem(found):
        raise CohortgmmError(f"{problem}: {made}")
    for name in _TABLES:
        if not (results / name).is_file():
            raise CohortgmmError(f"{format_path(results / name)} does not exist: {run}")
    if problem := _check_tables(results, config):
        raise CohortgmmError(f"{problem}: {made}")
    return [*(f"models/{name}.npz" for name in found.fits), *_TABLES]


def _problem(found: Status) -> str:
    """Why the models of a run cannot be kept; empty if they can."""
    if n_missing := len(found.fits) - len(found.models):
        n_stale = len(set(found.stale) - {MERGED})
        states = ["missing"] * (n_stale < n_missing) + ["of another configuration"] * (n_stale > 0)
        return f"{n_missing:,} of {len(found.fits):,} final mixtures are {' or '.join(states)}"
    if found.changed or MERGED in found.stale:
        keys = f" ({', '.join(found.changed)})" if found.changed else ""
        return f"the configuration has changed since the run{keys}"
    return ""


def _check_tables(results: Path, config: Any) -> str:
    """Why the tables are not of this configuration; empty if they are. A damaged table raises an error."""
    read_rows(results / "scores.tsv", FRAME_COLUMNS["scores"], "scores")
    selection = read_rows(results / "selection.tsv", FRAME_COLUMNS["selection"], "selection")
    metric = config.gmm.k_selection_metric
    others = {row["metric"] for row in selection} - {metric}
    return f"k was chosen by {', '.join(sorted(others))}, not by {metric}" if others else ""


def _copy(files: Sequence[tuple[Path, str]], target: Path) -> None:
    """Copy files to a new folder, which gets its name only when all files are complete."""
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        temporary.chmod(0o777 & ~_umask())
        for source, name in files:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, temporary / name)
        os.rename(temporary, os.path.realpath(target))
    except OSError as error:
        raise CohortgmmError(f"cannot write {format_path(target)}: {error.strerror or error}") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def keep_message(target: Path, names: Sequence[str]) -> str:
    """What was copied, and how to name it in a configuration."""
    models = [name for name in names if name.startswith("models/")]
    others = [name for name in names if name not in models]
    path = format_path(target / models[0])
    return "\n".join(
        [
            f"copied to {format_path(target)}: {len(models):,} model{'s' if len(models) != 1 else ''}, {', '.join(others)}",
            "for a configuration that maps patients onto one of the models:",
            "gmm:",
            f"  reference: {_yaml(path)}",
        ]
    )


def _yaml(text: str) -> str:
    """A text as a value of a configuration."""
    import yaml

    return yaml.safe_dump(text, allow_unicode=True, width=10_000).removesuffix("...\n").strip()
