"""Reading the parts of an ``.h5ad`` that are needed, and refusing what cannot be used with one clear line."""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem

from cohortgmm.arrays import real_array
from cohortgmm.cohort.cells import PatientCells
from cohortgmm.errors import DataError
from cohortgmm.mixture.noise import Noise, check_meaning, is_one_for_all
from cohortgmm.mixture.tiles import tile_slices


@contextmanager
def open_h5ad(path: str | os.PathLike) -> Iterator[h5py.File]:
    """Open an ``.h5ad`` for reading.

    Raises
    ------
    DataError
        If the file does not exist, is not HDF5, or holds no AnnData.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: not an .h5ad file ({str(error).splitlines()[0]})") from None
    with file:
        if not {"obs", "var"} <= set(file):
            raise DataError(f"{path}: an HDF5 file, but not an AnnData one (it has no obs and var)")
        yield file


def unknown_name(kind: str, name: str, known: Iterable[str]) -> DataError:
    """Error for a name that the data does not have, with the nearest one it has."""
    known = sorted(map(str, known))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    hint = f"did you mean {close[0]!r}? " if close else ""
    return DataError(f"{kind} {name!r} is not in the data; {hint}known: {shown or 'none'}")


def check_cell_names(obs: pd.DataFrame) -> None:
    """Refuse cell names that occur more than once."""
    duplicated = obs.index.duplicated()
    if duplicated.any():
        raise DataError(
            f"{int(duplicated.sum())} cell names occur more than once, the first is {str(obs.index[duplicated][0])!r}: "
            "call adata.obs_names_make_unique()"
        )


def check_column(obs: pd.DataFrame, column: str, key: str) -> None:
    """Refuse a column that ``obs`` does not have; ``key`` is the configuration key it came from."""
    if column not in obs.columns:
        raise unknown_name(f"{key}: obs column", column, obs.columns)


def check_input(path: str | os.PathLike, columns: Mapping[str, str | None]) -> None:
    """Refuse an ``.h5ad`` that lacks a column, before anything costly is done with it.

    Parameters
    ----------
    path
        The file, of which only the names in ``obs`` are read.
    columns
        Configuration key to column of ``obs``; None is not looked for.
    """
    with open_h5ad(path) as file:
        known = read_obs(file).columns
    for key, column in columns.items():
        if column is not None and column not in known:
            raise unknown_name(f"{key}: obs column", column, known)


def patient_ids(obs: pd.DataFrame, patient_col: str) -> np.ndarray:
    """Patient of every cell as text.

    Integers, floats, booleans and categories become their text; categories without cells play no part.

    Parameters
    ----------
    obs
        (n,) table of cells.
    patient_col
        Its column.

    Returns
    -------
    ndarray of str
        (n,) object array.

    Raises
    ------
    DataError
        If the column is missing, a cell has no patient, or two different values read the same as text.
    """
    check_column(obs, patient_col, "patient_col")
    column = obs[patient_col]
    missing = column.isna().to_numpy()
    if missing.any():
        raise DataError(
            f"patient_col {patient_col!r}: {int(missing.sum())} cells have no patient, the first is "
            f"{str(obs.index[missing][0])!r}"
        )
    codes, values = pd.factorize(column)
    texts = np.array([str(value) for value in values], dtype=object)
    if len(set(texts)) < len(texts):
        raise DataError(f"patient_col {patient_col!r}: two different values read the same as text; make them all text")
    return texts[codes]


def patient_labels(obs: pd.DataFrame, ids: np.ndarray, label_col: str) -> tuple[dict[str, str], list[str]]:
    """Label of every patient (the commonest among its cells) and the patients whose cells have several."""
    check_column(obs, label_col, "label_col")
    labels = obs[label_col].astype(object).map(lambda value: "" if pd.isna(value) else str(value)).to_numpy()
    counts = pd.DataFrame({"patient": ids, "label": labels}).value_counts().reset_index()
    first = counts.sort_values(["count", "label"], ascending=[False, True]).drop_duplicates("patient")
    several = counts["patient"].value_counts()
    return dict(zip(first["patient"], first["label"], strict=True)), sorted(several.index[several > 1])


def read_obs(file: h5py.File) -> pd.DataFrame:
    """The whole ``obs`` table.

    Raises
    ------
    DataError
        If it is in a layout that only old versions of anndata wrote.
    """
    obs = read_elem(file["obs"])
    if not isinstance(obs, pd.DataFrame):
        raise DataError(
            f"{file.filename}: obs is in the layout of anndata before 0.7: read the file with anndata and write it again"
        )
    return obs


@dataclass(frozen=True, eq=False)
class Embedding:
    """What is modelled.

    Attributes
    ----------
    matrix
        (n, D) array or CSR matrix.
    feature_names
        (D,) names of its columns.
    noise
        (n, D) variances, as array or CSR matrix, or (n, D, D) covariances of the measurement noise; None without.
    cell_names
        (n,) names of the cells; None for cells without names.
    """

    matrix: Any
    feature_names: tuple[str, ...]
    noise: Any = None
    cell_names: np.ndarray | None = None

    def cells(self, patient: str, positions: np.ndarray, train: np.ndarray, owner=None, patients=None) -> PatientCells:
        """Some of the cells, by their rows; the rest as in :class:`~cohortgmm.cohort.cells.PatientCells`.

        Raises
        ------
        DataError
            If their noise is no covariance.
        """
        x = rows_of(self.matrix, positions)
        noise = None if self.noise is None else rows_of(self.noise, positions)
        names = None
        if self.cell_names is not None:
            texts = [name.encode(errors="surrogatepass") for name in self.cell_names[positions].tolist()]
            names = np.array(texts, dtype=bytes)
        cells = PatientCells(patient, x, train, owner, patients, noise, self.feature_names, names)
        if noise is not None and len(x):
            try:
                Noise.read(Noise.per_cell(noise), *x.shape, name_of=cells.cell_name, missing=np.isnan(x))
            except DataError as error:
                raise DataError(f"patient {patient!r}: {error}") from None
        return cells

    def empty_cells(self) -> np.ndarray:
        """(n,) bool: cells without any feature."""
        n, d = self.matrix.shape
        empty = np.zeros(n, dtype=bool)
        for tile in tile_slices(n, d):
            noise = None if self.noise is None else rows_of(self.noise, tile)
            cells = PatientCells("", rows_of(self.matrix, tile), empty[tile], noise=noise)
            empty[tile] = ~cells.has_features
        return empty


def read_embedding(file: h5py.File, use_rep: str | None) -> Embedding:
    """The modelled matrix, ``obsm[use_rep]`` or X for None, with the names of its features.

    Raises
    ------
    DataError
        If ``use_rep`` is not there or is no numeric matrix.
    """
    if use_rep is None:
        if "X" not in file:
            raise DataError("use_rep is null, but the file has no X")
        names = read_elem(file["var"]).index
        return Embedding(as_matrix(read_elem(file["X"]), "X"), tuple(map(str, names)))
    obsm = file.get("obsm", {})
    if use_rep not in obsm:
        raise unknown_name("use_rep: obsm key", use_rep, obsm)
    return named_embedding(read_elem(obsm[use_rep]), use_rep)


def named_embedding(values, use_rep: str) -> Embedding:
    """An embedding with the names of its features: a table's own, else PC1, PC2, ... or the key's with numbers."""
    matrix = as_matrix(values, f"obsm[{use_rep!r}]")
    if isinstance(values, pd.DataFrame):
        return Embedding(matrix, tuple(map(str, values.columns)))
    stem = "PC" if use_rep.startswith("X_pca") else f"{use_rep.removeprefix('X_')} "
    return Embedding(matrix, tuple(f"{stem}{i + 1}" for i in range(matrix.shape[1])))


def read_noise(file: h5py.File, noise: Mapping[str, str | None], shape: tuple[int, int]):
    """The measurement noise of an embedding of this shape; see :func:`as_noise`.

    Parameters
    ----------
    file
        The cohort.
    noise
        ``{"obsm": key}`` or ``{"layer": key}``.
    shape
        (n, D).
    """
    kind, place, key = ("obsm", "obsm", noise["obsm"]) if noise["obsm"] else ("layer", "layers", noise["layer"])
    group = file.get(place, {})
    if key not in group:
        raise unknown_name(f"noise.{kind}: key of {place}", key, group)
    return as_noise(read_elem(group[key]), f"{place}[{key!r}]", shape)


def as_noise(values, name: str, shape: tuple[int, int], *, shared: bool = False):
    """Variances (n, D) or covariances (n, D, D) from what AnnData may hold: these, or covariances (n, D · D).

    With ``shared``, one for all, (D,) or (D, D), is taken too: it becomes a view that takes no memory for the cells. A
    square array that may be either, of n = D cells, must then be a :class:`~cohortgmm.Noise`, which says what it is.

    Raises
    ------
    DataError
        For another shape, one of two meanings, or what is no array of real numbers.
    """
    n, d = shape
    said = values if isinstance(values, Noise) else None
    values = real_array(values, f"noise: {name}") if said is None else said.values
    one_for_all = shared and values.shape in ((d,), (d, d))
    if said is None and one_for_all:
        dense = values.toarray() if hasattr(values, "toarray") else values
        check_meaning(dense, n, d, f"noise: {name}")
        one_for_all = values.shape != (n, d)
    elif said is not None:
        one_for_all = said.is_shared
    if values.shape == (n, d * d) and d > 1 and not one_for_all:
        values = (values.toarray() if hasattr(values, "tocsr") else values).reshape(n, d, d)
    allowed = ((d,), (d, d)) if one_for_all else ((n, d), (n, d, d))
    if values.shape not in allowed or (one_for_all and not shared):
        one = f", or one for all of shape {(d,)} or {(d, d)}" if shared else ""
        raise DataError(
            f"noise: {name} must be variances of shape {(n, d)}, or covariances of shape {(n, d, d)} or {(n, d * d)}{one}, "
            f"got {values.dtype} of shape {values.shape}"
        )
    if one_for_all:
        values = np.broadcast_to(values.toarray() if hasattr(values, "tocsr") else values, (n, *values.shape))
    return values


def as_matrix(matrix, name: str):
    """A numeric (n, D) array or CSR matrix from what AnnData may hold."""
    if isinstance(matrix, pd.DataFrame):
        matrix = matrix.to_numpy()
    if hasattr(matrix, "tocsr"):
        return matrix.tocsr()
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[1] == 0 or matrix.dtype.kind not in "fiub":
        raise DataError(
            f"{name} must be a numeric matrix (cells, features), got {matrix.dtype} of shape {matrix.shape}"
        )
    return matrix


def rows_of(matrix, rows: np.ndarray | slice) -> np.ndarray:
    """Dense rows of what :func:`as_matrix` or :func:`as_noise` returned."""
    if not isinstance(rows, slice) and not hasattr(matrix, "tocsr") and is_one_for_all(matrix):
        return matrix[: len(rows)]
    part = matrix[rows]
    return part.toarray() if hasattr(part, "toarray") else part
