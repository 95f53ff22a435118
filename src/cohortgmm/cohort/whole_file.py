"""Reading a whole ``.h5ad`` and writing it again, even if anndata cannot write, or cannot read, some of its entries."""

import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import pandas as pd
from anndata.io import read_elem

from cohortgmm.cohort.entries import SUFFIX
from cohortgmm.cohort.h5ad import check_sources, load_filters, open_h5ad, read_item
from cohortgmm.display import format_error
from cohortgmm.errors import CohortgmmError, DataError

#: Name of a column that anndata reserves.
_RESERVED = "_index"

_MAPPINGS = ("obsm", "varm", "layers", "obsp", "varp", "uns")


@dataclass
class Cohort:
    """The content of a file.

    Attributes
    ----------
    adata
        All entries that can be read; None after :meth:`release`.
    renamed
        Entries that got another name, because anndata cannot write their own: ``{"entry": ..., "kept_as": ...}``.
    unread
        Entries that cannot be read: the reason, by path in the file.
    """

    adata: ad.AnnData | None
    renamed: list[dict[str, str]] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)

    def release(self) -> ad.AnnData:
        """Return the AnnData and remove it from this object, so that the caller can free its memory."""
        adata, self.adata = self.adata, None
        return adata

    @property
    def left_out(self) -> list[str]:
        """Names of the entries that :func:`write_cohort` cannot copy."""
        return [_entry(path) for path in self.unread if not path.startswith("uns/")]


def read_cohort(source: str | os.PathLike[str], needed: str) -> Cohort:
    """Read a file whole; entries that cannot be read are left out unless they are needed.

    Parameters
    ----------
    source
        An ``.h5ad``.
    needed
        Path in the file of an entry that must be readable, in addition to ``obs`` and ``var``.

    Raises
    ------
    DataError
        If the file is no AnnData, or if the needed entry cannot be read.
    """
    with open_h5ad(source) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that are not unique are handled later
        load_filters(file)
        try:
            check_sources(file)
            cohort = Cohort(ad.read_h5ad(source))
        except MemoryError:
            raise
        except Exception:
            cohort = _read_by_elements(file)
    for path, reason in cohort.unread.items():
        if path == needed or path.startswith(f"{needed}/"):
            raise DataError(f"{source}: anndata {ad.__version__} cannot read {_entry(path)} ({reason})")
    for entry, table in list(_tables(cohort.adata)):
        if _RESERVED in table.columns:
            name = f"{_RESERVED}{SUFFIX}"
            table.columns = [name if column == _RESERVED else column for column in table.columns]
            cohort.renamed.append({"entry": f"{entry}[{_RESERVED!r}]", "kept_as": f"{entry}[{name!r}]"})
    return cohort


def write_cohort(
    adata: ad.AnnData, target: Path, source: str | os.PathLike[str], unread: Mapping[str, str]
) -> list[str]:
    """Write a cohort; entries of ``uns`` that could not be read are copied from the source.

    Parameters
    ----------
    adata
        The cohort.
    target
        The new file.
    source, unread
        The file that the cohort was read from, and its entries that could not be read, see :class:`Cohort`.

    Returns
    -------
    list of str
        Names of entries of ``uns`` that could not be copied, as they are broken links.

    Raises
    ------
    DataError
        If anndata cannot write an entry.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adata.write_h5ad(target, compression="gzip")
    except (CohortgmmError, MemoryError, OSError):
        raise
    except Exception as error:
        raise DataError(
            f"{source}: anndata {ad.__version__} cannot write an entry that it has read ({format_error(error)}): "
            "remove or rename this entry"
        ) from error
    paths = [path for path in unread if path.startswith("uns/")]
    lost = []
    if paths:
        with h5py.File(source, "r") as old, h5py.File(target, "a") as new:
            for path in paths:
                name = f"{path}{SUFFIX}" if path in new else path
                try:
                    old.copy(old[path], new, name=name, expand_external=True)  # links would not work in another folder
                except (KeyError, OSError, RuntimeError):
                    new.pop(name, None)
                    lost.append(_entry(path))
    return lost


def _entry(path: str) -> str:
    """Name of the entry at a path of the file, as in Python."""
    place, _, key = path.partition("/")
    return f"{place}[{key!r}]" if key else place


def _read_by_elements(file: h5py.File) -> Cohort:
    """Read the entries one by one."""
    unread: dict[str, str] = {}
    renamed: list[dict[str, str]] = []
    tables = {name: _read_table(file, name, unread) for name in ("obs", "var")}
    mappings = {place: _read_mapping(file, place, unread, renamed) for place in _MAPPINGS}
    x = _read_or_note(file, "X", unread)
    raw = None
    if "raw" in file:
        raw = {"X": _read_or_note(file, "raw/X", unread), "var": _read_table(file, "raw/var", unread)}
        raw["varm"] = _read_mapping(file, "raw/varm", unread, renamed)
        raw = None if raw["X"] is None else raw
    try:
        return Cohort(ad.AnnData(X=x, raw=raw, **tables, **mappings), renamed, unread)
    except (TypeError, ValueError) as error:
        raise DataError(f"{file.filename}: its entries do not fit together ({format_error(error)})") from error


def _read_or_note(file: h5py.File, path: str, unread: dict[str, str]) -> Any:
    if path not in file:
        return None
    try:
        check_sources(file, path)
        return read_item(file[path])
    except MemoryError:
        raise
    except Exception as error:
        unread[path] = format_error(error)
        return None


def _read_table(file: h5py.File, path: str, unread: dict[str, str]) -> pd.DataFrame:
    """A table without the columns that cannot be read.

    Raises
    ------
    DataError
        If its names cannot be read.
    """
    group = file[path]
    try:
        check_sources(file, path)
        return read_elem(group)
    except MemoryError:
        raise
    except Exception as error:
        if not isinstance(group, h5py.Group) or "_index" not in group.attrs:
            raise DataError(f"{file.filename}: anndata cannot read {path} ({format_error(error)})") from error
    index = _read_or_note(file, f"{path}/{group.attrs['_index']}", unread)
    if index is None:
        raise DataError(f"{file.filename}: the names in {path} cannot be read")
    names = [str(name) for name in group.attrs.get("column-order", ())]
    columns = {name: _read_or_note(file, f"{path}/{name}", unread) for name in names}
    return pd.DataFrame({name: values for name, values in columns.items() if values is not None}, index=index)


def _read_mapping(file: h5py.File, place: str, unread: dict[str, str], renamed: list[dict[str, str]]) -> dict[str, Any]:
    """The entries of a mapping. A ``/`` in a key, which makes nested groups in a file, becomes ``_``."""
    found: dict[str, Any] = {}
    for key, item in file.get(place, {}).items():
        nested = place != "uns" and isinstance(item, h5py.Group) and item.attrs.get("encoding-type", "dict") == "dict"
        paths = [f"{key}/{inner}" for inner in item] if nested else [key]
        for name in paths:
            value = _read_or_note(file, f"{place}/{name}", unread)
            if value is None:
                continue
            new = name.replace("/", "_")
            found[new] = value
            if new != name:
                renamed.append({"entry": f"{place}[{name!r}]", "kept_as": f"{place}[{new!r}]"})
    return found


def _tables(adata: ad.AnnData) -> Iterator[tuple[str, pd.DataFrame]]:
    """All tables of a cohort, with their names."""
    yield "obs", adata.obs
    yield "var", adata.var
    if adata.raw is not None:
        yield "raw.var", adata.raw.var
    for place in ("obsm", "varm", "uns"):
        yield from _tables_within(place, getattr(adata, place))


def _tables_within(name: str, mapping: Mapping[str, Any]) -> Iterator[tuple[str, pd.DataFrame]]:
    for key, value in mapping.items():
        if isinstance(value, pd.DataFrame):
            yield f"{name}[{key!r}]", value
        elif isinstance(value, Mapping):
            yield from _tables_within(f"{name}[{key!r}]", value)
