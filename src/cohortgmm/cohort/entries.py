"""Writing entries into an AnnData without losing other entries under the same keys."""

from collections.abc import Mapping
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

#: Suffix of the key of an entry that is kept under another key.
SUFFIX = "_input"


class Entries:
    """Writes entries into an AnnData; a different entry under the same key is kept as ``<key>_input``.

    Parameters
    ----------
    adata
        The AnnData, which is changed.

    Attributes
    ----------
    kept
        Entries that have been renamed: ``{"entry": "obsm['X_pca']", "kept_as": "obsm['X_pca_input']"}``.
    """

    def __init__(self, adata: ad.AnnData) -> None:
        self.adata = adata
        self.kept: list[dict[str, str]] = []

    def put(self, place: str, key: str, value: Any) -> None:
        """Write ``value`` to ``adata.<place>[key]``; a different entry there is renamed."""
        mapping = getattr(self.adata, place)
        if key in mapping and not is_same(mapping[key], value):
            self.keep(f"{place}[{key!r}]", place, key, mapping[key])
        mapping[key] = value

    def keep(self, entry: str, place: str, key: str, value: Any) -> None:
        """Keep an entry of the input as ``adata.<place>[<key>_input]``, with a number if this key exists already."""
        mapping = getattr(self.adata, place)
        names = (f"{key}{SUFFIX}{number}" for number in ("", *(f"_{i}" for i in range(2, len(mapping) + 3))))
        name = next(name for name in names if name not in mapping)
        mapping[name] = value
        self.kept.append({"entry": entry, "kept_as": f"{place}[{name!r}]"})


def is_same(one: Any, other: Any) -> bool:
    """Whether two entries hold the same values, also in arrays or matrices of different types."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, Mapping) or isinstance(other, Mapping):
        return False
    if hasattr(one, "tocsr") or hasattr(other, "tocsr"):
        return _is_same_matrix(one, other)
    if isinstance(one, pd.DataFrame) or isinstance(other, pd.DataFrame):
        return isinstance(one, pd.DataFrame) and isinstance(other, pd.DataFrame) and one.equals(other)
    try:
        one, other = np.asarray(one), np.asarray(other)
        return np.array_equal(one, other, equal_nan=one.dtype.kind in "fc" and other.dtype.kind in "fc")
    except (TypeError, ValueError):
        return False


def _is_same_matrix(one: Any, other: Any) -> bool:
    from scipy import sparse

    if getattr(one, "shape", None) != getattr(other, "shape", ()) or isinstance(one, pd.DataFrame):
        return False
    try:
        one, other = (
            value if hasattr(value, "tocsr") else sparse.csr_matrix(np.asarray(value)) for value in (one, other)
        )
        return (one != other).nnz == 0
    except (TypeError, ValueError):
        return False
