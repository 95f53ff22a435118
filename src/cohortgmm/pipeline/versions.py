"""Which version of cohortgmm made a results folder."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cohortgmm import __version__
from cohortgmm.pipeline.made_with import FOLDER
from cohortgmm.storage.atomic import atomic_path

#: File in the results folder with the version that made them.
VERSION_FILE = f"{FOLDER}/version"

#: The only version that did not write this file.
_FIRST = "0.1.0"


def version_of(results: str | os.PathLike[str]) -> str | None:
    """Version of cohortgmm that made the results in a folder; None if there are none yet."""
    folder = Path(results)
    try:
        return (folder / VERSION_FILE).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return _FIRST if (folder / "patients.tsv").exists() else None


def note_version(results: str | os.PathLike[str]) -> None:
    """Store the present version in a results folder that has no results yet or whose results are all up to date."""
    with atomic_path(Path(results) / VERSION_FILE, keep_if_same=True) as temporary:
        temporary.write_text(f"{__version__}\n", encoding="utf-8")


def version_message(results: str | os.PathLike[str], jobs: Iterable[Any]) -> str | None:
    """Message at the start of a run about results that another version of cohortgmm made.

    Parameters
    ----------
    results
        The results folder.
    jobs
        Snakemake's jobs that will run, as far as they are known.

    Returns
    -------
    str or None
        Both versions and the jobs that replace results; None if there are no results, or if they are of this version.
    """
    made_by = version_of(results)
    if made_by in (None, __version__):
        return None
    replaced = Counter(job.rule.name for job in jobs if any(os.path.exists(path) for path in job.output))
    what = f"{results}/ holds results of cohortgmm {made_by}, and this is cohortgmm {__version__}."
    if not replaced:
        return f"{what} Nothing in them has to be made again."
    listed = ", ".join(f"{count:,} {rule}" for rule, count in sorted(replaced.items()))
    later = "; the fits that have to run again are known after the split" if replaced["split"] else ""
    return f"{what} Jobs whose code or input has changed run again: {listed}{later}."
