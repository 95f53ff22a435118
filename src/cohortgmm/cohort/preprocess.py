"""Preprocessing of a cohort, from raw counts to an embedding; all entries of the input are kept."""

import json
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from cohortgmm.cohort.counts import element_of, raw_counts
from cohortgmm.cohort.embedding import embed, read_batches
from cohortgmm.cohort.entries import Entries, is_same
from cohortgmm.cohort.filter_notes import filter_notes
from cohortgmm.cohort.filters import CellFilter, cell_filters, detected_in
from cohortgmm.cohort.patients import check_cell_names, patient_ids
from cohortgmm.cohort.reading import named_layers
from cohortgmm.cohort.whole_file import read_cohort, write_cohort
from cohortgmm.config import PreprocessConfig
from cohortgmm.errors import DataError
from cohortgmm.storage.atomic import atomic_path

logger = logging.getLogger(__name__)


def preprocess_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    options: PreprocessConfig,
    seed: int,
    *,
    summary: str | os.PathLike[str] | None = None,
    patient_col: str | Sequence[str] | None = None,
) -> None:
    """Read raw counts from an ``.h5ad``, compute the embedding and write everything to another.

    Parameters
    ----------
    source, target
        The files.
    options
        See :class:`~cohortgmm.config.PreprocessConfig`.
    seed
        Seed of the PCA and of Harmony.
    summary
        JSON file for the summary, see :mod:`~cohortgmm.cohort.filter_notes`; None for none.
    patient_col
        Column or columns of ``obs`` that name the patient, for the list of patients without cells; None for no list.
    """
    cohort = read_cohort(source, needed=element_of(options.counts))
    adata, account = _preprocess(cohort.release(), options, seed, patient_col)
    account["kept"] = cohort.renamed + account["kept"]
    with atomic_path(target) as temporary:
        account["unread"] = [*cohort.left_out, *write_cohort(adata, temporary, source, cohort.unread)]
    for note in filter_notes(account):
        logger.warning("%s", note)
    if summary is not None:
        with atomic_path(summary) as temporary:
            Path(temporary).write_text(json.dumps(account, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def preprocess(adata: ad.AnnData, options: PreprocessConfig, seed: int) -> ad.AnnData:
    """Compute an embedding: filter, normalise, log-transform, choose genes, reduce to principal components.

    The cells are sorted by name for the computation, so that the result does not depend on their order in the file.

    Parameters
    ----------
    adata
        The cohort, with raw counts at ``options.counts``. It is not changed.
    options
        See :class:`~cohortgmm.config.PreprocessConfig`.
    seed
        Seed of the PCA and of Harmony.

    Returns
    -------
    AnnData
        All genes that passed the filter; X log-normalised, ``layers["counts"]`` raw, ``obsm["X_pca"]`` and, with
        ``harmony_col``, ``obsm["X_pca_harmony"]``; ``uns["cohortgmm_preprocess"]`` has the numbers of cells and genes.
        Entries of the input under the same keys are kept as ``<key>_input``.

    Raises
    ------
    DataError
        If there are no raw counts, a column is missing, or too few cells or genes are left.
    """
    return _preprocess(adata, options, seed, None)[0]


def _preprocess(
    adata: ad.AnnData, options: PreprocessConfig, seed: int, patient_col: str | Sequence[str] | None
) -> tuple[ad.AnnData, dict[str, Any]]:
    """Like :func:`preprocess`, but also return the content of the summary."""
    check_cell_names(adata.obs)
    adata = adata.copy() if adata.is_view else adata
    hvg_batches = read_batches(adata.obs, options.hvg_batch_col, "preprocess.hvg_batch_col")
    harmony_batches = read_batches(adata.obs, options.harmony_col, "preprocess.harmony_col")
    raw = raw_counts(adata, options.counts)
    filters = cell_filters(raw.matrix, raw.var, options)
    keep = _passing(filters, options.counts)
    genes = detected_in(raw.matrix, keep) >= options.min_cells_per_gene
    logger.info("%d of %d cells and %d of %d genes pass the filter", keep.sum(), len(keep), genes.sum(), len(genes))
    account = {
        "counts": options.counts,
        "n_cells_input": len(keep),
        "n_cells": int(keep.sum()),
        "n_genes_input": len(genes),
        "n_genes": int(genes.sum()),
        "filters": [item.record() for item in filters],
        "patients_without_cells": _patients_without_cells(adata.obs, keep, patient_col),
    }
    # Sorted by name: the digits must not depend on the order in the file.
    rows = np.flatnonzero(keep)
    order = rows[np.argsort(adata.obs_names.to_numpy(dtype=object)[rows], kind="stable")]
    counts, dtype = _taken(raw.matrix, order, genes), raw.dtype
    rest = InputContent.read(adata, options.counts, rows, genes)
    del adata, raw  # to free the memory of the input's counts
    work = ad.AnnData(counts.copy(), obs=pd.DataFrame(index=rest.adata.obs_names[np.searchsorted(rows, order)]))
    work.var_names = rest.adata.var_names
    left_out = embed(
        *(work, options, seed),
        hvg_batches=None if hvg_batches is None else hvg_batches.iloc[order],
        harmony_batches=None if harmony_batches is None else harmony_batches.iloc[order],
    )
    account["batches_left_out"] = left_out
    account["n_top_genes"] = int(work.var["highly_variable"].sum())
    numbers = {key: account[key] for key in ("n_cells_input", "n_cells", "n_genes_input", "n_genes", "n_top_genes")}
    work.uns["cohortgmm_preprocess"] = numbers
    account["kept"] = rest.add(work, counts.astype(dtype, copy=False), np.argsort(order))
    account["renamed_genes"] = rest.n_renamed
    return rest.adata, account


def _passing(filters: Sequence[CellFilter], place: str) -> np.ndarray:
    """(n,) bool: the cells that pass all filters."""
    keep = ~np.any([item.failed for item in filters], axis=0)
    if all(item.failed.all() for item in filters if item.limit is None):
        raise DataError(
            f"all counts in {place} are zero: set preprocess.counts to where the raw counts are (X, raw or layer:NAME)"
        )
    if not keep.any():
        records = [item.record() for item in filters]
        found = ", ".join(f"{row['n_failed']} of {len(keep)} fail {row['key']}" for row in records if row["n_failed"])
        raise DataError(f"no cell passes preprocess.min_counts, min_genes and max_mito_percent: loosen them ({found})")
    return keep


def _patients_without_cells(obs: pd.DataFrame, keep: np.ndarray, patient_col: str | Sequence[str] | None) -> list[str]:
    """Patients without cells after the filters."""
    if patient_col is None:
        return []
    try:
        ids = patient_ids(obs, patient_col)
    except DataError:  # the division into patients will report it if it concerns the cells that are left
        return []
    return sorted(set(ids) - set(ids[keep]))


def _taken(matrix: Any, rows: np.ndarray, columns: np.ndarray | None = None) -> Any:
    """Rows, and columns by a mask, of an array or sparse matrix, as a copy."""
    if hasattr(matrix, "tocsr"):
        matrix = matrix.tocsr()
    taken = matrix[rows]
    return taken if columns is None or columns.all() else taken[:, columns]


@dataclass(eq=False)
class InputContent:
    """The entries of the input besides its counts, for the cells and genes that pass; the results are added to them.

    Attributes
    ----------
    adata
        The entries, with the cells in the order of the input and without X.
    matrix
        X of the input if the counts are not in X, else None.
    entries
        Writes the results into ``adata``.
    n_renamed
        Number of genes whose name got a suffix, because another gene has the same name.
    """

    adata: ad.AnnData
    matrix: Any
    entries: Entries
    n_renamed: int

    @classmethod
    def read(cls, adata: ad.AnnData, place: str, rows: np.ndarray, genes: np.ndarray) -> "InputContent":
        """The content of a cohort; see :func:`~cohortgmm.cohort.counts.raw_counts` for ``place``."""
        by_raw = place == "raw" and not adata.raw.var_names.equals(adata.var_names)
        source = adata.raw if by_raw else adata
        raw = None if adata.raw is None else {"X": adata.raw.X, "var": adata.raw.var, "varm": dict(adata.raw.varm)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about names that are not unique, which are made unique here
            shell = ad.AnnData(
                obs=adata.obs.copy(),
                var=source.var.copy(),
                uns=without_none(adata.uns),
                obsm=dict(adata.obsm),
                obsp=dict(adata.obsp),
                varm=dict(source.varm),
                varp={} if by_raw else dict(adata.varp),
                layers={} if by_raw else named_layers(adata),
                raw=raw,
            )
            shell.var_names_make_unique()
        n_renamed = int(np.count_nonzero((shell.var_names != source.var_names) & genes))
        content = shell[rows, genes].copy()
        entries = Entries(content)
        if by_raw:
            _keep_other_genes(entries, adata, rows)
        is_elsewhere = place != "X" and adata.X is not None and not by_raw
        return cls(content, _taken(adata.X, rows, genes) if is_elsewhere else None, entries, n_renamed)

    def add(self, work: ad.AnnData, counts: Any, back: np.ndarray) -> list[dict[str, str]]:
        """Add the results of the preprocessing to ``adata``.

        Parameters
        ----------
        work
            The results, with the cells sorted by name; its X is removed.
        counts
            Raw counts, with the cells sorted by name.
        back
            (n,) position in the sorted order of every cell of ``adata``.

        Returns
        -------
        list of dict
            Entries that have been renamed, see :class:`~cohortgmm.cohort.entries.Entries`.
        """
        self.adata.X = _taken(work.X, back)
        work.X = None  # to free its memory
        if self.matrix is not None and not is_same(self.matrix, self.adata.X):
            self.entries.keep("X", "layers", "X", self.matrix)
        self.entries.put("layers", "counts", _taken(counts, back))
        for key, value in work.obsm.items():
            self.entries.put("obsm", key, value[back])
        for key, value in work.varm.items():
            self.entries.put("varm", key, value)
        for key in work.var.columns:
            self.entries.put("var", key, work.var[key].to_numpy())
        for key, value in without_none(work.uns).items():
            self.entries.put("uns", key, value)
        return self.entries.kept


def _keep_other_genes(entries: Entries, adata: ad.AnnData, rows: np.ndarray) -> None:
    """If the genes of the result are those of ``raw``, keep entries about the genes of X in ``obsm`` and ``uns``."""
    if adata.X is not None:
        entries.keep("X", "obsm", "X", _taken(adata.X, rows))
    for key, layer in named_layers(adata).items():
        entries.keep(f"layers[{key!r}]", "obsm", key, _taken(layer, rows))
    entries.keep("var", "uns", "var", adata.var.copy())
    for place in ("varm", "varp"):
        if getattr(adata, place):
            entries.keep(place, "uns", place, dict(getattr(adata, place)))


def without_none(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a nested mapping without entries that are None, which anndata < 0.12 cannot read."""
    return {
        key: without_none(value) if isinstance(value, Mapping) else value
        for key, value in mapping.items()
        if value is not None
    }
