"""The units of fitting: every patient, or the whole cohort as one unit; and the chosen k of each unit."""

import functools
import os
from collections.abc import Iterable
from pathlib import Path

from cohortgmm.cohort.selection import select_k
from cohortgmm.cohort.tables import read_patients, read_scores
from cohortgmm.errors import CohortgmmError
from cohortgmm.storage.names import COHORT, escape_id


def unit_names(component_sharing: str, table: str | os.PathLike) -> dict[str, None]:
    """File names of the units of fitting, in order: every kept patient of the table, or the whole cohort as one unit.

    Returns
    -------
    dict
        The names as keys, so that every job can look up its own quickly.

    Raises
    ------
    CohortgmmError
        If an array file that the table lists is missing.
    """
    stat = os.stat(table)
    return _unit_names(component_sharing, str(table), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1)
def _unit_names(component_sharing: str, table: str, *version: int) -> dict[str, None]:
    # Cached as long as the table is unchanged, because the input function of every job calls this.
    kept = [row["file"] for row in read_patients(table) if row["status"] == "ok"]
    names = [COHORT] if component_sharing == "global" else kept
    folder = Path(table).with_suffix("")
    there = {path.stem for path in folder.glob("*.npz")} if folder.is_dir() else set()
    lost = [name for name in names if name not in there]
    if lost:
        raise CohortgmmError(
            f"{len(lost)} array files are gone, the first is {folder / lost[0]}.npz: run once with -R split"
        )
    return dict.fromkeys(names)


def sheet_unit_names(component_sharing: str, patients: Iterable[str], table: str | os.PathLike = "") -> dict[str, None]:
    """File names of the units expected from a sample sheet, without patients that the table, if any, has as dropped."""
    if component_sharing == "global":
        return {COHORT: None}
    rows = read_patients(table) if table and os.path.exists(table) else []
    dropped = {row["patient"] for row in rows if row["status"] == "dropped"}
    return dict.fromkeys(escape_id(patient) for patient in patients if patient not in dropped)


def chosen_k(table: str | os.PathLike, metric: str) -> int | str:
    """The k that a criterion chooses from a patient's table of scores; "not chosen yet" if there is no such table.

    As a parameter of the rule ``refit``, it makes Snakemake repeat the final fit of a patient if another k is chosen.
    """
    try:
        rows = read_scores(table)
        return select_k(rows, metric)["k"] if rows else "not chosen yet"
    except (OSError, CohortgmmError):  # the job that reads the table reports what is wrong with it
        return "not chosen yet"


def has_lost_patients(results: str | os.PathLike) -> bool:
    """Whether results exist although the table of patients, or the file of their cells' positions, is missing.

    This is also true of results of an earlier version, which wrote no positions.
    """
    folder = Path(results)
    split = [(folder / name).exists() for name in ("patients.tsv", "positions.npz")]
    behind = ("scores.tsv", "selection.tsv", "cohort_gmm.h5ad", "models", "fits")
    return not all(split) and (any(split) or any((folder / name).exists() for name in behind))
