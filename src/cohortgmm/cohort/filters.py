"""Which cells and genes pass the filters of the preprocessing."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cohortgmm.cohort.counts import row_blocks
from cohortgmm.cohort.h5ad import unknown_name
from cohortgmm.config import PreprocessConfig
from cohortgmm.errors import DataError

#: Prefixes of gene symbols in files that name the genome of every gene, by its assembly or by its species.
_ASSEMBLY = (
    r"(?:GRC[a-z]|hg|mm|rn|dm|ce|sacCer|danRer|rheMac|panTro|susScr|galGal|bosTau|canFam|BDGP|WBcel|Rnor|mRatBN|Mmul|"
    r"Sscrofa|T2T|CHM)[_.-]?\d[\w.-]*?"
)
_SPECIES = r"human|mouse|rat|hs|homo_sapiens|mus_musculus|hsapiens|mmusculus"
_ENSEMBL = r"ENS[A-Z]*G\d+(?:\.\d+)?"

#: Names of mitochondrial genes: MT-ND1, mt-Nd1, MT.ND1 (R), mt:ND1 (fly), GRCh38_MT-ND1, mm10___mt-Nd1, ENSG..._MT-ND1.
_MITO = re.compile(rf"(?:(?:{_ASSEMBLY}|{_SPECIES}|{_ENSEMBL})[_|.-]+)?mt[-.:]", re.IGNORECASE)

#: Largest number of names in a message.
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class CellFilter:
    """A requested filter of cells.

    Attributes
    ----------
    key
        Key of the filter in the section ``preprocess``; ``no counts`` for the filter of cells without any count, which
        cannot be normalised.
    limit
        Value of the key; None for ``no counts``.
    failed
        (n,) bool: the cells that fail it.
    """

    key: str
    limit: float | None
    failed: np.ndarray

    def record(self) -> dict[str, Any]:
        """Entry of this filter in the summary of the preprocessing, see :mod:`~cohortgmm.cohort.filter_notes`."""
        return {"key": self.key, "limit": self.limit, "n_failed": int(np.count_nonzero(self.failed))}


def cell_filters(counts: Any, var: pd.DataFrame, options: PreprocessConfig) -> list[CellFilter]:
    """The requested filters of cells, and the cells that fail them.

    Parameters
    ----------
    counts
        (n, G) array or CSR matrix.
    var
        (G, ...) table of the genes.
    options
        The section ``preprocess`` of the configuration.

    Raises
    ------
    DataError
        If the mitochondrial filter is requested and no gene has a mitochondrial name.
    """
    symbols = gene_symbols(var, options.symbols)
    asked = options.max_mito_percent < 100
    mito = mitochondrial(symbols) if asked else np.zeros(len(symbols), dtype=bool)
    if asked and not mito.any():
        raise DataError(_without_mito(var, symbols, options))
    n = counts.shape[0]
    totals, genes, mito_counts = np.zeros(n), np.zeros(n, dtype=np.int64), np.zeros(n)
    for rows, block in row_blocks(counts):
        totals[rows] = _flat(block.astype(np.float64).sum(axis=1))
        genes[rows] = _flat((block > 0).sum(axis=1))
        if asked:
            mito_counts[rows] = _flat(block[:, mito].astype(np.float64).sum(axis=1))
    found = [CellFilter("no counts", None, totals == 0)]
    if options.min_counts > 0:
        found.append(CellFilter("min_counts", options.min_counts, totals < options.min_counts))
    if options.min_genes > 0:
        found.append(CellFilter("min_genes", options.min_genes, genes < options.min_genes))
    if asked:
        limit = options.max_mito_percent
        found.append(CellFilter("max_mito_percent", limit, 100 * mito_counts > limit * totals))
    return found


def detected_in(counts: Any, keep: np.ndarray) -> np.ndarray:
    """(G,) number of kept cells in which each gene was detected."""
    n_cells = np.zeros(counts.shape[1], dtype=np.int64)
    for rows, block in row_blocks(counts):
        n_cells += _flat((block[keep[rows]] > 0).sum(axis=0)).astype(np.int64)
    return n_cells


def gene_symbols(var: pd.DataFrame, column: str | None) -> np.ndarray:
    """(G,) names by which mitochondrial genes are recognised; an empty text for genes without a name."""
    if column is None:
        return np.asarray(var.index.astype(str), dtype=object)
    if column not in var.columns:
        raise unknown_name("preprocess.symbols: var column", column, var.columns)
    values = var[column]
    if isinstance(values, pd.DataFrame):
        raise DataError(
            f"preprocess.symbols: var has {values.shape[1]} columns {column!r}: give them names of their own"
        )
    return values.astype(object).map(lambda value: "" if pd.isna(value) else str(value)).to_numpy(dtype=object)


def mitochondrial(symbols: Sequence[str] | np.ndarray) -> np.ndarray:
    """(G,) bool: which genes are mitochondrial by their names."""
    return np.fromiter((_MITO.match(symbol) is not None for symbol in symbols), dtype=bool, count=len(symbols))


def _without_mito(var: pd.DataFrame, symbols: np.ndarray, options: PreprocessConfig) -> str:
    """Message for a mitochondrial filter that finds no mitochondrial gene, with examples of gene names and a remedy."""
    where = "no gene's name" if options.symbols is None else f"no symbol in var column {options.symbols!r}"
    examples = ", ".join(map(repr, symbols[:_SHOWN]))
    found = (
        f"preprocess.max_mito_percent is {options.max_mito_percent:g}, but {where} begins with MT- ({examples}, ...): "
    )
    columns = [str(name) for name in var.columns if name != options.symbols and _holds_mito(var[name])]
    if columns:
        return f"{found}var column {columns[0]!r} has such names, set preprocess.symbols to it"
    if options.symbols is not None and mitochondrial(gene_symbols(var, None)).any():
        return f"{found}the names of the genes do, set preprocess.symbols to null"
    if any(re.match(_ENSEMBL, symbol) for symbol in symbols[:_SHOWN]):
        found += "these are Ensembl ids; "
    known = ", ".join(map(repr, map(str, var.columns[:12]))) or "none"
    return (
        f"{found}set preprocess.symbols to the column of var with gene symbols (var has {known}), or max_mito_percent to "
        "100 if the mitochondrial genes were removed before"
    )


def _holds_mito(column: Any) -> bool:
    if isinstance(column, pd.DataFrame) or column.dtype.kind in "biufcmM":
        return False
    return bool(mitochondrial([str(value) for value in column]).any())


def _flat(values: Any) -> np.ndarray:
    return np.asarray(values).ravel()
