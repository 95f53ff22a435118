"""What preprocessing keeps of the input, whatever order, types and names it has."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cohortgmm.cohort.filter_notes import filter_notes, read_summary
from cohortgmm.cohort.preprocess import preprocess, preprocess_file
from cohortgmm.cohort.reading import named_layers
from cohortgmm.config import PreprocessConfig
from cohortgmm.errors import DataError

N, G = 90, 60
OPTIONS = PreprocessConfig(n_pcs=4, n_top_genes=30)
BATCHED = OPTIONS.model_copy(update={"hvg_batch_col": "batch", "harmony_col": "batch"})


def counts(seed=0):
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(1, 2, size=G) + 0.3, (N, G)).astype(np.float32)


def cohort(x=None, form=sparse.csr_matrix, **entries):
    rng = np.random.default_rng(1)
    obs = pd.DataFrame(
        {
            "batch": np.array(["b1", "b2", "b3"])[rng.integers(3, size=N)],
            "patient": np.repeat(["P1", "P2", "P3"], N // 3),
        },
        index=[f"cell {i}" for i in rng.permutation(N)],
    )
    var = pd.DataFrame({"kind": "gene"}, index=["MT-1", "MT-2", *(f"G{i}" for i in range(2, G))])
    return ad.AnnData(form(counts() if x is None else x), obs=obs, var=var, **entries)


def dense(matrix):
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


@pytest.mark.parametrize("options", [OPTIONS, BATCHED], ids=["plain", "batches"])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix], ids=["dense", "csr", "csc"])
def test_the_order_of_the_cells_changes_no_bit(options, form):
    pytest.importorskip("harmonypy")
    options = options.model_copy(update={"min_counts": int(np.quantile(counts().sum(axis=1), 0.2))})
    given = cohort(form=form)
    first = preprocess(given, options, 3)
    assert 0.7 * N < first.n_obs < 0.9 * N
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(N)
        other = preprocess(given[order].copy(), options, 3)
        assert other.obs_names.tolist() == [name for name in given.obs_names[order] if name in first.obs_names]
        other = other[first.obs_names]
        for key in first.obsm:
            np.testing.assert_array_equal(other.obsm[key], first.obsm[key])
        for key in first.varm:
            np.testing.assert_array_equal(other.varm[key], first.varm[key])
        pd.testing.assert_frame_equal(other.var, first.var)
        np.testing.assert_array_equal(dense(other.X), dense(first.X))
        np.testing.assert_array_equal(dense(other.layers["counts"]), dense(first.layers["counts"]))


@pytest.mark.parametrize("dtype", ["float16", "int8", "uint8", "int16", "int32", "int64", "float64", ">f4"])
def test_the_type_of_the_counts_changes_no_bit(dtype):
    x = np.minimum(counts(), 100)
    expected = preprocess(cohort(x, np.asarray), OPTIONS, 0)
    result = preprocess(cohort(x.astype(dtype), np.asarray), OPTIONS, 0)
    np.testing.assert_array_equal(result.obsm["X_pca"], expected.obsm["X_pca"])
    np.testing.assert_array_equal(result.var["highly_variable"], expected.var["highly_variable"])
    np.testing.assert_array_equal(result.layers["counts"], expected.layers["counts"])
    assert result.X.dtype == np.float32


def test_a_cell_whose_counts_are_more_than_half_precision_holds():
    x = counts()
    x[7] = 1500
    assert x[7].sum() == 90_000 > float(np.finfo(np.float16).max)
    limits = OPTIONS.model_copy(update={"min_counts": 100, "max_mito_percent": 90.0})
    expected = preprocess(cohort(x, np.asarray), limits, 0)
    result = preprocess(cohort(x.astype(np.float16), np.asarray), limits, 0)
    assert "cell" in result.obs_names[7]
    assert result.obs_names.equals(expected.obs_names)
    assert result.layers["counts"][7].sum() == 90_000
    np.testing.assert_array_equal(result.obsm["X_pca"], expected.obsm["X_pca"])
    np.testing.assert_array_equal(result.var["highly_variable"], expected.var["highly_variable"])


def test_boolean_counts():
    result = preprocess(cohort(counts() > 2, np.asarray), OPTIONS, 0)
    assert result.layers["counts"].dtype == np.float32
    assert set(np.unique(result.layers["counts"])) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (
            np.ma.masked_greater(counts(), 5),
            "preprocessing needs raw counts in X, but X holds NaN, masked or infinite values",
        ),
        (counts() * (1 + 0j), "X must hold real numbers, got complex64"),
    ],
    ids=["masked", "complex"],
)
def test_numbers_that_are_no_counts(x, text):
    with pytest.raises(DataError) as caught:
        preprocess(cohort(x, lambda values: values), OPTIONS, 0)
    assert str(caught.value).startswith(text)


OTHERS = {
    "layers": {"counts": np.full((N, G), 0.5)},
    "obsm": {"X_pca": np.arange(N * 20.0).reshape(N, 20), "X_pca_harmony": np.ones((N, 3)), "X_umap": np.ones((N, 2))},
    "varm": {"PCs": np.arange(G * 20.0).reshape(G, 20)},
    "uns": {
        "pca": {"variance": np.ones(20)},
        "hvg": {"flavor": "mine"},
        "log1p": {"base": 2.0},
        "cohortgmm_preprocess": {"n_cells": 1},
        "other": "stays",
    },
}


@pytest.mark.parametrize("through_a_file", [False, True])
def test_entries_in_the_way_are_kept_and_said(through_a_file, tmp_path, caplog):
    pytest.importorskip("harmonypy")
    given = cohort(**{key: dict(value) for key, value in OTHERS.items()})
    for column in ("highly_variable", "means", "dispersions"):
        given.var[column] = np.arange(G) % 2 == 0
    if through_a_file:
        given.write_h5ad(tmp_path / "in.h5ad")
        preprocess_file(tmp_path / "in.h5ad", tmp_path / "out.h5ad", BATCHED, 0, summary=tmp_path / "summary.json")
        result = ad.read_h5ad(tmp_path / "out.h5ad")
        kept = read_summary(tmp_path / "summary.json")["kept"]
    else:
        result = preprocess(given, BATCHED, 0)
        kept = None
    genes = given.var_names.isin(result.var_names)
    np.testing.assert_array_equal(result.layers["counts_input"], OTHERS["layers"]["counts"][:, genes])
    np.testing.assert_array_equal(dense(result.layers["counts"]), counts()[:, genes])
    np.testing.assert_array_equal(result.obsm["X_pca_input"], OTHERS["obsm"]["X_pca"])
    np.testing.assert_array_equal(result.obsm["X_pca_harmony_input"], OTHERS["obsm"]["X_pca_harmony"])
    np.testing.assert_array_equal(result.obsm["X_umap"], OTHERS["obsm"]["X_umap"])
    assert result.obsm["X_pca"].shape == result.obsm["X_pca_harmony"].shape == (N, 4)
    np.testing.assert_array_equal(result.varm["PCs_input"], OTHERS["varm"]["PCs"][genes])
    for column in ("highly_variable", "means", "dispersions"):
        np.testing.assert_array_equal(result.var[f"{column}_input"], (np.arange(G) % 2 == 0)[genes])
    assert result.uns["pca_input"]["variance"].shape == (20,)
    assert result.uns["hvg_input"] == {"flavor": "mine"}
    assert result.uns["log1p_input"] == {"base": 2.0}
    assert result.uns["other"] == "stays"
    assert result.uns["cohortgmm_preprocess"]["n_cells"] == N
    assert ("obsm['X_pca'] as obsm['X_pca_input']" in caplog.text) == through_a_file
    assert set(given.obsm) == set(OTHERS["obsm"])
    if kept is not None:
        assert [row["entry"] for row in kept] == [
            *("layers['counts']", "obsm['X_pca']", "obsm['X_pca_harmony']", "varm['PCs']"),
            *("var['highly_variable']", "var['means']", "var['dispersions']"),
            *("uns['log1p']", "uns['hvg']", "uns['pca']", "uns['cohortgmm_preprocess']"),
        ]
        assert all(row["kept_as"] == f"{row['entry'][:-2]}_input']" for row in kept)


def test_entries_that_are_ours_already_are_not_kept_twice(tmp_path):
    preprocess_file(_written(cohort(), tmp_path / "in.h5ad"), tmp_path / "one.h5ad", OPTIONS, 0)
    options = OPTIONS.model_copy(update={"counts": "layer:counts"})
    preprocess_file(tmp_path / "one.h5ad", tmp_path / "two.h5ad", options, 0, summary=tmp_path / "summary.json")
    kept = read_summary(tmp_path / "summary.json")["kept"]
    assert [row["entry"] for row in kept] in ([], ["uns['cohortgmm_preprocess']"])  # fewer genes came in
    one, two = ad.read_h5ad(tmp_path / "one.h5ad"), ad.read_h5ad(tmp_path / "two.h5ad")
    np.testing.assert_array_equal(two.obsm["X_pca"], one.obsm["X_pca"])
    assert set(named_layers(two)) == {"counts"}


def _written(adata, path):
    adata.write_h5ad(path)
    return path


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix], ids=["dense", "csr"])
def test_counts_in_a_layer(form):
    scaled = (counts() - 1.5).astype(np.float32)
    given = cohort(scaled, np.asarray, layers={"umi": form(counts())})
    result = preprocess(given, OPTIONS.model_copy(update={"counts": "layer:umi"}), 0)
    expected = preprocess(cohort(form=form), OPTIONS, 0)
    np.testing.assert_array_equal(result.obsm["X_pca"], expected.obsm["X_pca"])
    genes = given.var_names.isin(result.var_names)
    np.testing.assert_array_equal(result.layers["X_input"], scaled[:, genes])
    np.testing.assert_array_equal(dense(result.layers["umi"]), counts()[:, genes])
    np.testing.assert_array_equal(dense(result.layers["counts"]), counts()[:, genes])


def test_counts_in_raw_with_the_same_genes(tmp_path):
    given = cohort()
    given.raw = given.copy()
    given.X = np.log1p(counts())
    options = OPTIONS.model_copy(update={"counts": "raw", "max_mito_percent": 60.0})
    preprocess_file(_written(given, tmp_path / "in.h5ad"), tmp_path / "out.h5ad", options, 0)
    result = ad.read_h5ad(tmp_path / "out.h5ad")
    expected = preprocess(cohort(), OPTIONS, 0)
    np.testing.assert_array_equal(result.obsm["X_pca"], expected.obsm["X_pca"])
    np.testing.assert_array_equal(
        result.layers["X_input"], np.log1p(counts())[:, given.var_names.isin(result.var_names)]
    )
    np.testing.assert_array_equal(dense(result.raw.X), counts())


def test_counts_in_raw_with_other_genes(tmp_path):
    few = [5, 0, 7, 9]
    given = cohort()
    whole = given.copy()
    whole.var["symbol"] = ["MT-X", *(f"S{i}" for i in range(1, G))]
    given = given[:, few].copy()
    given.raw = whole
    given.X = np.log1p(counts())[:, few]
    given.layers["scaled"] = counts()[:, few] - 1
    given.varm["loadings"] = np.arange(8.0).reshape(4, 2)
    options = OPTIONS.model_copy(update={"counts": "raw", "symbols": "symbol", "max_mito_percent": 60.0})
    preprocess_file(
        *(_written(given, tmp_path / "in.h5ad"), tmp_path / "out.h5ad", options, 0), summary=tmp_path / "summary.json"
    )
    result = ad.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(result.obsm["X_pca"], preprocess(cohort(), OPTIONS, 0).obsm["X_pca"])
    np.testing.assert_array_equal(result.obsm["X_input"], np.log1p(counts())[:, few])
    np.testing.assert_array_equal(result.obsm["scaled_input"], counts()[:, few] - 1)
    np.testing.assert_array_equal(result.uns["varm_input"]["loadings"], np.arange(8.0).reshape(4, 2))
    assert result.uns["var_input"].index.tolist() == given.var_names.tolist()
    assert read_summary(tmp_path / "summary.json")["kept"] == [
        {"entry": "X", "kept_as": "obsm['X_input']"},
        {"entry": "layers['scaled']", "kept_as": "obsm['scaled_input']"},
        {"entry": "var", "kept_as": "uns['var_input']"},
        {"entry": "varm", "kept_as": "uns['varm_input']"},
    ]


@pytest.mark.parametrize("batch", [None, "batch"])
def test_genes_of_one_name_are_told_apart(batch, tmp_path):
    given = cohort()
    plain = preprocess(given, OPTIONS.model_copy(update={"hvg_batch_col": batch}), 0)
    given.var_names = ["A"] * 10 + [f"G{i}" for i in range(10, G)]
    given.write_h5ad(tmp_path / "in.h5ad")
    options = OPTIONS.model_copy(update={"hvg_batch_col": batch})
    preprocess_file(tmp_path / "in.h5ad", tmp_path / "out.h5ad", options, 0, summary=tmp_path / "summary.json")
    result = ad.read_h5ad(tmp_path / "out.h5ad")
    assert result.var_names.is_unique
    assert result.var_names[:3].tolist() == ["A", "A-1", "A-2"]
    assert result.var["highly_variable"].sum() == 30 == result.uns["cohortgmm_preprocess"]["n_top_genes"]
    np.testing.assert_array_equal(result.obsm["X_pca"], plain.obsm["X_pca"])
    assert read_summary(tmp_path / "summary.json")["renamed_genes"] == 9


def test_the_genes_recorded_are_those_that_were_chosen():
    x = counts()
    x[:, 20:] = x[:, :1]  # which vary equally: scanpy chooses all of them or none
    x[:, 0] += 1
    result = preprocess(cohort(x), OPTIONS.model_copy(update={"n_top_genes": 25}), 0)
    chosen = int(result.var["highly_variable"].sum())
    assert chosen != 25
    assert result.uns["cohortgmm_preprocess"]["n_top_genes"] == chosen


def test_the_summary_of_what_was_left_out(tmp_path):
    x = counts()
    x[:30] = 0
    x[:30, :2] = 1  # all of P1, mitochondrial
    x[40] = 0
    x[50:75, 30:] = 0
    options = OPTIONS.model_copy(update={"min_counts": 1, "min_genes": 32, "max_mito_percent": 90.0})
    preprocess_file(
        *(_written(cohort(x), tmp_path / "in.h5ad"), tmp_path / "out.h5ad", options, 0),
        summary=tmp_path / "summary.json",
        patient_col="patient",
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["filters"] == [
        {"key": "no counts", "limit": None, "n_failed": 1},
        {"key": "min_counts", "limit": 1, "n_failed": 1},
        {"key": "min_genes", "limit": 32, "n_failed": 56},
        {"key": "max_mito_percent", "limit": 90.0, "n_failed": 30},
    ]
    assert {key: summary[key] for key in ("counts", "n_cells_input", "n_cells", "n_genes_input", "n_top_genes")} == {
        **{"counts": "X", "n_cells_input": 90, "n_cells": 34, "n_genes_input": 60, "n_top_genes": 30},
    }
    assert summary["patients_without_cells"] == ["P1"]
    assert filter_notes(summary) == [
        "preprocessing left out 62 % of the cells (56 of 90): 56 by min_genes (32), 30 by max_mito_percent (90), 1 by no "
        "counts, 1 by min_counts (1) (a cell may fail several filters)",
        "no cell of 1 patient passed the preprocessing: 'P1'",
    ]


def test_no_cell_passes():
    with pytest.raises(DataError) as caught:
        preprocess(cohort(), OPTIONS.model_copy(update={"min_genes": 61}), 0)
    assert str(caught.value) == (
        "no cell passes preprocess.min_counts, min_genes and max_mito_percent: loosen them (90 of 90 fail min_genes)"
    )
