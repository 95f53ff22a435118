"""Lines for the end of a run about what the preprocessing left out or renamed. Needs the standard library only.

The preprocessing writes ``results/preprocessed/summary.json``, an object with these entries:

========================== ====================================================================================
``counts``                 where the raw counts were: ``X``, ``raw`` or ``layer:NAME``
``n_cells_input``          cells of the input
``n_cells``                cells that passed the filters
``n_genes_input``          genes of the counts
``n_genes``                genes that passed ``min_cells_per_gene``
``n_top_genes``            highly variable genes that were chosen for the PCA
``filters``                list of ``{key, limit, n_failed}``: a requested filter of cells, its limit, and
                           the number of cells that failed it (a cell may fail several); ``key`` is ``no counts``
                           for cells without any count, which has no limit
``patients_without_cells`` sorted ids of the patients without cells after the filters
``batches_left_out``       batches of ``hvg_batch_col`` that were not used to choose genes, because they have one cell
                           or all their cells are equal
``kept``                   list of ``{entry, kept_as}``: entries of the input that were renamed
``unread``                 entries of the input that anndata cannot read, which are not in the result
``renamed_genes``          number of genes whose name got a suffix, because another gene has the same name
========================== ====================================================================================
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cohortgmm.errors import DataError

#: The number of cells left out is reported at the end of a run only from this share on.
_MANY = 0.5

#: Largest number of names in a line.
_SHOWN = 5


def read_summary(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The summary that the preprocessing wrote.

    Raises
    ------
    DataError
        If the file is missing, damaged, or holds something else.
    """
    try:
        summary = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({os.strerror(error.errno or 0)})") from None
    except ValueError:
        summary = None
    if not isinstance(summary, dict) or not isinstance(summary.get("n_cells"), int):
        raise DataError(f"{path}: damaged, or no summary of the preprocessing: remove it and run again")
    return summary


def filter_notes(summary: Mapping[str, Any]) -> list[str]:
    """Lines about the preprocessing for the user; none if nothing was left out or renamed.

    Parameters
    ----------
    summary
        The content of ``results/preprocessed/summary.json``; entries may be missing.

    Returns
    -------
    list of str
        Complete sentences without a full stop, one line each.
    """
    return [
        *_left_out(summary),
        *_without_effect(summary.get("filters", [])),
        *_lost_patients(summary.get("patients_without_cells", [])),
        *_left_out_batches(summary.get("batches_left_out", [])),
        *_kept(summary.get("kept", [])),
        *_unread(summary.get("unread", [])),
        *_renamed(summary.get("renamed_genes", 0)),
    ]


def _left_out(summary: Mapping[str, Any]) -> list[str]:
    n_input = summary.get("n_cells_input", 0)
    n_dropped = n_input - summary.get("n_cells", n_input)
    if not n_dropped or n_dropped < _MANY * n_input:
        return []
    failed = sorted((row for row in summary.get("filters", []) if row["n_failed"]), key=lambda row: -row["n_failed"])
    causes = ", ".join(f"{row['n_failed']:,} by {_name(row)}" for row in failed)
    several = " (a cell may fail several filters)" if sum(row["n_failed"] for row in failed) > n_dropped else ""
    # Rounded down, so that 100 % means all cells.
    share = int(100 * n_dropped / n_input)
    return [f"preprocessing left out {share} % of the cells ({n_dropped:,} of {n_input:,}): {causes}{several}"]


def _name(row: Mapping[str, Any]) -> str:
    return row["key"] if row.get("limit") is None else f"{row['key']} ({row['limit']:g})"


def _without_effect(filters: list[Mapping[str, Any]]) -> list[str]:
    idle = [_name(row) for row in filters if not row["n_failed"] and row.get("limit") is not None]
    return [f"no cell was left out by preprocess.{' or '.join(idle)}"] if idle else []


def _lost_patients(patients: list[str]) -> list[str]:
    if not patients:
        return []
    return [f"no cell of {_number(len(patients), 'patient')} passed the preprocessing: {_shown(patients)}"]


def _left_out_batches(batches: list[str]) -> list[str]:
    if not batches:
        return []
    number = _number(len(batches), "batch", "batches")
    return [f"the choice of genes left out {number} with one cell or with equal cells only: {_shown(batches)}"]


def _kept(kept: list[Mapping[str, str]]) -> list[str]:
    pairs = ", ".join(f"{row['entry']} as {row['kept_as']}" for row in kept)
    return [f"preprocessing renamed entries of the input whose names it uses: {pairs}"] if kept else []


def _unread(entries: list[str]) -> list[str]:
    return [f"the result lacks entries of the input that anndata cannot read: {', '.join(entries)}"] if entries else []


def _renamed(n_genes: int) -> list[str]:
    if not n_genes:
        return []
    return [f"{_number(n_genes, 'gene')} got a suffix, because other genes have the same names"]


def _number(count: int, one: str, several: str = "") -> str:
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"


def _shown(names: list[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
