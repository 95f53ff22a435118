"""Matrices of every kind, in an AnnData or a mapping, give the same cells; what is no matrix is named."""

import importlib
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from projects import make_cohort
from scipy import sparse

import cohortgmm
from cohortgmm.cohort.in_memory import cells_of_anndata, cells_of_mapping
from cohortgmm.cohort.split import check_finite
from cohortgmm.errors import CohortgmmError, ConfigError, DataError

X = np.round(np.abs(make_cohort().obsm["X_pca"]) * 4).astype(np.float32)


def of_anndata(matrix, **options):
    cohort = make_cohort()
    cohort.obsm["X_pca"] = matrix
    missing = options.pop("missing", False)
    cells, ids = cells_of_anndata(cohort, **{"patient_col": "patient", "use_rep": "X_pca", "noise": None} | options)
    check_finite(cells.matrix, ids, cells.name, missing=missing)
    return cells.matrix


def of_mapping(matrix, *, missing=False):
    cells, ids = cells_of_mapping({"P1": matrix}, None)
    check_finite(cells.matrix, ids, cells.name, missing=missing)
    return cells.matrix


ENTRIES = pytest.mark.parametrize("entry", [of_anndata, of_mapping])


def dense(matrix):
    return matrix.toarray() if hasattr(matrix, "toarray") else matrix


def refusal(function, *arguments, **options):
    with pytest.raises(CohortgmmError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@ENTRIES
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", "longdouble", "int8", "uint64", "object"])
@pytest.mark.parametrize("make", [np.asarray, np.ma.asarray], ids=["array", "masked"])
def test_numbers_of_every_type(entry, dtype, make):
    np.testing.assert_array_equal(entry(make(X.astype(dtype))), X)


@ENTRIES
@pytest.mark.parametrize("dtype", ["float32", "int16", "bool"])
@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
def test_sparse_matrices(entry, dtype, make):
    values = X.astype(dtype)
    result = entry(make(values))
    assert result.dtype in (np.float32, np.float64)
    np.testing.assert_array_equal(dense(result), values.astype(float))


@ENTRIES
def test_nullable_tables(entry):
    table = pd.DataFrame(X, index=make_cohort().obs_names, columns=["a", "b", "c"]).convert_dtypes()
    assert {str(dtype) for dtype in table.dtypes} == {"Int64"}
    np.testing.assert_array_equal(entry(table), X)
    table.iloc[3, 1] = pd.NA
    assert "has 1 NaN or infinite values in 1 cells, the first in patient 'P1'" in refusal(entry, table)
    assert np.argwhere(np.isnan(entry(table, missing=True))).tolist() == [[3, 1]]


@ENTRIES
def test_masked_values_are_missing(entry):
    masked = np.ma.array(X, mask=np.zeros(X.shape, dtype=bool))
    masked[3, 1] = np.ma.masked
    assert "has 1 NaN or infinite values in 1 cells" in refusal(entry, masked)
    assert np.argwhere(np.isnan(entry(masked, missing=True))).tolist() == [[3, 1]]


@ENTRIES
@pytest.mark.parametrize("dtype", ["complex64", "U8", "datetime64[s]"])
def test_what_is_no_number_is_refused(entry, dtype):
    assert "must hold real numbers, got" in refusal(entry, X.astype(dtype))


@pytest.mark.parametrize("values", [None, 3.0, [[1, 2], [3]], {"a": 1}, np.ones((3, 3, 3)), make_cohort()], ids=str)
def test_what_is_no_matrix_is_refused(values):
    assert refusal(of_mapping, values).startswith("the array of patient 'P1' must be ")


def test_matrices_of_dask():
    array = importlib.import_module("dask.array")
    np.testing.assert_array_equal(of_anndata(array.from_array(X, chunks=50)), X)


def test_an_anndata_that_is_backed_by_its_file(tmp_path):
    cohort = make_cohort()
    whole = ad.AnnData(sparse.csr_matrix(X), obs=cohort.obs, obsm={"X_pca": X})
    whole.write_h5ad(tmp_path / "c.h5ad")
    for use_rep in (None, "X_pca"):
        backed = ad.read_h5ad(tmp_path / "c.h5ad", backed="r")
        options = {"patient_col": "patient", "use_rep": use_rep, "k_comps": 2, "verbose": False}
        cohortgmm.fit_gmm(backed, **options)
        expected = cohortgmm.fit_gmm(whole.copy(), **options)
        key = f"gmm_{use_rep or 'X'}"
        np.testing.assert_array_equal(backed.uns[key]["model"]["mu"], expected.uns[key]["model"]["mu"])
        assert refusal(cohortgmm.fit_gmm, backed[:120], **options) == (
            "data is a view of an AnnData that is backed by its file: call data.to_memory() first"
        )
        backed.file.close()


def test_data_of_other_kinds():
    mudata = SimpleNamespace(mod={"rna": None}, obsm={})
    assert refusal(cells_of_anndata, mudata, "patient", None, None) == (
        "data is MuData: give one of its modalities, such as data.mod['rna']"
    )
    lazy = SimpleNamespace(obs={}, obsm={})
    assert "data.obs is a dict, not a pandas table: call data.to_memory()" in refusal(
        cells_of_anndata, lazy, "patient", None, None
    )
    cohort = ad.AnnData(obs=make_cohort().obs, obsm={"X_pca": X})
    assert refusal(cells_of_anndata, cohort, "patient", None, None) == "use_rep is None, but data has no X"


@pytest.mark.parametrize("n", [120, 240])
def test_rows_that_do_not_fit(n):
    cohort = SimpleNamespace(obs=make_cohort().obs, obsm={"X_pca": np.ones((n, 3))})
    assert refusal(cells_of_anndata, cohort, "patient", "X_pca", None) == (
        f"obsm['X_pca'] has {n} rows for 180 cells: it needs one row for each"
    )


def test_patients_of_a_mapping_are_told_apart():
    x = X[:60]
    for patients in ((1, "1"), (True, "True"), (None, "None")):
        assert "two patients of the mapping have the same text" in refusal(
            cells_of_mapping, dict.fromkeys(patients, x), None
        )
    models = cohortgmm.fit_gmm({"a": x, "a\0": x + 1}, k_comps=1, component_sharing="sample_specific", verbose=False)
    assert models["a\0"].means[0, 0] == pytest.approx(models["a"].means[0, 0] + 1, abs=1)
    for patient, said in (("", "an empty patient id"), ("\udc80", "is not valid Unicode")):
        assert said in refusal(cells_of_mapping, {patient: x}, None)
    noise = {"a": np.ones((60, 3)), 1: np.ones((60, 3)), "1": np.ones((60, 3))}
    assert "two patients of noise have the same text: '1'" in refusal(cells_of_mapping, {"a": x}, noise)


def test_tables_of_a_mapping_agree_in_their_columns():
    table = pd.DataFrame(X[:60], columns=["CD3", "CD4", "CD8"])
    embedding, _ = cells_of_mapping({"a": table, "b": table + 1}, None)
    assert embedding.feature_names == ("CD3", "CD4", "CD8")
    with pytest.raises(
        DataError, match=r"^the tables of patients 'a' and 'b' differ in their columns or in the order of these"
    ):
        cells_of_mapping({"a": table, "b": table[["CD4", "CD3", "CD8"]]}, None)
    assert cells_of_mapping({"a": X[:60]}, None)[0].feature_names == ("feature 1", "feature 2", "feature 3")


def test_a_gate_that_names_one_of_two_features():
    cohort = make_cohort()
    cohort.obsm["X_pca"] = pd.DataFrame(X, index=cohort.obs_names, columns=["CD3", "CD3", "CD4"])
    options = {"patient_col": "patient", "use_rep": "X_pca", "k_comps": 1, "verbose": False}
    said = refusal(cohortgmm.fit_gmm, cohort, completeness={"gates": [{"inside": {"CD3": [-99, None]}}]}, **options)
    assert said.endswith("2 features have the name 'CD3': give each a name of its own")
    cohortgmm.fit_gmm(cohort, completeness={"gates": [{"inside": {"CD4": [-99, None]}}]}, **options)


def test_two_columns_of_the_name_of_the_patient():
    cohort = make_cohort()
    cohort.obs = pd.concat([cohort.obs, cohort.obs[["patient"]]], axis=1)
    assert refusal(cells_of_anndata, cohort, "patient", "X_pca", None) == (
        "patient_col: obs has 2 columns of the name 'patient': rename all but one"
    )


def test_several_columns_name_the_patient():
    cohort = make_cohort()
    cohort.obs["day"] = np.tile([0, 7], 90)
    cohortgmm.fit_gmm(cohort, patient_col=["patient", "day"], use_rep="X_pca", k_comps=1, verbose=False)
    ids = cohort.obs["gmm_X_pca_patient"]
    assert ids.tolist()[:3] == ["P1_0", "P1_7", "P1_0"]
    models = cohortgmm.read_gmm(cohort)
    assert sorted(models) == sorted(set(ids))
    by_hand = cohort.copy()
    cohortgmm.fit_gmm(by_hand, patient_col="gmm_X_pca_patient", use_rep="X_pca", k_comps=1, gmm_key="g", verbose=False)
    for patient, model in cohortgmm.read_gmm(by_hand, "g").items():
        np.testing.assert_array_equal(model.means, models[patient].means)
    with pytest.raises(ConfigError, match=r"^the result overwrites the column 'gmm_X_pca_patient' of patient_col"):
        cohortgmm.fit_gmm(cohort, patient_col=["gmm_X_pca_patient", "day"], use_rep="X_pca", k_comps=1)


def test_a_key_with_a_slash_needs_a_key_of_the_result():
    cohort = make_cohort()
    cohort.obsm["X/pca"] = X
    options = {"patient_col": "patient", "use_rep": "X/pca", "k_comps": 1, "verbose": False}
    assert refusal(cohortgmm.fit_gmm, cohort, **options) == (
        "use_rep is 'X/pca', and a key of uns can have no '/': give gmm_key"
    )
    assert "mine" in cohortgmm.fit_gmm(cohort, gmm_key="mine", **options).uns
