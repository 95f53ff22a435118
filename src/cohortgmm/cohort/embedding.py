"""From raw counts to an embedding with scanpy: normalise, choose genes, reduce to principal components, correct batches."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import anndata as ad
import numpy as np
import pandas as pd

from cohortgmm.cohort.counts import row_blocks
from cohortgmm.cohort.texts import check_column
from cohortgmm.config import PreprocessConfig
from cohortgmm.display import format_error
from cohortgmm.errors import CohortgmmError, ConfigError, DataError

logger = logging.getLogger(__name__)

#: A variance below this share of the squared mean, or of the largest variance, is a rounding error.
_ROUNDING = 1e-10

#: A variance below this share of the mean squared norm of the cells is a rounding error in single precision.
_ROUNDING_OF_CELLS = 1e-12

#: Smallest number of cells for Harmony: it makes one cluster per 30 cells, rounded, and needs at least one.
_HARMONY_CELLS = 16

#: Remedy if Harmony cannot be used.
_WITHOUT_HARMONY = "set preprocess.harmony_col to null and use_rep to X_pca"

#: Largest number of batches in a message.
_SHOWN = 3


def seed32(seed: int) -> int:
    """A seed for scanpy and Harmony, which must be below 2**31."""
    return seed % 2**31


def read_batches(obs: pd.DataFrame, column: str | None, key: str) -> pd.Series | None:
    """The batch of every cell as text.

    Parameters
    ----------
    obs
        (n, ...) table of cells.
    column
        Column of ``obs`` with the batch; None for no batches.
    key
        Configuration key of the column, for messages.

    Raises
    ------
    DataError
        If the column does not exist or exists twice, a cell has no batch, or two batches have the same text.
    """
    if column is None:
        return None
    check_column(obs, column, key)
    values = obs[column]
    missing = int(values.isna().sum())
    if missing:
        raise DataError(f"{key}: {missing} cells have no value in obs column {column!r}: fill them")
    codes, names = pd.factorize(values)
    texts = np.array([str(name) for name in names], dtype=object)
    if len(set(texts)) < len(texts):
        raise DataError(
            f"{key}: two different values of obs column {column!r} have the same text; convert the column to text"
        )
    return pd.Series(texts[codes], index=obs.index, name=column)


def embed(
    work: ad.AnnData,
    options: PreprocessConfig,
    seed: int,
    *,
    hvg_batches: pd.Series | None = None,
    harmony_batches: pd.Series | None = None,
) -> list[str]:
    """Normalise X, choose genes and compute the embedding, in place.

    Parameters
    ----------
    work
        The cells that have at least one count, with raw counts in X. The results of scanpy are added.
    options
        The section ``preprocess`` of the configuration.
    seed
        Seed of the PCA and of Harmony.
    hvg_batches, harmony_batches
        (n,) batch of every cell, as :func:`read_batches` returns it.

    Returns
    -------
    list of str
        Batches that were not used to choose genes, because they have one cell or all their cells are equal.

    Raises
    ------
    DataError, ConfigError
        If there are too few cells or genes, or they vary too little.
    """
    import scanpy as sc

    if options.n_pcs >= min(work.shape):
        raise DataError(
            f"preprocess.n_pcs is {options.n_pcs}, but {work.n_obs} cells and {work.n_vars} genes are left: "
            "lower n_pcs or loosen the filter"
        )
    n_top_genes = min(options.n_top_genes, work.n_vars)
    if n_top_genes <= options.n_pcs:
        raise ConfigError(f"preprocess.n_top_genes ({n_top_genes}) must be more than n_pcs ({options.n_pcs})")
    if harmony_batches is not None:
        _check_harmony(harmony_batches)
    with _quietly("normalising the counts"):
        sc.pp.normalize_total(work, target_sum=options.target_sum)
        sc.pp.log1p(work)
    square = _check_variation(work, options.n_pcs)
    left_out = _choose_genes(work, n_top_genes, options, hvg_batches)
    with _quietly("the PCA"):
        sc.pp.pca(
            work, n_comps=options.n_pcs, mask_var="highly_variable", svd_solver="arpack", random_state=seed32(seed)
        )
    _check_components(work, options.n_pcs, square)
    if harmony_batches is not None:
        work.obsm["X_pca_harmony"] = _harmony(work, harmony_batches, seed)
    return left_out


@contextmanager
def _quietly(doing: str) -> Iterator[None]:
    """Suppress arithmetic warnings, as the result is checked afterwards; turn errors of scanpy into one line."""
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (CohortgmmError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"{doing} failed ({format_error(error)}): look at the counts of the cells and genes") from error


def _check_variation(work: ad.AnnData, n_pcs: int) -> float:
    """Refuse cells that vary in too few genes; return the mean squared norm of the cells."""
    mean, square = np.zeros(work.n_vars), np.zeros(work.n_vars)
    for _, block in row_blocks(work.X):
        block = block.astype(np.float64)
        mean += np.asarray(block.sum(axis=0)).ravel() / work.n_obs
        square += (
            np.asarray((block.multiply(block) if hasattr(block, "indptr") else block**2).sum(axis=0)).ravel()
            / work.n_obs
        )
    if not np.isfinite(square).all():
        raise DataError("the normalised counts are infinite: lower preprocess.target_sum")
    n_varying = int(np.count_nonzero(square - mean**2 > _ROUNDING * square))
    if n_varying == 0:
        raise DataError(
            f"all {work.n_obs} cells have the same composition of genes: there is nothing to embed; look at the counts"
        )
    if n_varying <= n_pcs:
        raise DataError(
            f"preprocess.n_pcs is {n_pcs}, but only {n_varying} of {work.n_vars} genes vary between the cells: lower n_pcs"
        )
    return float(square.sum())


def _choose_genes(
    work: ad.AnnData, n_top_genes: int, options: PreprocessConfig, batches: pd.Series | None
) -> list[str]:
    """Mark the highly variable genes in ``var["highly_variable"]``; returns the batches that were not used."""
    import scanpy as sc

    left_out: list[str] = []

    with _quietly("the choice of highly variable genes"):
        if batches is None:
            sc.pp.highly_variable_genes(work, n_top_genes=n_top_genes)
        else:
            left_out = _choose_genes_in_batches(work, n_top_genes, batches)
    n_chosen = int(work.var["highly_variable"].sum())
    if n_chosen != n_top_genes:
        logger.info("%d genes are chosen instead of %d: some vary equally or not at all", n_chosen, n_top_genes)
    if n_chosen <= options.n_pcs:
        raise DataError(
            f"preprocess.n_pcs is {options.n_pcs}, but only {n_chosen} of {work.n_vars} genes are highly variable: "
            "lower n_pcs"
        )
    return left_out


def _choose_genes_in_batches(work: ad.AnnData, n_top_genes: int, batches: pd.Series) -> list[str]:
    import scanpy as sc

    usable = batches.isin([batch for batch in sorted(set(batches)) if _can_choose(work, batches, batch)]).to_numpy()
    left_out = sorted(set(batches[~usable]))
    if not usable.any():
        raise DataError(
            f"preprocess.hvg_batch_col: no batch of obs column {batches.name!r} has two cells that differ: name a column "
            "with fewer batches, or set hvg_batch_col to null"
        )
    chosen_from = work[usable].copy() if left_out else work
    chosen_from.obs["batch"] = pd.Categorical(batches[usable])
    sc.pp.highly_variable_genes(chosen_from, n_top_genes=n_top_genes, batch_key="batch")
    del chosen_from.obs["batch"]
    if chosen_from is not work:
        work.var, work.uns["hvg"] = chosen_from.var, chosen_from.uns["hvg"]
    return left_out


def _can_choose(work: ad.AnnData, batches: pd.Series, batch: str) -> bool:
    """Whether the cells of a batch differ; scanpy needs this to choose genes."""
    rows = np.flatnonzero(batches == batch)
    if len(rows) < 2:
        return False
    first = work.X[rows[0]]
    first = first.toarray().ravel() if hasattr(first, "toarray") else np.asarray(first)
    for start in range(1, len(rows), 256):
        block = work.X[rows[start : start + 256]]
        block = block.toarray() if hasattr(block, "toarray") else block
        if np.any(np.square(block - first) > _ROUNDING * np.square(first)):
            return True
    return False


def _check_components(work: ad.AnnData, n_pcs: int, square: float) -> None:
    """Refuse principal components that are rounding errors; ``square`` is the mean squared norm of the cells."""
    variance = np.asarray(work.uns["pca"]["variance"], dtype=np.float64)
    if not np.isfinite(work.obsm["X_pca"]).all() or not np.isfinite(variance).all():
        raise DataError("the PCA gives NaN or infinite values: look at the counts of the cells and genes")
    n_real = int(np.count_nonzero(variance > max(_ROUNDING * variance.max(), _ROUNDING_OF_CELLS * square)))
    if n_real < n_pcs:
        only = f"{n_real} direction{'s' if n_real > 1 else ''} only"
        hint = f"lower n_pcs to {n_real}" if n_real > 1 else "too few for an embedding; look at the counts"
        raise DataError(f"preprocess.n_pcs is {n_pcs}, but the cells vary in {only}: {hint}")
    share = 100 * float(np.sum(work.uns["pca"]["variance_ratio"]))
    n_chosen = int(work.var["highly_variable"].sum())
    logger.info("%d principal components of %d genes explain %.1f %% of the variance", n_pcs, n_chosen, share)


def _check_harmony(batches: pd.Series) -> None:
    """Refuse batches that Harmony cannot correct, or would correct wrongly without a warning."""
    key, sizes = f"preprocess.harmony_col {batches.name!r}", batches.value_counts()
    if len(sizes) < 2:
        raise DataError(f"{key}: all {len(batches)} cells are of one batch, {sizes.index[0]!r}: {_WITHOUT_HARMONY}")
    single = sorted(sizes.index[sizes < 2])
    if single:
        shown = ", ".join(map(repr, single[:_SHOWN])) + (", ..." if len(single) > _SHOWN else "")
        raise DataError(
            f"{key}: {len(single)} of {len(sizes)} batches have a single cell ({shown}), so that Harmony cannot "
            f"estimate their effect: merge them with other batches in obs, remove them, or {_WITHOUT_HARMONY}"
        )
    if len(batches) < _HARMONY_CELLS:
        raise DataError(
            f"{key}: {len(batches)} cells are too few for Harmony, which needs {_HARMONY_CELLS}: {_WITHOUT_HARMONY}"
        )


def _harmony(work: ad.AnnData, batches: pd.Series, seed: int) -> np.ndarray:
    try:
        import harmonypy
    except ImportError:
        raise ConfigError("preprocess.harmony_col needs the package harmonypy: pip install harmonypy") from None
    components = np.asarray(work.obsm["X_pca"], dtype=np.float64)
    table = pd.DataFrame({"batch": batches.to_numpy()})
    with _quietly("Harmony"):
        found = harmonypy.run_harmony(components, table, ["batch"], random_state=seed32(seed))
        corrected = np.asarray(found.Z_corr)
    corrected = corrected if corrected.shape == components.shape else corrected.T
    if not np.isfinite(corrected).all():
        raise DataError(
            f"Harmony gives NaN or infinite values for the batches of obs column {batches.name!r}: use larger batches, or "
            f"{_WITHOUT_HARMONY}"
        )
    return corrected
