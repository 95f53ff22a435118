"""Reading single elements of an ``.h5ad``; errors name the file and the element in one line."""

import difflib
import importlib
import os
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem
from scipy import sparse

from cohortgmm.display import format_error
from cohortgmm.errors import DataError

#: The first bytes of a file that gzip wrote.
_GZIP = b"\x1f\x8b"


@contextmanager
def open_h5ad(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """Open an ``.h5ad`` for reading.

    Raises
    ------
    DataError
        If the file does not exist, is not HDF5, cannot be opened, or holds no AnnData.
    """
    path = Path(path)
    if path.is_dir():
        is_zarr = path.suffix == ".zarr" or any((path / name).exists() for name in (".zgroup", "zarr.json"))
        hint = f"write it as .h5ad: anndata.read_zarr({str(path)!r}).write_h5ad('cohort.h5ad')" if is_zarr else ""
        raise DataError(f"{path}: a folder{' of zarr' if is_zarr else ''}, not an .h5ad file{hint and ': '}{hint}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: {_why_closed(path, error)}") from None
    with file:
        other = _other_kind(file)
        if other:
            raise DataError(f"{path}: {other}")
        yield file


def _why_closed(path: Path, error: OSError) -> str:
    text = str(error).splitlines()[0]
    if isinstance(error, BlockingIOError) or "unable to lock file" in text:
        return (
            "another program has locked the file: close the file in that program, or set the environment variable "
            "HDF5_USE_FILE_LOCKING=FALSE if it is not being written"
        )
    if isinstance(error, PermissionError):
        return "no permission to read the file"
    with open(path, "rb") as stream:
        packed = stream.read(2) == _GZIP
    hint = ": it is compressed with gzip, decompress it first" if packed else ""
    hint = ": it is truncated, copy it or write it again" if "truncated file" in text else hint
    return f"not an .h5ad file ({text}){hint}"


def _other_kind(file: h5py.File) -> str:
    """Description of an HDF5 file that is no AnnData, and how to convert it; empty for AnnData."""
    names = set(file)
    if "mod" in names:
        modalities = [*file["mod"]] if "mod" in file else []
        first = modalities[0] if modalities else "rna"
        return (
            f"MuData with the modalities {', '.join(modalities) or 'none'}, not AnnData: write one modality by itself, "
            f"mdata.mod[{first!r}].write_h5ad('{first}.h5ad'), and name that file"
        )
    if {"obs", "var"} <= names:
        return ""
    members = set(file["matrix"]) if isinstance(file.get("matrix"), h5py.Group) else set()
    genomes = [name for name in names if isinstance(file.get(name), h5py.Group) and "barcodes" in file[name]]
    if "barcodes" in members or genomes:
        return "a 10x matrix, not AnnData: write it with scanpy.read_10x_h5(...).write_h5ad('cohort.h5ad')"
    if {"row_attrs", "col_attrs"} <= names:
        return "a loom file, not AnnData: write it with scanpy.read_loom(...).write_h5ad('cohort.h5ad')"
    if "cell.names" in names:
        return "an h5Seurat file, not AnnData: convert it with SeuratDisk::Convert(..., dest = 'h5ad')"
    return "an HDF5 file, but not an AnnData one (it has no obs and var)"


def unknown_name(kind: str, name: str, known: Iterable[str]) -> DataError:
    """Error for a name that does not exist in the data, with the most similar one that does."""
    name, known = str(name), sorted(map(str, known))
    same = [other for other in known if _visible(other) == _visible(name)]
    close = same or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    hint = f"did you mean {close[0]!r}? " if close else ""
    if same:
        hint = f"{same[0]!r} looks the same, but its characters differ ({name!a} and {same[0]!a}); "
    return DataError(f"{kind} {name!r} is not in the data; {hint}known: {shown or 'none'}")


def _visible(text: str) -> str:
    """A text with composed characters and without spaces at its ends: two such texts look the same to a reader."""
    return unicodedata.normalize("NFKC", text).strip()


def member_names(file: h5py.File, group: str) -> list[str]:
    """Names of the elements of ``obsm``, ``layers`` or ``uns``; none if the file has no such group."""
    found = find_item(file, group) if group in file else {}
    return list(found) if isinstance(found, h5py.Group) else []


def has_member(file: h5py.File, group: str, key: str) -> bool:
    """Whether a group has an element of this name; the name may contain slashes, but must not lead out of the group."""
    first, *others = key.split("/")
    if first not in member_names(file, group) or {"", "."} & set(others) or "\0" in key:
        return False
    return not others or key in file[group]


def find_item(file: h5py.File, path: str) -> h5py.Group | h5py.Dataset:
    """A group or dataset of the file.

    Raises
    ------
    DataError
        If it does not exist, or is a broken link.
    """
    try:
        return file[path]
    except (KeyError, OSError, RuntimeError) as error:
        link = _broken_link(file, path)
        if link is not None:
            place = f"{link.path} in {link.filename}" if isinstance(link, h5py.ExternalLink) else link.path
            raise DataError(
                f"{file.filename}: {path} is a link to {place}, which cannot be opened: restore the linked file, or "
                "write this file again on a machine where the link works"
            ) from None
        if isinstance(error, KeyError):
            raise DataError(f"{file.filename}: {path} is not in the file") from None
        raise DataError(f"{file.filename}: {path} cannot be read: {format_error(error)}") from None


def _broken_link(file: h5py.File, path: str) -> Any:
    parts = path.split("/")
    for i in range(1, len(parts) + 1):
        name = "/".join(parts[:i])
        try:
            file[name]
        except (KeyError, OSError, RuntimeError):
            link = file.get(name, getlink=True)
            return link if isinstance(link, h5py.ExternalLink | h5py.SoftLink) else None
    return None


def read_element(file: h5py.File, path: str) -> Any:
    """One element, such as ``obsm/X_pca``, as anndata reads it; nothing else of the file is read.

    Raises
    ------
    DataError
        If it does not exist, is compressed with a filter that is not installed, has a format unknown to anndata, or is
        damaged.
    """
    item = find_item(file, path)
    for name, dataset in _datasets(item, path):
        _check_filters(file, name, dataset)
        _check_sources(file, name, dataset)
    try:
        return read_item(item)
    except MemoryError:
        raise
    except Exception as error:  # h5py and anndata may raise anything for a damaged file
        raise DataError(f"{file.filename}: {path} cannot be read: {_why_unread(item, error)}") from None


def read_item(item: h5py.Group | h5py.Dataset) -> Any:
    """The content of a group or dataset as anndata reads it; sparse matrices of types unknown to scipy are converted."""
    return _read_rare_sparse(item) if _is_rare_sparse(item) else read_elem(item)


def stored_array(file: h5py.File, path: str) -> Any:
    """A plain array as a dataset, to be read piece by piece; any other element as :func:`read_element` reads it."""
    item = find_item(file, path)
    if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "biuf":
        return read_element(file, path)
    _check_filters(file, path, item)
    _check_sources(file, path, item)
    return item


def _is_rare_sparse(item: h5py.Group | h5py.Dataset) -> bool:
    """Whether this is a sparse matrix in half precision or in another byte order, which scipy does not support."""
    if item.attrs.get("encoding-type") not in ("csr_matrix", "csc_matrix") or "data" not in item:
        return False
    dtype = item["data"].dtype
    return dtype.kind in "iuf" and (dtype == np.float16 or not dtype.isnative)


def _read_rare_sparse(group: h5py.Group) -> Any:
    form = sparse.csr_matrix if group.attrs["encoding-type"] == "csr_matrix" else sparse.csc_matrix
    data = group["data"][()]
    data = data.astype(np.float32 if data.dtype == np.float16 else data.dtype.newbyteorder("="))
    indices, indptr = (group[name][()] for name in ("indices", "indptr"))
    indices, indptr = (values.astype(values.dtype.newbyteorder("=")) for values in (indices, indptr))
    return form((data, indices, indptr), shape=tuple(map(int, group.attrs["shape"])))


def _datasets(item: h5py.Group | h5py.Dataset, path: str) -> Iterator[tuple[str, h5py.Dataset]]:
    if isinstance(item, h5py.Dataset):
        yield path, item
        return
    found: list[tuple[str, h5py.Dataset]] = []

    def collect(name: str, thing: Any) -> None:
        found.append((f"{path}/{name}", thing))

    item.visititems(collect)
    yield from ((name, thing) for name, thing in found if isinstance(thing, h5py.Dataset))


def _check_filters(file: h5py.File, name: str, dataset: h5py.Dataset) -> None:
    """Refuse a dataset compressed with a filter that neither HDF5 nor hdf5plugin has."""
    missing = _missing_filters(dataset)
    if not missing:
        return
    try:
        importlib.import_module("hdf5plugin")  # registers its filters
    except ImportError:
        pass
    else:
        missing = _missing_filters(dataset)
    if missing:
        raise DataError(
            f"{file.filename}: {name} is compressed with the HDF5 filter {missing[0]}, which is not installed: "
            "pip install hdf5plugin, or write the file again with gzip"
        )


def _missing_filters(dataset: h5py.Dataset) -> list[str]:
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    return [
        f"{number} ({name.decode(errors='replace').partition(';')[0]})" if name else str(number)
        for number, _, _, name in filters
        if not h5py.h5z.filter_avail(number)
    ]


def load_filters(file: h5py.File) -> None:
    """Load hdf5plugin if any dataset of the file needs one of its filters."""
    for name, dataset in _datasets(file["/"], ""):
        _check_filters(file, name.lstrip("/"), dataset)


def check_sources(file: h5py.File, path: str = "/") -> None:
    """Refuse an element, or a file, with a dataset stored in other files that are missing: HDF5 would read zeros."""
    for name, dataset in _datasets(file[path], path.rstrip("/")):
        _check_sources(file, name.lstrip("/"), dataset)


def _check_sources(file: h5py.File, name: str, dataset: h5py.Dataset) -> None:
    """Refuse a dataset stored in other files that are missing: HDF5 would read zeros."""
    folder = os.path.dirname(os.path.abspath(dataset.file.filename))
    sources = {source.file_name for source in dataset.virtual_sources()} - {"."} if dataset.is_virtual else set()
    sources |= {part[0] for part in dataset.external or ()}
    for source in sorted(sources):
        if not any(os.path.exists(os.path.join(place, source)) for place in (folder, ".")):
            raise DataError(
                f"{file.filename}: {name} is stored in the file {source}, which is missing: put it into the same folder"
            )


def _why_unread(item: h5py.Group | h5py.Dataset, error: Exception) -> str:
    if type(error).__name__ == "IORegistryError":
        kind = " ".join(str(item.attrs.get(f"encoding-{part}", "")) for part in ("type", "version")).strip()
        return (
            f"its format {kind or 'without a name'!r}, or that of a part of it, is unknown to anndata "
            f"{version('anndata')}: update anndata, or write the file again with this version"
        )
    return f"{format_error(error)}; is the file damaged?" if isinstance(error, OSError) else format_error(error)


# Tables: obs and var


def _table(file: h5py.File, name: str) -> h5py.Group:
    table = find_item(file, name)
    if not isinstance(table, h5py.Group):
        raise DataError(
            f"{file.filename}: {name} is in the layout of anndata before 0.7: "
            "read the file with anndata and write it again"
        )
    return table


def _index_name(file: h5py.File, name: str) -> str:
    table = _table(file, name)
    given = table.attrs.get("_index")
    found = [_text(given)] if given is not None else [key for key in ("_index", "index") if key in table]
    if not found:
        raise DataError(f"{file.filename}: {name} does not say which column holds its names (attribute _index)")
    return found[0]


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def row_names(file: h5py.File, name: str) -> pd.Index:
    """Names of the cells (``obs``) or genes (``var``), as text."""
    path = f"{name}/{_index_name(file, name)}"
    values = np.asarray(_read_series(file, path), dtype=object)
    if values.ndim != 1:
        raise DataError(f"{file.filename}: {path} holds no names, its shape is {values.shape}")
    return pd.Index([_text(value) for value in values], dtype=object)


def n_rows(file: h5py.File, name: str) -> int:
    """Number of cells (``obs``) or genes (``var``)."""
    item = find_item(file, f"{name}/{_index_name(file, name)}")
    return len(item) if isinstance(item, h5py.Dataset) and item.shape else len(row_names(file, name))


def table_columns(file: h5py.File, name: str) -> list[str]:
    """Names of the columns of ``obs`` or ``var``, in their order."""
    table = _table(file, name)
    if "column-order" not in table.attrs:
        index = _index_name(file, name)
        return [key for key in table if key not in (index, "__categories")]
    return [_text(column) for column in np.atleast_1d(table.attrs["column-order"])]


def read_column(file: h5py.File, name: str, column: str, names: pd.Index | None = None) -> pd.Series:
    """One column of ``obs`` or ``var``.

    Parameters
    ----------
    names
        Names of its rows; None to read them.

    Raises
    ------
    DataError
        If it cannot be read or has another number of rows than the table.
    """
    names = row_names(file, name) if names is None else names
    values = _read_series(file, f"{name}/{column}")
    if getattr(values, "ndim", None) != 1:
        raise DataError(f"{file.filename}: {name}[{column!r}] is no column, its shape is {np.shape(values)}")
    check_rows(values, len(names), f"{file.filename}: {name}[{column!r}]", "cells" if name == "obs" else "genes")
    return pd.Series(values, index=names, name=column)


def _read_series(file: h5py.File, path: str) -> Any:
    """The values of a column; anndata before 0.8 stored its categories in another place."""
    item = find_item(file, path)
    values = read_element(file, path)
    if not isinstance(item, h5py.Dataset) or "categories" not in item.attrs:
        return values
    try:
        categories = item.parent[item.attrs["categories"]]
        return pd.Categorical.from_codes(values, read_elem(categories), ordered=bool(categories.attrs.get("ordered")))
    except Exception as error:
        raise DataError(f"{file.filename}: the categories of {path} cannot be read: {format_error(error)}") from None


def read_obs(file: h5py.File, columns: Iterable[str] | None = None) -> pd.DataFrame:
    """The table of cells with some of its columns, or all of them.

    Columns that do not exist are left out; :func:`~cohortgmm.cohort.texts.check_column` reports them. A column that
    exists twice is in the table twice.

    Raises
    ------
    DataError
        If it has the layout of anndata before 0.7, or cannot be read.
    """
    known = table_columns(file, "obs")
    wanted = known if columns is None else [column for column in known if column in set(columns)]
    names = row_names(file, "obs")
    series = {column: read_column(file, "obs", column, names) for column in dict.fromkeys(wanted)}
    table = pd.DataFrame(series, index=names)
    return table if len(series) == len(wanted) else table[wanted]


def check_rows(values: Any, n: int, name: str, of: str = "cells") -> None:
    """Refuse values without exactly one row for every cell (or gene)."""
    shape = tuple(np.shape(values))
    if not shape or shape[0] == n:
        return
    transposed = ", it looks transposed" if len(shape) == 2 and shape[1] == n else ""
    raise DataError(f"{name} has {shape[0]} rows for {n} {of}{transposed}: it needs one row for each")
