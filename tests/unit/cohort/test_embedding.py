"""Cells, genes and batches that cannot carry what was asked for."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from cohortgmm.cohort.embedding import embed, read_batches, seed32
from cohortgmm.config import PreprocessConfig
from cohortgmm.errors import CohortgmmError, DataError

N = 60


def counts(n=N, n_genes=40, seed=0):
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(1, 2, size=n_genes) + 0.2, (n, n_genes)).astype(np.float32) + (np.arange(n_genes) == 0)


def embedded(x, form=np.asarray, *, hvg=None, harmony=None, seed=0, **options):
    work = AnnData(form(x), obs=pd.DataFrame(index=[f"c{i:03d}" for i in range(len(x))]))
    options = PreprocessConfig(**({"n_pcs": 4, "n_top_genes": 20, "hvg_batch_col": "b"} | options))
    series = [None if b is None else pd.Series(np.array(b, dtype=object), name="b") for b in (hvg, harmony)]
    left_out = embed(work, options, seed, hvg_batches=series[0], harmony_batches=series[1])
    assert np.isfinite(work.obsm["X_pca"]).all()
    return work, left_out


def tiled(n_kinds):
    return np.tile(counts(n_kinds), (N // n_kinds, 1))


def with_rows(rows, values):
    x = counts()
    x[rows] = values
    return x


FEW_GENES = counts()
FEW_GENES[:, 4:] = 0
ONE_DIFFERS = tiled(1)
ONE_DIFFERS[0] += 1


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix], ids=["dense", "sparse"])
@pytest.mark.parametrize(
    ("x", "text"),
    [
        (tiled(1), "all 60 cells have the same composition of genes: there is nothing to embed; look at the counts"),
        (tiled(1) * np.arange(1, 61)[:, None], "all 60 cells have the same composition of genes"),
        (tiled(2), "preprocess.n_pcs is 4, but the cells vary in 1 direction only: too few for an embedding"),
        (ONE_DIFFERS, "preprocess.n_pcs is 4, but the cells vary in 1 direction only: too few for an embedding"),
        (tiled(4), "preprocess.n_pcs is 4, but the cells vary in 3 directions only: lower n_pcs to 3"),
        (FEW_GENES, "preprocess.n_pcs is 4, but only 4 of 40 genes vary between the cells: lower n_pcs"),
        (counts(1), "preprocess.n_pcs is 4, but 1 cells and 40 genes are left: lower n_pcs or loosen the filter"),
        (counts(n_genes=1), "preprocess.n_pcs is 4, but 60 cells and 1 genes are left"),
    ],
    ids=["equal", "proportional", "two kinds", "one differs", "four kinds", "few genes", "one cell", "one gene"],
)
def test_data_that_cannot_be_embedded(x, text, form):
    with pytest.raises(DataError) as caught:
        embedded(x, form)
    assert str(caught.value).startswith(text)


BATCHES = np.array(["a", "b", "c"], dtype=object)[np.arange(N) % 3]
FIRST_20 = np.where(np.arange(N) < 20, "first", "rest")
GENE_0 = np.zeros((20, 40), dtype=np.float32)
GENE_0[:, 0] = 5


def replaced(value, n):
    batches = BATCHES.copy()
    batches[:n] = value
    return batches


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix], ids=["dense", "sparse"])
@pytest.mark.parametrize(
    ("x", "batches", "left_out"),
    [
        (counts(), BATCHES, []),
        (counts(), replaced("{single}", 1), ["{single}"]),
        (counts(), replaced("two", 2), []),
        (with_rows(slice(20), counts(1)), FIRST_20, ["first"]),
        (with_rows(slice(20), counts(1) * np.arange(1, 21)[:, None]), FIRST_20, ["first"]),
        (with_rows(slice(20), GENE_0), FIRST_20, ["first"]),
        (counts(), [str(i // 2) for i in range(N)], []),
        (counts(), ["all"] * N, []),
    ],
    ids=["three", "single", "two", "equal", "proportional", "one gene", "pairs", "one batch"],
)
def test_batches_of_one_cell_or_of_equal_cells_do_not_choose_genes(x, batches, left_out, form):
    work, found = embedded(x, form, hvg=batches)
    assert found == left_out
    assert work.var["highly_variable"].sum() == 20
    others = ~np.isin(batches, left_out)
    if left_out:
        import scanpy as sc

        same = work[others].copy()
        same.obs["batch"] = pd.Categorical(np.array(batches)[others])
        sc.pp.highly_variable_genes(same, n_top_genes=20, batch_key="batch")
        np.testing.assert_array_equal(work.var["highly_variable"], same.var["highly_variable"])


def test_batches_that_cannot_choose_at_all():
    with pytest.raises(
        DataError, match=r"^preprocess\.hvg_batch_col: no batch of obs column 'b' has two cells that differ"
    ):
        embedded(counts(), hvg=[str(i) for i in range(N)])


@pytest.mark.parametrize(
    ("n", "batches", "text"),
    [
        (N, ["x"] * N, "all 60 cells are of one batch, 'x': set preprocess.harmony_col to null and use_rep to X_pca"),
        (
            N,
            replaced("{s}", 1),
            "1 of 4 batches have a single cell ('{s}'), so that Harmony cannot estimate their effect: ",
        ),
        (N, [str(i) for i in range(N)], "60 of 60 batches have a single cell ('0', '1', '10', ...), so that "),
        (12, ["x", "y"] * 6, "12 cells are too few for Harmony, which needs 16: set preprocess.harmony_col to null"),
    ],
    ids=["one batch", "single cell", "all single", "few cells"],
)
def test_what_harmony_cannot_correct(n, batches, text):
    with pytest.raises(DataError) as caught:
        embedded(counts(n), harmony=batches)
    assert str(caught.value).startswith(f"preprocess.harmony_col 'b': {text}")


@pytest.mark.parametrize("n", [16, 20, 45])
def test_harmony_with_few_cells(n):
    pytest.importorskip("harmonypy")
    work, _ = embedded(counts(n), harmony=np.where(np.arange(n) % 2, "x", "y"))
    assert np.isfinite(work.obsm["X_pca_harmony"]).all()


@pytest.mark.parametrize("seed", [0, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, 10**30])
def test_seeds_of_any_size(seed):
    pytest.importorskip("harmonypy")
    work, _ = embedded(counts(), harmony=BATCHES, seed=seed)
    assert np.isfinite(work.obsm["X_pca_harmony"]).all()
    assert 0 <= seed32(seed) < 2**31
    assert seed32(17) == 17


def test_an_error_of_scanpy_is_one_line(monkeypatch):
    import scanpy as sc

    monkeypatch.setattr(sc.pp, "pca", lambda *_, **__: 1 / 0)
    with pytest.raises(
        CohortgmmError, match=r"^the PCA failed \(ZeroDivisionError: division by zero\): look at the counts"
    ):
        embedded(counts())


def test_columns_of_batches():
    obs = pd.DataFrame({"n": [1, 2, 1], "missing": ["a", None, "b"], "mixed": np.array([1, "1", 2], dtype=object)})
    obs["category"] = pd.Categorical(["x", "y", "x"], categories=["x", "y", "unused"])
    assert read_batches(obs, "n", "key").tolist() == ["1", "2", "1"]
    assert read_batches(obs, "category", "key").tolist() == ["x", "y", "x"]
    assert read_batches(obs, None, "key") is None
    for column, text in (
        ("missing", "key: 1 cells have no value in obs column 'missing': fill them"),
        ("mixed", "key: two different values of obs column 'mixed' have the same text; convert the column to text"),
        ("categor", "key: obs column 'categor' is not in the data; did you mean 'category'?"),
    ):
        with pytest.raises(DataError) as caught:
            read_batches(obs, column, "key")
        assert str(caught.value).startswith(text)
    with pytest.raises(DataError, match="key: obs has 2 columns of the name 'n': rename all but one"):
        read_batches(pd.concat([obs, obs[["n"]]], axis=1), "n", "key")
