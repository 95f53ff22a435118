"""Covariances of all patients as plain arrays of full matrices, written and read without holding them."""

import tracemalloc

import anndata as ad
import h5py
import numpy as np
import pytest
from anndata.io import read_elem, write_elem

import cohortgmm
from cohortgmm import memory
from cohortgmm.cohort import covariances
from cohortgmm.cohort.covariances import StackedCovariances, check_size, diagonals, write_covariances
from cohortgmm.cohort.patient_result import PatientResult
from cohortgmm.errors import ConfigError
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.result import MixtureFit


def mixture(k, d, kind, seed=0):
    rng = np.random.default_rng(seed)
    if kind == "diag":
        values = rng.uniform(0.5, 2.0, size=(k, d))
    else:
        roots = rng.normal(size=(k, d, d))
        values = roots @ roots.transpose(0, 2, 1) + np.eye(d)
    return GaussianMixture(np.full(k, 1 / k), rng.normal(size=(k, d)), values)


def stacked(d, kind, shared=False):
    models = {"a": mixture(3, d, kind), "b": mixture(1, d, kind, 1), "c": mixture(2, d, kind, 2)}
    owners = ["a"] if shared else ["c", "a", "b"]
    shape = (3, d, d) if shared else (3, 3, d, d)
    expected = np.zeros((len(owners), 3, d, d))
    for i, owner in enumerate(owners):
        expected[i, : models[owner].n_components] = models[owner].full_covariances
    return stack([models[owner] for owner in owners], shape), expected[0] if shared else expected


def stack(models, shape):
    numbers = (0.0, 1, True, np.zeros(2), np.zeros(1, bool))
    results = [PatientResult(str(i), MixtureFit(model, *numbers), 0, 0) for i, model in enumerate(models)]
    return StackedCovariances(results, shape)


@pytest.mark.parametrize("d", [1, 3, 64, 65, 150])
@pytest.mark.parametrize("kind", ["full", "diag"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_file_holds_the_array_that_a_notebook_gets(tmp_path, d, kind, shared):
    values, expected = stacked(d, kind, shared)
    np.testing.assert_array_equal(np.asarray(values), expected)
    assert values.nbytes == expected.nbytes
    with h5py.File(tmp_path / "x.h5", "w") as file:
        write_elem(file, "ours", {})
        write_covariances(file["ours"], "var", values)
        write_elem(file, "theirs", {"var": expected})
        assert dict(file["ours/var"].attrs) == dict(file["theirs/var"].attrs)
        assert file["ours/var"].dtype == file["theirs/var"].dtype
        np.testing.assert_array_equal(read_elem(file["ours"])["var"], expected)
        for index in np.ndindex(*values.shape[:-2]):
            np.testing.assert_array_equal(diagonals(file["ours/var"], index), np.diagonal(expected[index]))


def test_diagonals_in_many_features_take_little_of_a_file(tmp_path):
    values = stack([mixture(4, 1000, "diag")], (1, 4, 1000, 1000))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        write_covariances(file, "var", values)
    assert (tmp_path / "x.h5").stat().st_size < values.nbytes / 50


def test_writing_and_reading_hold_no_full_matrices(tmp_path):
    """tracemalloc counts numpy's arrays: neither takes a twentieth of one patient's matrices."""
    adata = ad.AnnData(np.random.default_rng(0).normal(size=(60, 800)), obs={"patient": ["a"] * 30 + ["b"] * 30})
    adata = cohortgmm.fit_gmm(adata, patient_col="patient", k_comps=4, covariance_type="diag", verbose=False)
    expected = cohortgmm.read_gmm(adata)
    values = stack(expected.values(), (2, 4, 800, 800))
    uns = adata.uns["gmm_X"]
    del uns["model"]["var"]
    with h5py.File(tmp_path / "x.h5ad", "w") as file:
        write_elem(file, "/", ad.AnnData(obs=adata.obs, uns={"gmm_X": uns}))
        tracemalloc.start()
        write_covariances(file["uns/gmm_X/model"], "var", values)
        wrote = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    found = cohortgmm.read_gmm(tmp_path / "x.h5ad")
    read = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(wrote, read) < values.nbytes / 20
    for patient, model in expected.items():
        np.testing.assert_array_equal(found[patient].covariances, model.covariances)
        np.testing.assert_array_equal(found[patient].means, model.means)


@pytest.mark.parametrize("kind", ["full", "diag"])
@pytest.mark.parametrize("sharing", ["sample_specific", "global"])
def test_a_notebook_and_its_file_give_the_same_mixtures(tmp_path, kind, sharing):
    adata = ad.AnnData(np.random.default_rng(0).normal(size=(400, 70)), obs={"patient": ["a"] * 200 + ["b"] * 200})
    options = {"k_comps": 2, "covariance_type": kind, "component_sharing": sharing, "verbose": False}
    adata = cohortgmm.fit_gmm(adata, patient_col="patient", **options)
    assert type(adata.uns["gmm_X"]["model"]["var"]) is np.ndarray
    adata.write_h5ad(tmp_path / "x.h5ad")
    ours, theirs = cohortgmm.read_gmm(adata), cohortgmm.read_gmm(tmp_path / "x.h5ad")
    for patient, model in ours.items():
        assert model.covariance_type == kind
        np.testing.assert_array_equal(theirs[patient].covariances, model.covariances)
        np.testing.assert_array_equal(theirs[patient].weights, model.weights)


def test_what_does_not_fit_in_memory_is_refused_before_the_first_fit(monkeypatch):
    monkeypatch.setattr(covariances, "available_memory", lambda: 2 * 8 * 2 * 3 * 50**2 - 1)
    adata = ad.AnnData(np.random.default_rng(0).normal(size=(60, 50)), obs={"patient": ["a"] * 30 + ["b"] * 30})
    monkeypatch.setattr("cohortgmm.api.fit_units", lambda *args, **options: pytest.fail("a fit"))
    with pytest.raises(
        ConfigError, match=r"^2 mixtures of up to 3 components in 50 features take .* GB in uns"
    ) as error:
        cohortgmm.fit_gmm(adata, patient_col="patient", k_comps=[2, 3], covariance_type="diag", verbose=False)
    assert "\n" not in str(error.value)
    assert "mapping of patient to array" in str(error.value)


def test_what_fits_in_half_of_the_memory_is_admitted(monkeypatch):
    monkeypatch.setattr(covariances, "available_memory", lambda: 2 * 8 * 2 * 3 * 50**2)
    check_size(2, 3, 50)
    monkeypatch.setattr(covariances, "available_memory", lambda: None)
    check_size(10**6, 100, 10**6)


def test_a_mapping_needs_no_full_matrices(monkeypatch):
    monkeypatch.setattr(covariances, "available_memory", lambda: 0)
    cells = {"a": np.random.default_rng(0).normal(size=(60, 5))}
    models = cohortgmm.fit_gmm(
        cells, k_comps=2, covariance_type="diag", component_sharing="sample_specific", verbose=False
    )
    assert models["a"].covariances.shape == (2, 5)


def test_the_memory_that_is_free_is_told():
    free = memory.available_memory()
    assert free is None or 1 << 20 < free < 1 << 50


def test_the_limit_of_a_control_group_counts(tmp_path, monkeypatch):
    (tmp_path / "max").write_text("1000\n")
    (tmp_path / "current").write_text("400\n")
    monkeypatch.setattr(memory, "_GROUPS", ((str(tmp_path / "max"), str(tmp_path / "current")),))
    assert memory.available_memory() == 600
    (tmp_path / "max").write_text("max\n")
    assert memory.available_memory() != 600
