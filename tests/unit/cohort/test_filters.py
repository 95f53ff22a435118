"""Which genes are mitochondrial, and what the filters leave out."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cohortgmm.cohort.filters import cell_filters, detected_in, gene_symbols, mitochondrial
from cohortgmm.config import PreprocessConfig
from cohortgmm.errors import DataError

MITOCHONDRIAL = [
    *("MT-ND1", "mt-Nd1", "Mt-nd1", "MT.CO1", "mt:CoI", "mt:ND1", "MT-", "MT-TL1"),
    *(
        "GRCh38_MT-ND1",
        "hg19_MT-CO1",
        "mm10___mt-Nd1",
        "GRCh38-MT-ND1",
        "GRCh38.MT.ND1",
        "GRCh38______MT-ND1",
        "mm10_mt-Nd1",
    ),
    *("GRCm39_mt-Nd1", "hg38_MT.ND1", "GRCh38_premrna_MT-ND1", "GRCh38-2020-A_MT-ND1", "mm9-mt-Co1", "rn6_Mt-nd1"),
    *("Rnor_6.0_Mt-nd1", "mRatBN7.2_Mt-nd1", "dm6_mt:CoI", "BDGP6_mt:CoI", "GRCz11_mt-nd1", "human_MT-ND1"),
    *("mouse___mt-Nd1", "Homo_sapiens_MT-ND1", "ENSG00000198888_MT-ND1", "ENSMUSG00000064341.1_mt-Nd1"),
]
OTHERS = [
    *(
        "MTOR",
        "MT1X",
        "MT2A",
        "MTRNR2L8",
        "mt1",
        "MT",
        "",
        "MTCO1P12",
        "NUMT-1",
        "HMT-1",
        "XMT-2",
        "A-MT-1",
        "GRCh38_MTOR",
    ),
    *(
        "SMT-3",
        "CD4_MT-1",
        "geneMT-ND1",
        "GRCh38_MT1X",
        "mm10___Mt1",
        "hg19_ACTB",
        "ENSG00000198888",
        "MATR3",
        "MT ND1",
    ),
]


@pytest.mark.parametrize("name", MITOCHONDRIAL)
def test_mitochondrial_genes(name):
    assert mitochondrial([name]).tolist() == [True]


@pytest.mark.parametrize("name", OTHERS)
def test_genes_that_only_look_so(name):
    assert mitochondrial([name]).tolist() == [False]


def table(names, **columns):
    return pd.DataFrame(columns, index=pd.Index(names))


def failed(counts, var, **options):
    options = PreprocessConfig(**options)
    return {item.key: np.flatnonzero(item.failed).tolist() for item in cell_filters(counts, var, options)}


COUNTS = np.array([[0, 0, 0], [1, 9, 0], [3, 7, 0], [31, 69, 0], [0, 0, 5]], dtype=np.float32)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csr_array])
def test_filters_that_were_asked_for(form):
    genes, counts = table(["mt-A", "B", "C"]), form(COUNTS)
    assert failed(counts, genes) == {"no counts": [0]}
    assert failed(counts, genes, max_mito_percent=30) == {"no counts": [0], "max_mito_percent": [3]}
    assert failed(counts, genes, max_mito_percent=29, min_genes=2) == {
        "no counts": [0],
        "min_genes": [0, 4],
        "max_mito_percent": [2, 3],
    }
    assert failed(counts, genes, min_counts=10) == {"no counts": [0], "min_counts": [0, 4]}
    assert detected_in(counts, np.array([True, True, False, True, True])).tolist() == [2, 2, 1]


def test_totals_that_single_precision_cannot_hold():
    counts = np.full((2, 3), 2.0**24, dtype=np.float32)
    counts[1, :2] = [2.0**24, 1]
    counts[1, 2] = 0
    assert failed(counts, table(["MT-A", "B", "C"]), min_counts=2**24 + 1)["min_counts"] == []
    assert failed(counts, table(["MT-A", "B", "C"]), min_counts=2**24 + 2)["min_counts"] == [1]


@pytest.mark.parametrize("kind", ["object", "category", "string"])
def test_symbols_in_a_column(kind):
    genes = table(["ENSG1", "ENSG2", "ENSG3"], symbol=pd.Series(["MT-ND1", "B", None]).astype(kind).to_numpy())
    genes["symbol"] = genes["symbol"].astype(kind)
    assert failed(COUNTS, genes, max_mito_percent=30, symbols="symbol")["max_mito_percent"] == [3]
    assert gene_symbols(genes, "symbol").tolist() == ["MT-ND1", "B", ""]


def refused(genes, **options):
    with pytest.raises(DataError) as caught:
        cell_filters(COUNTS, genes, PreprocessConfig(max_mito_percent=15, **options))
    return str(caught.value)


def test_a_filter_that_finds_no_gene_is_an_error_that_says_what_to_do():
    start = "preprocess.max_mito_percent is 15, but no gene's name begins with MT- "
    ids = ["ENSG00000198888", "ENSG00000198763", "ENSG00000198804"]
    assert refused(table(["A", "B", "C"])) == (
        f"{start}('A', 'B', 'C', ...): set preprocess.symbols to the column of var with gene symbols (var has none), or "
        "max_mito_percent to 100 if the mitochondrial genes were removed before"
    )
    assert refused(table(ids, n=[1, 2, 3])).startswith(
        f"{start}('ENSG00000198888', 'ENSG00000198763', 'ENSG00000198804', ...): these are Ensembl ids; set "
        "preprocess.symbols to the column of var with gene symbols (var has 'n')"
    )
    symbols = ["MT-ND1", "B", np.nan]
    assert refused(table(ids, n=[1, 2, 3], **{"gene {s}": symbols})).endswith(
        "...): var column 'gene {s}' has such names, set preprocess.symbols to it"
    )
    assert refused(table(["MT-A", "B", "C"], name=["a", "b", "c"]), symbols="name") == (
        "preprocess.max_mito_percent is 15, but no symbol in var column 'name' begins with MT- ('a', 'b', 'c', ...): the "
        "names of the genes do, set preprocess.symbols to null"
    )


def test_a_column_of_symbols_that_is_not_there():
    with pytest.raises(DataError, match=r"symbols: var column 'symbol' is not in the data; did you mean 'symbols'"):
        cell_filters(COUNTS, table(["A", "B", "C"], symbols=["a", "b", "c"]), PreprocessConfig(symbols="symbol"))
    twice = pd.concat([table(["A", "B", "C"], s=["a", "b", "c"])] * 2, axis=1)
    with pytest.raises(DataError, match=r"symbols: var has 2 columns 's': give them names of their own"):
        cell_filters(COUNTS, twice, PreprocessConfig(symbols="s"))
