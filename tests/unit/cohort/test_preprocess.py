"""From counts to an embedding, on the demo cohort."""

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from cohortgmm.cohort.preprocess import preprocess, preprocess_file
from cohortgmm.config import PreprocessConfig
from cohortgmm.errors import ConfigError, DataError

DEMO = Path(__file__).parents[3] / "resources" / "demo" / "liu2021_covid_pbmc.h5ad"
SMALL = PreprocessConfig(n_pcs=5, n_top_genes=200)


@pytest.fixture(scope="module")
def demo():
    """Every tenth cell of the demo: 500 cells of 20 patients in 3 batches, without its embedding."""
    cohort = ad.read_h5ad(DEMO)[::10].copy()
    del cohort.obsm["X_pca"]
    return cohort


@pytest.fixture(scope="module")
def done(demo):
    """The same, preprocessed with the options of ``SMALL``."""
    return preprocess(demo.copy(), SMALL, 0)


def counts_of(cohort):
    return np.asarray(cohort.X.todense() if sparse.issparse(cohort.X) else cohort.X)


def test_what_is_written(demo, done):
    assert done.shape[0] == 500
    assert done.obsm["X_pca"].shape == (500, 5)
    assert np.isfinite(done.obsm["X_pca"]).all()
    np.testing.assert_allclose(done.obsm["X_pca"].mean(axis=0), 0, atol=1e-4)
    assert done.var["highly_variable"].sum() == 200
    assert set(done.obsm) == {"X_pca"}
    assert list(done.obs.columns) == list(demo.obs.columns)


def test_the_counts_are_kept_and_x_is_their_logarithm(demo, done):
    counts = counts_of(demo[:, done.var_names])
    np.testing.assert_array_equal(done.layers["counts"].toarray(), counts)
    total = counts.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(done.X.toarray(), np.log1p(1e4 * counts / total), rtol=1e-5)


def test_the_components_are_those_of_the_singular_values(done):
    chosen = done.X.toarray()[:, done.var["highly_variable"]].astype(float)
    singular = np.linalg.svd(chosen - chosen.mean(axis=0), compute_uv=False)[:5]
    np.testing.assert_allclose(np.linalg.norm(done.obsm["X_pca"], axis=0), singular, rtol=1e-4)


def test_genes_seen_in_few_cells_are_dropped(demo, done):
    detected = (counts_of(demo) > 0).sum(axis=0)
    assert done.var_names.tolist() == demo.var_names[detected >= 3].tolist()
    assert done.uns["cohortgmm_preprocess"] == {
        "n_cells_input": 500,
        "n_cells": 500,
        "n_genes_input": 1000,
        "n_genes": int((detected >= 3).sum()),
        "n_top_genes": 200,
    }
    assert (detected < 3).any()


def test_cells_below_the_limits_are_dropped(demo):
    counts = counts_of(demo)
    limit, genes = int(np.quantile(counts.sum(axis=1), 0.3)), int(np.quantile((counts > 0).sum(axis=1), 0.3))
    result = preprocess(demo.copy(), SMALL.model_copy(update={"min_counts": limit, "min_genes": genes}), 0)
    keep = (counts.sum(axis=1) >= limit) & ((counts > 0).sum(axis=1) >= genes)
    assert 0 < keep.sum() < 0.75 * 500
    assert result.obs_names.tolist() == demo.obs_names[keep].tolist()
    detected = (counts[keep] > 0).sum(axis=0)  # in the cells that are left
    assert result.var_names.tolist() == demo.var_names[detected >= 3].tolist()


def test_mitochondrial_genes_are_counted_whatever_their_case(demo):
    cohort = demo[:, ~demo.var_names.str.startswith("MT-")].copy()
    options = SMALL.model_copy(update={"max_mito_percent": 30.0, "min_cells_per_gene": 0})
    with pytest.raises(DataError, match=r"max_mito_percent is 30, but no gene's name begins with MT-"):
        preprocess(cohort, options, 0)
    cohort.var_names = ["mt-A", "MT-B", *cohort.var_names[2:]]
    counts = counts_of(cohort)
    counts[:, :2] = 0
    counts[:4] = 0
    counts[:4, 0] = [0, 1, 3, 1]
    counts[:4, 1] = [0, 0, 0, 3]
    counts[:4, 2] = [9, 9, 7, 9]  # 0, 10, 30 and 31 % of the counts
    cohort.X = sparse.csr_matrix(counts)
    result = preprocess(cohort, options, 0)
    assert result.obs_names.tolist() == np.delete(cohort.obs_names, 3).tolist()


def test_cells_without_counts_are_dropped(demo):
    cohort = demo.copy()
    counts = counts_of(cohort)
    counts[[3, 77]] = 0
    cohort.X = sparse.csr_matrix(counts)
    result = preprocess(cohort, SMALL, 0)
    assert result.n_obs == 498
    assert not set(demo.obs_names[[3, 77]]) & set(result.obs_names)
    assert np.isfinite(result.obsm["X_pca"]).all()


@pytest.mark.parametrize("make", [np.asarray, sparse.csc_matrix], ids=["dense", "csc"])
def test_the_form_of_x_makes_no_difference(demo, done, make):
    cohort = demo.copy()
    cohort.X = make(counts_of(demo))
    result = preprocess(cohort, SMALL, 0)
    np.testing.assert_allclose(np.abs(result.obsm["X_pca"]), np.abs(done.obsm["X_pca"]), atol=1e-3)


def test_integer_counts(demo, done):
    cohort = demo.copy()
    cohort.X = sparse.csr_matrix(counts_of(demo).astype(np.int64))
    result = preprocess(cohort, SMALL, 0)
    assert result.layers["counts"].dtype == np.int64
    np.testing.assert_allclose(result.X.toarray(), done.X.toarray(), rtol=1e-5)


def test_the_input_is_not_changed_and_the_result_is_the_same_again(demo, done):
    cohort = demo.copy()
    result = preprocess(cohort, SMALL, 0)
    np.testing.assert_array_equal(result.obsm["X_pca"], done.obsm["X_pca"])
    assert (cohort.X != demo.X).nnz == 0
    assert set(cohort.uns) == set(demo.uns)
    assert not cohort.obsm
    assert not cohort.layers


def nones(mapping, path=""):
    for key, value in mapping.items():
        if value is None:
            yield f"{path}/{key}"
        elif hasattr(value, "items"):
            yield from nones(value, f"{path}/{key}")


def test_no_none_is_left(demo):
    cohort = demo.copy()
    cohort.uns["mine"] = {"a": {"b": None, "c": 1}, "d": None}
    result = preprocess(cohort, SMALL, 0)
    assert list(nones(result.uns)) == []
    assert result.uns["mine"] == {"a": {"c": 1}}
    assert {"pca", "hvg", "log1p"} <= result.uns.keys()


def test_harmony_moves_the_batches_together(demo):
    pytest.importorskip("harmonypy")
    cohort = demo.copy()
    counts = counts_of(cohort)
    counts[np.ix_(cohort.obs["batch"] == "B1", np.arange(1000) % 3 == 0)] *= 4
    cohort.X = sparse.csr_matrix(counts)
    result = preprocess(cohort.copy(), SMALL.model_copy(update={"harmony_col": "batch"}), 0)
    assert result.obsm["X_pca_harmony"].shape == (500, 5)
    np.testing.assert_array_equal(result.obsm["X_pca"], preprocess(cohort.copy(), SMALL, 0).obsm["X_pca"])

    def between(name):
        x, batches = result.obsm[name], result.obs["batch"].to_numpy()
        centres = np.stack([x[batches == batch].mean(axis=0) for batch in np.unique(batches)])
        return np.square(centres - centres.mean(axis=0)).sum()

    assert between("X_pca_harmony") < 0.9 * between("X_pca")
    for corrected, component in zip(result.obsm["X_pca_harmony"].T, result.obsm["X_pca"].T, strict=True):
        assert np.corrcoef(corrected, component)[0, 1] > 0.8
    again = preprocess(cohort.copy(), SMALL.model_copy(update={"harmony_col": "batch"}), 0)
    np.testing.assert_array_equal(again.obsm["X_pca_harmony"], result.obsm["X_pca_harmony"])


def test_variable_genes_within_batches(demo, done):
    result = preprocess(demo.copy(), SMALL.model_copy(update={"hvg_batch_col": "batch"}), 0)
    assert "highly_variable_nbatches" in result.var
    assert result.var["highly_variable"].sum() == 200
    assert not np.array_equal(result.var["highly_variable"], done.var["highly_variable"])


def changed(demo, value):
    cohort = demo.copy()
    counts = counts_of(demo)
    counts[2, 3] = value
    cohort.X = counts
    return cohort


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (0.5, "numbers that are not whole (0.5), as normalised or log-transformed data do"),
        (-1, "negative numbers (-1), as scaled data do"),
        (-0.5, "negative numbers (-0.5), as scaled data do"),
        (np.nan, "NaN, masked or infinite values"),
        (np.inf, "NaN, masked or infinite values"),
    ],
)
def test_what_is_not_counts_is_refused(demo, value, found):
    with pytest.raises(DataError) as caught:
        preprocess(changed(demo, value), SMALL, 0)
    assert str(caught.value) == (
        f"preprocessing needs raw counts in X, but X holds {found}: set preprocess.counts to where the raw counts are "
        "(X, raw or layer:NAME), or preprocess.enabled to false to use an embedding of the input"
    )


def test_an_input_without_counts_is_refused(demo):
    bare = ad.AnnData(obs=demo.obs, shape=(500, 0))
    with pytest.raises(DataError, match=r"^preprocessing needs raw counts in X; the input has 500 cells x 0 genes$"):
        preprocess(bare, SMALL, 0)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"n_pcs": 600}, DataError, "preprocess.n_pcs is 600, but 500 cells and "),
        ({"n_pcs": 500}, DataError, "preprocess.n_pcs is 500, but 500 cells and "),
        ({"n_top_genes": 5}, ConfigError, "preprocess.n_top_genes (5) must be more than n_pcs (5)"),
        (
            {"min_counts": 10**9},
            DataError,
            "no cell passes preprocess.min_counts, min_genes and max_mito_percent: loosen them",
        ),
        (
            {"min_cells_per_gene": 501},
            DataError,
            "preprocess.n_pcs is 5, but 500 cells and 0 genes are left: lower n_pcs",
        ),
        (
            {"harmony_col": "batches"},
            DataError,
            "preprocess.harmony_col: obs column 'batches' is not in the data; did you mean 'batch'?",
        ),
        (
            {"hvg_batch_col": "bach"},
            DataError,
            "preprocess.hvg_batch_col: obs column 'bach' is not in the data; did you mean 'batch'?",
        ),
    ],
)
def test_options_that_do_not_fit_the_data(demo, options, error, text):
    with pytest.raises(error) as caught:
        preprocess(demo.copy(), SMALL.model_copy(update=options), 0)
    assert str(caught.value).startswith(text)


def test_repeated_cell_names_are_refused(demo):
    cohort = demo.copy()
    cohort.obs.index = ["x", "x", *cohort.obs_names[2:]]
    with pytest.raises(DataError, match="1 cell names occur more than once, the first is 'x'"):
        preprocess(cohort, SMALL, 0)


def test_a_file_to_a_file(demo, done, tmp_path):
    demo.write_h5ad(tmp_path / "in.h5ad")
    preprocess_file(tmp_path / "in.h5ad", tmp_path / "out" / "cohort.h5ad", SMALL, 0)
    written = ad.read_h5ad(tmp_path / "out" / "cohort.h5ad")
    np.testing.assert_array_equal(written.obsm["X_pca"], done.obsm["X_pca"])
    np.testing.assert_array_equal(written.layers["counts"].toarray(), done.layers["counts"].toarray())
    (tmp_path / "text.h5ad").write_text("no counts")
    with pytest.raises(DataError, match=r"text\.h5ad: not an \.h5ad file"):
        preprocess_file(tmp_path / "text.h5ad", tmp_path / "other.h5ad", SMALL, 0)
    assert not (tmp_path / "other.h5ad").exists()


def test_counts_that_are_all_zero_are_refused_with_the_way_to_others(demo):
    demo = demo.copy()
    demo.X = demo.X * 0
    with pytest.raises(DataError, match=r"all counts in X are zero: set preprocess\.counts to where"):
        preprocess(demo, PreprocessConfig(n_pcs=3), 0)
