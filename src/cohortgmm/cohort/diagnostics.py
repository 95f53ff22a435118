"""Tables and coordinates from which the quality of the mixtures is judged."""

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
from anndata.io import read_elem

from cohortgmm.cohort.cells import PatientCells
from cohortgmm.cohort.reading import check_column, open_h5ad, read_embedding, read_obs, rows_of
from cohortgmm.files import atomic_path
from cohortgmm.mixture.em import MixtureFit

logger = logging.getLogger(__name__)

_TEXT_COLUMNS = ["patient", "file", "label", "metric", "status", "reason", "cell_type"]

#: Columns of the composition table.
COMPOSITION_COLUMNS = ["patient", "component", "cell_type", "n_cells"]


def read_frame(path: str | os.PathLike) -> pd.DataFrame:
    """A table of the pipeline for a figure: texts stay texts (a patient may be called NA), the rest are numbers."""
    frame = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    for name in frame.columns.difference(_TEXT_COLUMNS):
        flags = frame[name].isin(["True", "False"]).all() and len(frame) > 0
        missing = frame[name].isin(["", "nan"])  # texts that pandas takes for no number
        frame[name] = frame[name] == "True" if flags else pd.to_numeric(frame[name].mask(missing))
    return frame


def write_frame(frame: pd.DataFrame, path: str | os.PathLike) -> None:
    """Write a table as tab-separated values."""
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, sep="\t", index=False)


def diagnostics_table(
    parts: Iterable[PatientCells],
    fits: Mapping[str, MixtureFit],
    scores: pd.DataFrame,
    selection: pd.DataFrame,
    labels: Mapping[str, str],
    refit: str,
) -> pd.DataFrame:
    """One row per mixture: cells, convergence, gap between train and held-out NLL, conditioning, weights.

    Parameters
    ----------
    parts, fits
        What was fitted, and the final mixture of each.
    scores, selection
        The score table and the chosen k.
    labels
        Label of every patient.
    refit
        As in the configuration.

    Returns
    -------
    DataFrame
        Likelihoods are nats per cell; those of train and held-out cells belong to the selection fit.
    """
    chosen = scores.merge(selection[["patient", "k"]], on=["patient", "k"]).set_index("patient")
    rows = []
    for part in parts:
        fit, score = fits[part.patient], chosen.loc[part.patient]
        rows.append(
            {
                "patient": part.patient,
                "label": labels.get(part.patient, ""),
                "n_cells": len(part.x),
                "n_fit": len(part.x) if refit == "full" else part.n_train,
                "k": fit.model.n_components,
                "n_iter": fit.n_iter,
                "converged": fit.converged,
                "log_likelihood": fit.log_likelihood,
                "train_nll": score["train_nll"],
                "heldout_nll": score["heldout_nll"],
                "nll_gap": score["nll_gap"],
                "max_condition": fit.model.condition_numbers.max(),
                "min_weight": fit.model.weights.min(),
                "max_weight": fit.model.weights.max(),
                "n_floored": int(fit.floored.sum()),
            }
        )
    return pd.DataFrame(rows)


def weights_table(fits: Mapping[str, MixtureFit]) -> pd.DataFrame:
    """Weight of every component: columns patient, component, weight."""
    return pd.DataFrame(
        [
            {"patient": name, "component": component, "weight": weight}
            for name, fit in fits.items()
            for component, weight in enumerate(fit.model.weights)
        ]
    )


def composition_table(
    parts: Iterable[PatientCells], fits: Mapping[str, MixtureFit], cell_types: pd.Categorical | None
) -> pd.DataFrame:
    """Cells of every type in every component (zeros left out): the columns of :data:`COMPOSITION_COLUMNS`.

    Without cell types the table has no rows.
    """
    tables = [pd.DataFrame(columns=COMPOSITION_COLUMNS)]
    for part in parts if cell_types is not None else ():
        components = fits[part.patient].model.responsibilities(part.x).argmax(axis=1)
        types = cell_types[part.positions].astype(object)
        table = pd.DataFrame({"component": components, "cell_type": np.where(pd.isna(types), "unknown", types)})
        counts = table.value_counts().rename("n_cells").reset_index().sort_values(["component", "cell_type"])
        tables.append(counts.assign(patient=part.patient))
    return pd.concat(tables[1:] or tables, ignore_index=True)[COMPOSITION_COLUMNS]


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
        with np.load(path) as file:
            umap = file.get("umap")
            types = pd.Categorical.from_codes(file["codes"], file["categories"]) if "codes" in file else None
        return cls(umap, types)


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
            types = pd.Categorical(texts)
        if not umap:
            return CellAnnotation(None, types)
        if "X_umap" in file.get("obsm", {}):
            return CellAnnotation(np.asarray(read_elem(file["obsm/X_umap"]))[:, :2], types)
        matrix = read_embedding(file, use_rep)
    return CellAnnotation(_compute_umap(matrix, max_cells, seed), types)


def _compute_umap(matrix, max_cells: int, seed: int) -> np.ndarray:
    import scanpy as sc

    n = matrix.shape[0]
    result = np.full((n, 2), np.nan)
    if n < 4:
        logger.warning("%d cells are too few for a UMAP", n)
        return result
    chosen = draw_cells(n, max_cells, seed)
    logger.info("UMAP of %d of %d cells", len(chosen), n)
    adata = ad.AnnData(obsm={"X": np.asarray(rows_of(matrix, chosen), dtype=np.float32)}, shape=(len(chosen), 0))
    sc.pp.neighbors(adata, use_rep="X", n_neighbors=min(15, len(chosen) - 1), random_state=seed)
    sc.tl.umap(adata, random_state=seed)
    result[chosen] = adata.obsm["X_umap"]
    return result


def feature_names(use_rep: str | None, n_features: int) -> list[str]:
    """Names of the features for the axes of figures."""
    stem = "PC" if (use_rep or "").startswith("X_pca") else f"{(use_rep or 'X').removeprefix('X_')} "
    return [f"{stem}{i + 1}" for i in range(n_features)]


def draw_cells(n: int, max_cells: int, seed: int) -> np.ndarray:
    """Sorted positions of at most ``max_cells`` of n cells."""
    if n <= max_cells:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, max_cells, replace=False))
