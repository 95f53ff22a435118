"""What figures show of the cells besides the features: cell types and a UMAP."""

import logging
import os
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
from anndata.io import read_elem

from cohortgmm.archive import read_arrays
from cohortgmm.cohort.reading import check_column, open_h5ad, read_embedding, read_obs, rows_of
from cohortgmm.files import atomic_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class CellAnnotation:
    """What figures show of the cells besides the features.

    Attributes
    ----------
    umap
        (n, 2) coordinates, NaN for cells that were not embedded; None if there are none.
    cell_types
        (n,) categorical; None if no column was named.
    """

    umap: np.ndarray | None
    cell_types: pd.Categorical | None

    def save(self, path: str | os.PathLike) -> None:
        """Write to ``.npz``."""
        arrays = {}
        if self.umap is not None:
            arrays["umap"] = self.umap.astype(np.float32)
        if self.cell_types is not None:
            arrays["codes"] = np.asarray(self.cell_types.codes, dtype=np.int32)
            arrays["categories"] = np.array(self.cell_types.categories, dtype=str)
        with atomic_path(path) as temporary:
            np.savez(temporary, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "CellAnnotation":
        """Read what :meth:`save` wrote."""
        arrays = read_arrays(path, (), "annotation of cells", optional=("umap", "codes", "categories"))
        types = pd.Categorical.from_codes(arrays["codes"], arrays["categories"]) if "codes" in arrays else None
        return cls(arrays.get("umap"), types)


def read_annotation(
    path: str | os.PathLike, *, use_rep: str | None, celltype_col: str | None, umap: bool, max_cells: int, seed: int
) -> CellAnnotation:
    """Cell types of a cohort and its UMAP, which is computed where the file has none.

    Parameters
    ----------
    path
        The ``.h5ad`` with the embedding.
    use_rep
        The embedding that a UMAP is computed from.
    celltype_col
        Column of ``obs``; None for no cell types.
    umap
        Whether a UMAP is wanted.
    max_cells
        Most cells that are embedded; more are drawn from with ``seed``.
    seed
        Seed of the draw and of the UMAP.
    """
    with open_h5ad(path) as file:
        types = None
        if celltype_col:
            obs = read_obs(file)
            check_column(obs, celltype_col, "celltype_col")
            texts = obs[celltype_col].astype(object).map(lambda value: None if pd.isna(value) else str(value))
            counts = texts.value_counts().sort_index().sort_values(ascending=False, kind="stable")
            types = pd.Categorical(texts, categories=counts.index)  # frequent types first
        if not umap:
            return CellAnnotation(None, types)
        if "X_umap" in file.get("obsm", {}):
            return CellAnnotation(np.asarray(read_elem(file["obsm/X_umap"]))[:, :2], types)
        matrix = read_embedding(file, use_rep).matrix
    return CellAnnotation(_compute_umap(matrix, max_cells, seed), types)


def _compute_umap(matrix, max_cells: int, seed: int) -> np.ndarray:
    import scanpy as sc

    n = matrix.shape[0]
    result = np.full((n, 2), np.nan)
    # NaN in one feature, NaN in the sum.
    complete = np.flatnonzero(np.isfinite(np.asarray(matrix.sum(axis=1, dtype=float)).ravel()))
    if len(complete) < 4:
        logger.warning("%d complete cells are too few for a UMAP", len(complete))
        return result
    chosen = complete[draw_cells(len(complete), max_cells, seed)]
    logger.info("UMAP of %d of %d cells", len(chosen), n)
    adata = ad.AnnData(obsm={"X": np.asarray(rows_of(matrix, chosen), dtype=np.float32)}, shape=(len(chosen), 0))
    sc.pp.neighbors(adata, use_rep="X", n_neighbors=min(15, len(chosen) - 1), random_state=seed)
    sc.tl.umap(adata, random_state=seed)
    result[chosen] = adata.obsm["X_umap"]
    return result


def draw_cells(n: int, max_cells: int, seed: int) -> np.ndarray:
    """Sorted positions of at most ``max_cells`` of n cells."""
    if n <= max_cells:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, max_cells, replace=False))
