"""Cell types and a UMAP of the cells, for figures."""

import logging
import os
from dataclasses import dataclass
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd

from cohortgmm.arrays import real_array
from cohortgmm.cohort.h5ad import has_member, open_h5ad, read_column
from cohortgmm.cohort.patients import check_columns
from cohortgmm.cohort.reading import read_embedding, read_of_cells, rows_of
from cohortgmm.cohort.texts import column_texts
from cohortgmm.errors import DataError
from cohortgmm.storage.atomic import atomic_path
from cohortgmm.storage.npz import read_arrays

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class CellAnnotation:
    """Cell types and UMAP coordinates of the cells.

    Attributes
    ----------
    umap
        (n, 2) coordinates, NaN for cells that are not in the UMAP; None if there are none.
    cell_types
        (n,) categorical; None if no column was named.
    """

    umap: np.ndarray | None
    cell_types: pd.Categorical | None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to ``.npz``."""
        arrays = {}
        if self.umap is not None:
            arrays["umap"] = self.umap.astype(np.float32)
        if self.cell_types is not None:
            arrays["codes"] = np.asarray(self.cell_types.codes, dtype=np.int32)
            arrays["categories"] = np.array(self.cell_types.categories, dtype=str)
        with atomic_path(path) as temporary:
            np.savez(temporary, **dict[str, Any](arrays))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "CellAnnotation":
        """Read what :meth:`save` wrote."""
        arrays = read_arrays(path, (), "annotation of cells", optional=("umap", "codes", "categories"))
        types = pd.Categorical.from_codes(arrays["codes"], arrays["categories"]) if "codes" in arrays else None
        return cls(arrays.get("umap"), types)


def read_annotation(
    path: str | os.PathLike[str],
    *,
    use_rep: str | None,
    celltype_col: str | None,
    umap: bool,
    max_cells: int,
    seed: int,
) -> CellAnnotation:
    """Cell types of a cohort and its UMAP, which is computed if the file has none.

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
        Largest number of cells in the UMAP; they are drawn at random.
    seed
        Seed of the draw and of the UMAP.
    """
    with open_h5ad(path) as file:
        types = None
        if celltype_col:
            check_columns(file, [("celltype_col", celltype_col)])
            types = _cell_types(read_column(file, "obs", celltype_col))
        if not umap:
            return CellAnnotation(None, types)
        if has_member(file, "obsm", "X_umap"):
            return CellAnnotation(read_umap(file), types)
        matrix = read_embedding(file, use_rep).matrix
    return CellAnnotation(_compute_umap(matrix, max_cells, seed), types)


def _cell_types(column: pd.Series) -> pd.Categorical:
    """Cell types as text, the most frequent first; None for cells without one."""
    texts = column_texts(column, f"celltype_col {column.name!r}")
    types = pd.Series(np.array([*texts.values, None], dtype=object)[texts.codes])
    counts = types.value_counts().sort_index().sort_values(ascending=False, kind="stable")
    return pd.Categorical(types, categories=counts.index)


def read_umap(file: h5py.File) -> np.ndarray:
    """The two coordinates in ``obsm["X_umap"]``; NaN for cells whose coordinates are not finite.

    Raises
    ------
    DataError
        If the coordinates are not numbers, or have fewer than two columns.
    """
    way_out = "remove it from obsm to have it computed, or set qc.umap to false"
    try:
        values = real_array(read_of_cells(file, "obsm/X_umap", "obsm['X_umap']"), "obsm['X_umap']")
    except DataError as error:
        raise DataError(f"{error}; {way_out}") from None
    if values.ndim != 2 or values.shape[1] < 2:
        raise DataError(f"obsm['X_umap'] must have at least two columns, its shape is {values.shape}; {way_out}")
    pairs = rows_of(values[:, :2], slice(None))
    return np.where(np.isfinite(pairs).all(axis=1, keepdims=True), pairs, np.nan)


def _compute_umap(matrix: Any, max_cells: int, seed: int) -> np.ndarray:
    import scanpy as sc

    n = matrix.shape[0]
    result = np.full((n, 2), np.nan)
    # The sum of a cell is not finite if one of its features is not.
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
    """Sorted positions of at most ``max_cells`` cells, drawn at random from n cells."""
    if n <= max_cells:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, max_cells, replace=False))
