"""Finding the raw counts of a cohort, and checking that they are raw counts."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from cohortgmm.arrays import real_array
from cohortgmm.cohort.h5ad import unknown_name
from cohortgmm.cohort.reading import named_layers
from cohortgmm.errors import DataError
from cohortgmm.mixture import range_slices

#: Every whole number up to this one is exact in single precision.
_EXACT_IN_SINGLE = 2**24

#: Number of values in a block.
_BLOCK = 1 << 22

_LAYER = "layer:"


@dataclass(frozen=True, eq=False)
class RawCounts:
    """The raw counts of a cohort.

    Attributes
    ----------
    matrix
        (n, G) array or CSR matrix of whole numbers, in single precision if this is exact, else in double precision.
    var
        (G, ...) table of the genes.
    dtype
        Type in which the counts are written: that of the input if it is an integer type, else that of ``matrix``.
    """

    matrix: Any
    var: pd.DataFrame
    dtype: np.dtype


def raw_counts(adata: ad.AnnData, place: str) -> RawCounts:
    """Find and check the raw counts of a cohort.

    Parameters
    ----------
    adata
        The cohort, which is not changed.
    place
        Where the raw counts are: ``X``, ``raw`` or ``layer:NAME``.

    Raises
    ------
    DataError
        If the place does not exist or holds no raw counts; the message names a place that holds them, if there is one.
    """
    values, var = _values_at(adata, place)
    name = _name(place)
    if values is None or 0 in values.shape:
        shape = (adata.n_obs, 0) if values is None else values.shape
        raise DataError(f"preprocessing needs raw counts in {name}; the input has {shape[0]} cells x {shape[1]} genes")
    counts = _canonical(real_array(values, name))
    fault, largest = _fault(counts)
    if fault:
        raise DataError(f"preprocessing needs raw counts in {name}, but {name} holds {fault}: {_remedy(adata, place)}")
    if largest <= _EXACT_IN_SINGLE and counts.dtype != np.float32:
        counts = counts.astype(np.float32)
    kept = values.dtype if values.dtype.kind in "iu" else counts.dtype
    return RawCounts(counts, var, kept)


def element_of(place: str) -> str:
    """Path within an ``.h5ad`` of the counts at a place."""
    return f"layers/{place.removeprefix(_LAYER)}" if place.startswith(_LAYER) else place


def row_blocks(matrix: Any) -> Iterator[tuple[slice, Any]]:
    """The rows of an array or CSR matrix, block by block."""
    for rows in range_slices(matrix.shape[0], max(1, _BLOCK // max(1, matrix.shape[1]))):
        yield rows, matrix[rows]


def _name(place: str) -> str:
    if place.startswith(_LAYER):
        return f"layers[{place.removeprefix(_LAYER)!r}]"
    return "raw.X" if place == "raw" else place


def _values_at(adata: ad.AnnData, place: str) -> tuple[Any, pd.DataFrame]:
    if place.startswith(_LAYER):
        layer = place.removeprefix(_LAYER)
        if layer not in named_layers(adata):
            raise unknown_name("preprocess.counts: layer", layer, named_layers(adata))
        return adata.layers[layer], adata.var
    if place == "raw":
        if adata.raw is None:
            other = _other_places(adata, place)
            hint = (
                f"{_name(other[0])} holds whole numbers: set it to {other[0]}" if other else "set it to X or layer:NAME"
            )
            raise DataError(f"preprocess.counts is raw, but the input has no raw; {hint}")
        return adata.raw.X, adata.raw.var
    return adata.X, adata.var


def _canonical(matrix: Any) -> Any:
    """A sparse matrix with every entry stored once and in order, so that sums do not depend on how it is stored."""
    if not hasattr(matrix, "indptr") or matrix.has_canonical_format:
        return matrix
    matrix = matrix.copy()
    matrix.sum_duplicates()
    return matrix


def _fault(counts: Any) -> tuple[str, float]:
    """Reason why the values are not raw counts (empty if they are), and the largest value."""
    values = counts.data if hasattr(counts, "indptr") else counts
    step = max(1, _BLOCK // (1 if values.ndim == 1 else values.shape[1]))
    largest, not_whole = 0.0, None
    for rows in range_slices(len(values), step):
        block = values[rows]
        if not np.isfinite(block).all():
            return "NaN, masked or infinite values", largest
        if block.size and block.min() < 0:
            return f"negative numbers ({block.min():.4g}), as scaled data do", largest
        if not_whole is None and np.any(odd := block != np.rint(block)):
            not_whole = block[odd][0]
        largest = max(largest, float(block.max(initial=0)))
    if not_whole is not None:
        return f"numbers that are not whole ({not_whole:.4g}), as normalised or log-transformed data do", largest
    return "", largest


def _remedy(adata: ad.AnnData, place: str) -> str:
    other = _other_places(adata, place)
    if other:
        return f"{_name(other[0])} holds whole numbers: set preprocess.counts to {other[0]}"
    return (
        "set preprocess.counts to where the raw counts are (X, raw or layer:NAME), or preprocess.enabled to false to use "
        "an embedding of the input"
    )


def _other_places(adata: ad.AnnData, place: str) -> list[str]:
    """Other places with whole numbers, those with names similar to "counts" first."""
    layers = sorted(
        named_layers(adata), key=lambda name: -difflib.SequenceMatcher(None, str(name).lower(), "counts").ratio()
    )
    places = [f"{_LAYER}{name}" for name in layers]
    places += ["raw"] if adata.raw is not None else []
    return [other for other in [*places, "X"] if other != place and _holds_counts(adata, other)]


def _holds_counts(adata: ad.AnnData, place: str) -> bool:
    try:
        values, _ = _values_at(adata, place)
        if values is None or 0 in values.shape:
            return False
        fault, largest = _fault(_canonical(real_array(values, place)))
    except DataError:
        return False
    return not fault and largest > 0
