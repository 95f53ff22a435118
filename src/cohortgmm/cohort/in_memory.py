"""Reading the cells of a cohort in memory: an AnnData, or a mapping of patients to arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from cohortgmm.arrays import check_labels, check_names, dense_array
from cohortgmm.cohort.h5ad import check_rows, unknown_name
from cohortgmm.cohort.occupied import check_places
from cohortgmm.cohort.patients import check_cell_names, patient_ids
from cohortgmm.cohort.reading import (
    Embedding,
    as_matrix,
    as_noise,
    check_genes,
    check_noise_features,
    named_embedding,
    named_layers,
)
from cohortgmm.cohort.texts import check_id
from cohortgmm.cohort.uns import CellAssignment
from cohortgmm.columns import joined_column, overwritten
from cohortgmm.display import format_value
from cohortgmm.errors import ConfigError, DataError
from cohortgmm.mixture import Noise, check_meaning, is_one_for_all


def plain_columns(patient_col: Any) -> Any:
    """Convert columns given as an array, a pandas index or a pandas series to a list; return other values unchanged."""
    return patient_col.tolist() if hasattr(patient_col, "tolist") and np.ndim(patient_col) == 1 else patient_col


def read_cells(
    data: Any, patient_col: str | Sequence[str] | None, use_rep: str | None, noise: Any
) -> tuple[Embedding, np.ndarray]:
    """The modelled matrix, whose values may be NaN or infinite, and the (n,) patient of every cell.

    Parameters
    ----------
    data, patient_col, use_rep, noise
        As in :func:`cohortgmm.fit_gmm`.

    Raises
    ------
    ConfigError, DataError
        For arguments or data that cannot be used.
    """
    if isinstance(data, Mapping):
        return cells_of_mapping(data, noise)
    return cells_of_anndata(data, patient_col, use_rep, noise)


def check_overwritten(
    adata: Any, gmm_key: str, patient_col: str | Sequence[str], use_rep: str | None, noise_key: Any
) -> None:
    """Refuse a key whose result would overwrite its own input, or an entry that is not an earlier result.

    Parameters
    ----------
    adata
        The cohort.
    gmm_key
        Key of the result.
    patient_col, use_rep, noise_key
        Columns of ``obs`` and keys of ``obsm`` that are read.

    Raises
    ------
    ConfigError, DataError
        If the key is refused; the message names the column or entry.
    """
    for name, what in overwritten(gmm_key, {"patient_col": patient_col}, {"use_rep": use_rep, "noise": noise_key}):
        raise ConfigError(f"the result overwrites {what} of {name}: give another gmm_key")
    check_places(gmm_key, adata.uns, adata.obs.columns, adata.obsm, patient_col=patient_col)


def write_result(
    adata: Any,
    gmm_key: str,
    uns: Mapping[str, Any],
    assigned: CellAssignment,
    patient_col: str | Sequence[str],
    ids: np.ndarray,
) -> None:
    """Write the mixtures, and the component and responsibilities of every cell; see :func:`cohortgmm.fit_gmm`."""
    adata.uns[gmm_key] = {**uns, "model": {**uns["model"], "var": np.asarray(uns["model"]["var"])}}
    adata.obs[f"{gmm_key}_comp"] = assigned.components
    adata.obsm[f"{gmm_key}_resp"] = assigned.resp
    if (column := joined_column(patient_col, gmm_key)) is not None:
        adata.obs[column] = ids
    adata.obs.drop(columns=f"{gmm_key}_background", errors="ignore", inplace=True)
    if assigned.background is not None:
        adata.obs[f"{gmm_key}_background"] = assigned.background


def cells_of_anndata(
    adata: Any,
    patient_col: str | Sequence[str] | None,
    use_rep: str | None,
    noise: Any,
) -> tuple[Embedding, np.ndarray]:
    """The modelled matrix of an AnnData, and the (n,) patient of every cell.

    Parameters
    ----------
    adata
        The cohort: in memory, backed by its file, or with matrices of dask.
    patient_col, use_rep, noise
        As in :func:`cohortgmm.fit_gmm`.

    Raises
    ------
    DataError
        For data that cannot be used.
    """
    if hasattr(adata, "obsm") and isinstance(getattr(adata, "mod", None), Mapping):
        raise DataError(
            f"data is MuData: give one of its modalities, such as data.mod[{next(iter(adata.mod), 'rna')!r}]"
        )
    if not hasattr(adata, "obsm"):
        raise DataError(f"data must be AnnData or a mapping of patient to array, got {type(adata).__name__}")
    if not isinstance(adata.obs, pd.DataFrame):
        raise DataError(f"data.obs is a {type(adata.obs).__name__}, not a pandas table: call data.to_memory() first")
    if getattr(adata, "isbacked", False) and adata.is_view:
        raise DataError("data is a view of an AnnData that is backed by its file: call data.to_memory() first")
    if patient_col is None:
        raise ConfigError("patient_col is required with AnnData")
    if not (use_rep is None or isinstance(use_rep, str)):
        raise ConfigError(f"use_rep must be a key of obsm, or None for X, got {format_value(use_rep)}")
    check_cell_names(adata.obs)
    ids = patient_ids(adata.obs, patient_col)
    if use_rep is None:
        if adata.X is None:
            raise DataError("use_rep is None, but data has no X")
        name, values = "X", adata.X
        check_genes(values, adata.n_vars, name)
    elif use_rep in adata.obsm:
        name, values = f"obsm[{use_rep!r}]", adata.obsm[use_rep]
    else:
        raise unknown_name("use_rep: obsm key", use_rep, adata.obsm.keys())
    check_rows(values, len(ids), name)
    if use_rep is None:
        cells = Embedding(as_matrix(values, name), tuple(map(str, adata.var_names)), name=name)
    else:
        cells = named_embedding(values, use_rep)
    names = adata.obs_names.astype(str).to_numpy(dtype=object)
    return replace(cells, noise=_noise_of(adata, noise, cells), cell_names=names), ids


def _noise_of(adata: Any, noise: Any, cells: Embedding) -> Any:
    """The measurement noise of an AnnData, given by a key or as an array."""
    shape = cells.matrix.shape
    if noise is None:
        return None
    if isinstance(noise, str):
        noise = {"obsm": noise}
    if not isinstance(noise, Mapping):
        if isinstance(noise, pd.DataFrame):
            check_names(noise.index, adata.obs_names, "noise: the rows of the table", "the cells of obs", complete=True)
        check_noise_features(noise, cells.feature_names, "the table")
        return as_noise(noise, "the array", shape, shared=True)
    for key in noise:
        if key not in ("obsm", "layer"):
            raise ConfigError(
                f"noise may have the keys obsm and layer, not {key!r}; a function that computes the noise is noise_at"
            )
    for kind, place in (("obsm", adata.obsm), ("layer", named_layers(adata))):
        key = noise.get(kind)
        if key is None:
            continue
        if not isinstance(key, str) or key not in place:
            raise unknown_name(f"noise: {kind} key", key, place.keys())
        name = f"{kind}[{key!r}]"
        check_rows(place[key], shape[0], name)
        check_noise_features(place[key], cells.feature_names, name)
        return as_noise(place[key], name, shape)
    raise ConfigError(f"noise must name a key of obsm or a layer, got {noise!r}")


def cells_of_mapping(arrays: Mapping[Any, Any], noise: Any) -> tuple[Embedding, np.ndarray]:
    """The modelled matrix, from one array (cells, features) per patient, and the (n,) patient of every cell.

    Raises
    ------
    DataError
        For data that cannot be used.
    """
    if not arrays:
        raise DataError("the mapping of patients is empty")
    texts = _keys_as_text(arrays, "the mapping")
    matrices = {}
    for patient, x in zip(texts, arrays.values(), strict=True):
        check_id(patient, "the mapping of patients", in_file=False)
        name = f"the array of patient {patient!r}"
        matrix = as_matrix(x, name)
        if matrix.shape[0] == 0:
            raise DataError(f"{name} has no cells")
        matrices[patient] = matrix.toarray() if hasattr(matrix, "toarray") else matrix
    widths: dict[int, str] = {}
    for patient, x in matrices.items():
        widths.setdefault(x.shape[1], patient)
    if len(widths) > 1:
        shown = {patient: width for width, patient in widths.items()}
        raise DataError(f"the patients' arrays differ in their number of features: {shown}")
    names = _feature_names(dict(zip(texts, arrays.values(), strict=True)), next(iter(widths)))
    ids = np.repeat(np.array(texts, dtype=object), [x.shape[0] for x in matrices.values()])
    matrix = np.concatenate(list(matrices.values()))
    given = dict(zip(texts, arrays.values(), strict=True))
    cell_names = np.concatenate([_row_names(given[patient], patient, len(x)) for patient, x in matrices.items()])
    return Embedding(matrix, names, _noise_of_mapping(matrices, noise, given), cell_names), ids


def _row_names(table: Any, patient: str, n: int) -> np.ndarray:
    """(n,) names of a patient's cells: the row names of a table if they are texts, else None."""
    rows = table.index if isinstance(table, pd.DataFrame) else pd.Index([])
    if not all(isinstance(name, str) for name in rows) or not len(rows):
        return np.full(n, None, dtype=object)
    duplicated = rows.duplicated()
    if duplicated.any():
        raise DataError(
            f"the table of patient {patient!r}: {int(duplicated.sum())} names of rows occur more than once, the first is "
            f"{rows[duplicated][0]!r}: give every cell a name of its own, or number the rows (reset_index)"
        )
    return rows.to_numpy(dtype=object)


def _keys_as_text(mapping: Mapping[Any, Any], what: str) -> list[str]:
    texts = [key.decode(errors="replace") if isinstance(key, bytes) else str(key) for key in mapping]
    if len(set(texts)) < len(texts):
        twice = next(text for i, text in enumerate(texts) if text in texts[:i])
        raise DataError(f"two patients of {what} have the same text: {twice!r}; make them all text")
    for key in mapping:
        if key is None or key is pd.NA or key != key:  # NaN, NaT
            raise DataError(f"{what} has the key {key!r}, which names no patient: give every patient a name")
    return texts


def _feature_names(arrays: Mapping[str, Any], n_features: int) -> tuple[str, ...]:
    """Names of the features: the columns of the patients' tables, which must be the same, else numbers."""
    tables = {patient: x for patient, x in arrays.items() if isinstance(x, pd.DataFrame)}
    named = {patient: tuple(x.columns) for patient, x in tables.items() if not isinstance(x.columns, pd.RangeIndex)}
    for patient, names in named.items():
        first = next(iter(named))
        if names != named[first]:
            raise DataError(
                f"the tables of patients {first!r} and {patient!r} differ in their columns or in the order of these: "
                "give all patients the same columns in the same order"
            )
    if named:
        return tuple(map(str, next(iter(named.values()))))
    return tuple(f"feature {i + 1}" for i in range(n_features))


def _noise_of_mapping(matrices: Mapping[str, np.ndarray], noise: Any, given: Mapping[str, Any]) -> Any:
    """The measurement noise of a mapping of arrays: a mapping with the same patients, or one array for all cells."""
    if noise is None:
        return None
    n, d = sum(x.shape[0] for x in matrices.values()), next(iter(matrices.values())).shape[1]
    if not isinstance(noise, Mapping):
        values = _one_for_all(noise, d)
        if values is not None and not isinstance(noise, Noise):
            check_meaning(values, n, d, "noise: the array")
        if values is not None:
            return np.broadcast_to(values, (n, *values.shape))
        raise ConfigError(
            f"noise must be a mapping of patient to array, like the cells, or one for all, got {type(noise).__name__}"
        )
    noise = dict(zip(_keys_as_text(noise, "noise"), noise.values(), strict=True))
    absent = [patient for patient in matrices if patient not in noise]
    if absent:
        raise DataError(f"noise has no array for {len(absent)} patients, the first is {absent[0]!r}")
    for patient in matrices:
        check_labels(noise[patient], given[patient], f"noise of patient {patient!r}")
    arrays = [
        as_noise(noise[patient], f"the array of patient {patient!r}", x.shape, shared=True)
        for patient, x in matrices.items()
    ]
    if len({array.ndim for array in arrays}) > 1:
        raise DataError("noise must be variances for all patients, or covariances for all")
    arrays = [array.toarray() if hasattr(array, "toarray") else array for array in arrays]
    if all(is_one_for_all(array) and np.array_equal(array[0], arrays[0][0]) for array in arrays):
        return np.broadcast_to(arrays[0][0], (n, *arrays[0].shape[1:]))
    return np.concatenate(arrays)


def _one_for_all(noise: Any, n_features: int) -> np.ndarray | None:
    """Variances (D,) or a covariance (D, D) that all cells share; None for any other noise."""
    if isinstance(noise, Noise):
        values = noise.values if noise.is_shared else np.empty(0)
    else:
        values = np.empty(0) if isinstance(noise, str) else dense_array(noise, "noise: the array")
    return values if values.shape in ((n_features,), (n_features, n_features)) else None
