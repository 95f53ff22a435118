"""From raw counts to an embedding, with scanpy."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from cohortgmm.cohort.reading import check_cell_names, check_column, open_h5ad
from cohortgmm.config import PreprocessConfig
from cohortgmm.errors import ConfigError, DataError
from cohortgmm.files import atomic_path

logger = logging.getLogger(__name__)


def preprocess_file(source: str | os.PathLike, target: str | os.PathLike, options: PreprocessConfig, seed: int) -> None:
    """Read raw counts from an ``.h5ad``, compute the embedding and write everything to another.

    Parameters
    ----------
    source, target
        The files.
    options
        See :class:`~cohortgmm.config.PreprocessConfig`.
    seed
        Seed of the PCA and of Harmony.
    """
    with open_h5ad(source):  # refuses what is no AnnData with one line
        pass
    adata = preprocess(ad.read_h5ad(source), options, seed)
    with atomic_path(target) as temporary:
        adata.write_h5ad(temporary, compression="gzip")


def preprocess(adata: ad.AnnData, options: PreprocessConfig, seed: int) -> ad.AnnData:
    """Filter, normalise, log-transform, choose genes, reduce to principal components.

    Parameters
    ----------
    adata
        Raw counts in X.
    options
        See :class:`~cohortgmm.config.PreprocessConfig`.
    seed
        Seed of the PCA and of Harmony.

    Returns
    -------
    AnnData
        All genes that passed the filter; X log-normalised, ``layers["counts"]`` raw, ``obsm["X_pca"]`` and, with
        ``harmony_col``, ``obsm["X_pca_harmony"]``; ``uns["cohortgmm_preprocess"]`` says what was dropped.

    Raises
    ------
    DataError
        If X holds no raw counts, a column is missing, or too few cells or genes are left.
    """
    import scanpy as sc

    check_cell_names(adata.obs)
    _check_counts(adata)
    for key in ("hvg_batch_col", "harmony_col"):
        if getattr(options, key):
            check_column(adata.obs, getattr(options, key), f"preprocess.{key}")
            _check_batches(adata.obs[getattr(options, key)], f"preprocess.{key}")
    n_cells, n_genes = adata.shape
    adata = _filter(adata, options)
    logger.info("%d of %d cells and %d of %d genes pass the filter", adata.n_obs, n_cells, adata.n_vars, n_genes)
    if options.n_pcs >= min(adata.shape):
        raise DataError(
            f"preprocess.n_pcs is {options.n_pcs}, but {adata.n_obs} cells and {adata.n_vars} genes are left: "
            "lower n_pcs or loosen the filter"
        )
    adata.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(adata, target_sum=options.target_sum)
    sc.pp.log1p(adata)
    n_top_genes = min(options.n_top_genes, adata.n_vars)
    if n_top_genes <= options.n_pcs:
        raise ConfigError(f"preprocess.n_top_genes ({n_top_genes}) must be more than n_pcs ({options.n_pcs})")
    _choose_genes(adata, n_top_genes, options.hvg_batch_col)
    sc.pp.pca(adata, n_comps=options.n_pcs, mask_var="highly_variable", svd_solver="arpack", random_state=seed)
    share = 100 * float(np.sum(adata.uns["pca"]["variance_ratio"]))
    logger.info("%d components of %d genes hold %.1f %% of the variance", options.n_pcs, n_top_genes, share)
    if options.harmony_col:
        adata.obsm["X_pca_harmony"] = _harmony(adata, options.harmony_col, seed)
    adata.uns["cohortgmm_preprocess"] = {
        "n_cells_input": n_cells,
        "n_cells": adata.n_obs,
        "n_genes_input": n_genes,
        "n_genes": adata.n_vars,
        "n_top_genes": n_top_genes,
    }
    adata.uns = _without_none(adata.uns)
    return adata


def _check_batches(column: pd.Series, key: str) -> None:
    missing = int(column.isna().sum())
    if missing:
        raise DataError(f"{key}: {missing} cells have no value in obs column {column.name!r}: fill them")


def _without_none(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The same without entries that are None, which anndata < 0.12 cannot read."""
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in mapping.items()
        if value is not None
    }


def _check_counts(adata: ad.AnnData) -> None:
    if adata.X is None or 0 in adata.shape:
        raise DataError(
            f"preprocessing needs raw counts in X; the input has {adata.n_obs} cells x {adata.n_vars} genes"
        )
    values = adata.X.data if hasattr(adata.X, "indptr") else np.asarray(adata.X)
    if not np.all(np.isfinite(values)) or np.any(values < 0) or np.any(values != np.rint(values)):
        raise DataError(
            "preprocessing needs raw counts in X, but X holds values that are no whole numbers of at least 0: put the "
            "counts in X, or set preprocess.enabled to false to use an embedding of the input"
        )


def _filter(adata: ad.AnnData, options: PreprocessConfig) -> ad.AnnData:
    counts = np.asarray(adata.X.sum(axis=1)).ravel()
    genes = np.asarray((adata.X > 0).sum(axis=1)).ravel()
    mito = adata.var_names.str.upper().str.startswith("MT-")
    mito_counts = np.asarray(adata.X[:, mito].sum(axis=1)).ravel() if mito.any() else np.zeros(adata.n_obs)
    if not mito.any() and options.max_mito_percent < 100:
        logger.warning("max_mito_percent has no effect: no gene name begins with MT-")
    # A cell without any count cannot be normalised.
    keep = (counts >= max(1, options.min_counts)) & (genes >= options.min_genes)
    keep &= 100 * mito_counts <= options.max_mito_percent * counts
    if not keep.any():
        raise DataError("no cell passes preprocess.min_counts, min_genes and max_mito_percent: loosen them")
    adata = adata[keep]
    detected = np.asarray((adata.X > 0).sum(axis=0)).ravel() >= options.min_cells_per_gene
    return adata[:, detected].copy()


def _choose_genes(adata: ad.AnnData, n_top_genes: int, batch_col: str | None) -> None:
    import scanpy as sc

    if batch_col is None:
        sc.pp.highly_variable_genes(adata, n_top_genes=n_top_genes)
        return
    own = adata.obs[batch_col]
    adata.obs[batch_col] = own.astype(str).astype("category")  # scanpy takes batches as categories only
    sc.pp.highly_variable_genes(adata, n_top_genes=n_top_genes, batch_key=batch_col)
    adata.obs[batch_col] = own


def _harmony(adata: ad.AnnData, column: str, seed: int) -> np.ndarray:
    try:
        import harmonypy
    except ImportError:
        raise ConfigError("preprocess.harmony_col needs the package harmonypy: pip install harmonypy") from None
    components = np.asarray(adata.obsm["X_pca"], dtype=np.float64)
    table = adata.obs[[column]].astype(str)
    corrected = np.asarray(harmonypy.run_harmony(components, table, [column], random_state=seed).Z_corr)
    return corrected if corrected.shape == components.shape else corrected.T
