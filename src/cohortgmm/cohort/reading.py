"""Reading the matrix that is modelled, with the names of its features and the noise of its cells."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import pandas as pd

from cohortgmm.arrays import check_names, real_array
from cohortgmm.cohort.cells import PatientCells
from cohortgmm.cohort.h5ad import (
    check_rows,
    has_member,
    member_names,
    n_rows,
    read_element,
    row_names,
    unknown_name,
)
from cohortgmm.errors import DataError
from cohortgmm.mixture import Noise, check_meaning, is_one_for_all, tile_slices


@dataclass(frozen=True, eq=False)
class Embedding:
    """The matrix that is modelled.

    Attributes
    ----------
    matrix
        (n, D) array or CSR matrix.
    feature_names
        (D,) names of its columns.
    noise
        Measurement noise: (n, D) variances, as array or CSR matrix, or (n, D, D) covariances; None if there is none.
    cell_names
        (n,) names of the cells, with None for cells without a name; None if no cell has one.
    name
        Name of the matrix in messages.
    """

    matrix: Any
    feature_names: tuple[str, ...]
    noise: Any = None
    cell_names: np.ndarray | None = None
    name: str = "the data"

    def cells(
        self,
        patient: str,
        positions: np.ndarray,
        train: np.ndarray,
        owner: np.ndarray | None = None,
        patients: tuple[str, ...] | None = None,
    ) -> PatientCells:
        """The cells in these rows; the other arguments are those of :class:`~cohortgmm.cohort.cells.PatientCells`.

        Raises
        ------
        DataError
            If their noise is no valid covariance.
        """
        x = rows_of(self.matrix, positions)
        noise = None if self.noise is None else rows_of(self.noise, positions)
        names = None
        if self.cell_names is not None and all(name is not None for name in self.cell_names[positions]):
            texts = [name.encode(errors="surrogatepass") for name in self.cell_names[positions].tolist()]
            names = np.array(texts, dtype=bytes)
        cells = PatientCells(patient, x, train, owner, patients, noise, self.feature_names, names)
        if noise is not None and len(x):
            try:
                cells.noise_of()
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
    """The modelled matrix, ``obsm[use_rep]`` or, if ``use_rep`` is None, X, and the names of its features.

    Raises
    ------
    DataError
        If ``use_rep`` does not exist, cannot be read, is no numeric matrix or has another number of rows than ``obs``.
    """
    if use_rep is None:
        if "X" not in file:
            raise DataError("use_rep is null, but the file has no X")
        values = read_of_cells(file, "X", "X")
        return Embedding(as_matrix(values, "X"), tuple(row_names(file, "var")), name="X")
    if not has_member(file, "obsm", use_rep):
        raise unknown_name("use_rep: obsm key", use_rep, member_names(file, "obsm"))
    return named_embedding(read_of_cells(file, f"obsm/{use_rep}", f"obsm[{use_rep!r}]"), use_rep)


def read_of_cells(file: h5py.File, path: str, name: str) -> Any:
    """Read an element that must have a row for every cell and, for X and layers, a column for every gene.

    Raises
    ------
    DataError
        For another number of rows or columns, or for a table of other cells than those of ``obs``.
    """
    values = read_element(file, path)
    where = f"{file.filename}: {name}"
    check_rows(values, n_rows(file, "obs"), where)
    if path == "X" or path.startswith("layers/"):
        check_genes(values, n_rows(file, "var"), where)
    if isinstance(values, pd.DataFrame):
        _check_table(values, row_names(file, "obs"), where)
    return values


def _check_table(table: pd.DataFrame, names: pd.Index, where: str) -> None:
    if not np.array_equal(table.index.astype(str), names):
        raise DataError(f"{where} is a table whose rows are not the cells of obs in the same order: write it again")
    twice = table.columns[table.columns.duplicated()]
    if len(twice):  # a file can hold only one of them
        raise DataError(f"{where} has two columns of the name {twice[0]!r}: write it again with unique column names")


def check_genes(values: Any, n: int, name: str) -> None:
    """Refuse a matrix of cells and genes without exactly one column for every gene."""
    shape = np.shape(values)
    if len(shape) == 2 and shape[1] != n:
        raise DataError(f"{name} has {shape[1]} columns for {n} genes: it needs one column for each")


def named_embedding(values: Any, use_rep: str) -> Embedding:
    """An embedding with names of its features: those of a table, else PC1, PC2, ... or the key with numbers."""
    name = f"obsm[{use_rep!r}]"
    matrix = as_matrix(values, name)
    if isinstance(values, pd.DataFrame):
        return Embedding(matrix, tuple(map(str, values.columns)), name=name)
    stem = "PC" if use_rep.startswith("X_pca") else f"{use_rep.removeprefix('X_')} "
    return Embedding(matrix, tuple(f"{stem}{i + 1}" for i in range(matrix.shape[1])), name=name)


def read_noise(
    file: h5py.File, noise: Mapping[str, str | None], shape: tuple[int, int], feature_names: Sequence[str] = ()
) -> Any:
    """The measurement noise of an embedding of this shape; see :func:`as_noise`.

    Parameters
    ----------
    file
        The cohort.
    noise
        ``{"obsm": key}`` or ``{"layer": key}``.
    shape
        (n, D).
    feature_names
        (D,) names of the features; a table of noise must have them in the same order.
    """
    kind, place = ("obsm", "obsm") if noise["obsm"] else ("layer", "layers")
    key = str(noise[kind])
    if not has_member(file, place, key):
        raise unknown_name(f"noise.{kind}: key of {place}", key, member_names(file, place))
    name = f"{place}[{key!r}]"
    values = read_of_cells(file, f"{place}/{key}", name)
    check_noise_features(values, feature_names, name)
    return as_noise(values, name, shape)


def check_noise_features(values: Any, feature_names: Sequence[str], name: str) -> None:
    """Refuse a table of variances that has the features in another order than the cells."""
    if isinstance(values, pd.DataFrame):
        check_names(values.columns, feature_names, f"noise: {name}: its columns", "the features")
    elif isinstance(values, pd.Series):
        check_names(values.index, feature_names, f"noise: {name}: its rows", "the features")


def as_noise(values: Any, name: str, shape: tuple[int, int], *, shared: bool = False) -> Any:
    """Measurement noise as variances (n, D) or covariances (n, D, D).

    Covariances may be flattened to (n, D · D). With ``shared``, the noise may be the same for all cells, (D,) or (D, D);
    the result is then a view that repeats it without taking memory. For n = D cells, where a square array could have
    either meaning, it must be a :class:`~cohortgmm.Noise`.

    Raises
    ------
    DataError
        For another shape, an ambiguous one, or values that are no real numbers.
    """
    n, d = shape
    given = values if isinstance(values, Noise) else None
    values = real_array(values, f"noise: {name}") if given is None else given.values
    one_for_all = shared and values.shape in ((d,), (d, d))
    if given is None and one_for_all:
        dense = values.toarray() if hasattr(values, "toarray") else values
        check_meaning(dense, n, d, f"noise: {name}")
        one_for_all = values.shape != (n, d)
    elif given is not None:
        one_for_all = given.is_shared
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


def named_layers(adata: Any) -> dict[str, Any]:
    """The layers of an AnnData by name, without X, which anndata ≥ 0.13 lists there under the name None."""
    return {name: layer for name, layer in adata.layers.items() if name is not None}


def as_matrix(matrix: Any, name: str) -> Any:
    """Values of an AnnData as (n, D) array or CSR matrix of real numbers."""
    matrix = real_array(matrix, name)
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise DataError(
            f"{name} must be a numeric matrix (cells, features), got {matrix.dtype} of shape {matrix.shape}"
        )
    return matrix


def rows_of(matrix: Any, rows: np.ndarray | slice) -> np.ndarray:
    """Some rows of a matrix from :func:`as_matrix`, or of noise from :func:`as_noise`, as a dense array."""
    if not isinstance(rows, slice) and not hasattr(matrix, "tocsr") and is_one_for_all(matrix):
        return matrix[: len(rows)]
    part = matrix[rows]
    return part.toarray() if hasattr(part, "toarray") else part
