"""Elements of an ``.h5ad`` that are stored in other files, which a copy of it in another folder would not find."""

import logging
from collections.abc import Iterator

import h5py
import numpy as np

logger = logging.getLogger(__name__)

#: Values of a dataset that are copied at a time.
_BLOCK = 1 << 22


def copy_linked(source: h5py.File, copy: h5py.File) -> None:
    """Copy what a file stores in other files: external links, virtual datasets, raw storage.

    Broken links are left out with a warning in the log, because no program could read a copy that contains them.

    Parameters
    ----------
    source
        The original file, in its own folder, where its links work.
    copy
        A copy of it in another folder, open for writing.
    """
    for path in list(_linked(source["/"], "", set())):
        folder, _, name = path.rpartition("/")
        group = copy[folder] if folder else copy
        try:
            item = source[path]
        except (KeyError, OSError, RuntimeError):
            logger.warning("%s: %s is a broken link and is left out", source.filename, path)
            _remove(group, name)
            continue
        del group[name]
        if isinstance(item, h5py.Dataset) and _lies_elsewhere(item):
            _copy_values(item, group, name)
        else:
            copy.copy(item, group, name, expand_external=True)


def _linked(group: h5py.Group, path: str, seen: set[int]) -> Iterator[str]:
    """Paths of links to other files and of datasets whose values are in other files."""
    for name in group:
        link, place = group.get(name, getlink=True), f"{path}/{name}".lstrip("/")
        if isinstance(link, h5py.ExternalLink):
            yield place
        elif isinstance(link, h5py.HardLink):
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if isinstance(item, h5py.Group) and address not in seen:
                seen.add(address)
                yield from _linked(item, place, seen)
            elif isinstance(item, h5py.Dataset) and _lies_elsewhere(item):
                yield place


def _remove(group: h5py.Group, name: str) -> None:
    del group[name]
    if "column-order" in group.attrs:
        columns = [column for column in np.atleast_1d(group.attrs["column-order"]) if column != name]
        group.attrs["column-order"] = np.array(columns, dtype=h5py.string_dtype())


def _lies_elsewhere(dataset: h5py.Dataset) -> bool:
    virtual = dataset.is_virtual and any(source.file_name != "." for source in dataset.virtual_sources())
    return virtual or bool(dataset.external)


def _copy_values(item: h5py.Dataset, group: h5py.Group, name: str) -> None:
    copy = group.create_dataset(name, shape=item.shape, dtype=item.dtype, chunks=True if item.size else None)
    step = max(1, _BLOCK // max(1, item.size // max(1, item.shape[0]))) if item.shape else 1
    for start in range(0, item.shape[0], step) if item.size else ():
        copy[start : start + step] = item[start : start + step]
    for key, value in item.attrs.items():
        copy.attrs[key] = value
