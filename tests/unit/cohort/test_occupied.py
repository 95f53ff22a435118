"""Results replace earlier results, and nothing else."""

import re

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from projects import make_cohort

import cohortgmm
from cohortgmm.cohort.merge import write_gmm
from cohortgmm.cohort.occupied import check_file, has_mixtures
from cohortgmm.cohort.uns import CellAssignment
from cohortgmm.errors import DataError

OPTIONS = {"patient_col": "patient", "use_rep": "X_pca", "k_comps": 1, "verbose": False}


def mixtures():
    """In the layout of ggml_ot."""
    return {
        "component_sharing": "sample_specific", "covariance_type": "full", "use_rep": "X_pca", "backend": "sklearn",
        "model": {"mu": np.zeros((1, 1, 3)), "var": np.ones((1, 1, 3, 3)), "pi": np.ones((1, 1))},
        "weight_inference": {"distribution_ids": np.array(["P1"], dtype=object)},
    }  # fmt: skip


OTHERS = [
    {"variance": np.ones(3), "variance_ratio": np.ones(3)},
    {"model": {"mu": np.zeros(3)}},
    {"params": {"n_neighbors": 15}, "connectivities_key": "connectivities"},
    {},
    np.arange(3),
    "text",
    3.5,
    pd.DataFrame({"a": [1.0]}),
    {**mixtures(), "model": np.arange(3)},
    {key: value for key, value in mixtures().items() if key != "weight_inference"},
]

#: Changes of the cohort, and what the message names.
TAKEN = [
    *(
        (lambda adata, entry=entry: adata.uns.update(key=entry), "uns['key'] that holds no mixtures")
        for entry in OTHERS
    ),
    (lambda adata: adata.obs.insert(0, "key_comp", 1), "obs['key_comp'] without mixtures"),
    (lambda adata: adata.obs.insert(0, "key_background", "x"), "obs['key_background'] without mixtures"),
    (lambda adata: adata.obsm.update(key_resp=np.ones((180, 2))), "obsm['key_resp'] without mixtures"),
]


@pytest.mark.parametrize(("change", "named"), TAKEN, ids=range(len(TAKEN)))
def test_a_notebook_refuses_before_any_fit_and_changes_nothing(change, named, monkeypatch):
    adata = make_cohort()
    change(adata)
    monkeypatch.setattr("cohortgmm.api.fit_units", lambda *args: pytest.fail("a fit"))
    columns, uns, obsm = list(adata.obs), dict(adata.uns), list(adata.obsm)
    with pytest.raises(DataError, match=re.escape(named)) as error:
        cohortgmm.fit_gmm(adata, gmm_key="key", **OPTIONS)
    assert str(error.value).startswith("gmm_key 'key': the data has ")
    assert "set another gmm_key" in str(error.value)
    assert "\n" not in str(error.value)
    assert (list(adata.obs), list(adata.obsm), adata.uns.keys()) == (columns, obsm, uns.keys())


@pytest.mark.parametrize(("change", "named"), TAKEN, ids=range(len(TAKEN)))
def test_a_file_is_refused_by_its_names_alone(change, named, tmp_path):
    adata = make_cohort()
    change(adata)
    adata.write_h5ad(tmp_path / "x.h5ad")
    with h5py.File(tmp_path / "x.h5ad") as file, pytest.raises(DataError, match=re.escape(named)) as error:
        check_file(file, "key")
    assert str(tmp_path / "x.h5ad") in str(error.value)


@pytest.mark.parametrize("entry", [None, mixtures()], ids=["ours", "ggml_ot's"])
def test_mixtures_are_replaced_with_all_that_belongs_to_them(entry, tmp_path):
    adata = make_cohort()
    if entry is None:
        adata = cohortgmm.fit_gmm(adata, gmm_key="key", background={}, **OPTIONS)
    else:
        adata.uns["key"] = entry
        adata.obs["key_comp"] = 7
        adata.obsm["key_resp"] = np.ones((180, 4))
    adata.write_h5ad(tmp_path / "x.h5ad")
    with h5py.File(tmp_path / "x.h5ad") as file:
        check_file(file, "key")
        assert has_mixtures(file["uns/key"])
    again = cohortgmm.fit_gmm(ad.read_h5ad(tmp_path / "x.h5ad"), gmm_key="key", **OPTIONS)
    assert "key_background" not in again.obs
    assert set(again.obs["key_comp"]) == {0}
    assert again.obsm["key_resp"].shape == (180, 1)
    assert cohortgmm.read_gmm(again, "key").keys() == {"P1", "P2", "P3"}


def test_entries_under_other_keys_are_kept(tmp_path):
    adata = make_cohort()
    adata.uns["pca"] = {"variance": np.ones(3)}
    adata.obs["X_comp"] = "theirs"
    adata.write_h5ad(tmp_path / "x.h5ad")
    with h5py.File(tmp_path / "x.h5ad") as file:
        check_file(file, "gmm_X_pca")
    cohortgmm.fit_gmm(adata, **OPTIONS)
    assert adata.uns["pca"].keys() == {"variance"}
    assert set(adata.obs["X_comp"]) == {"theirs"}


def test_a_file_without_uns_and_obsm_is_free(tmp_path):
    ad.AnnData(np.ones((3, 2))).write_h5ad(tmp_path / "x.h5ad")
    with h5py.File(tmp_path / "x.h5ad", "r+") as file:
        for group in ("uns", "obsm"):
            file.pop(group, None)
        check_file(file, "gmm_X")
    write_gmm(
        tmp_path / "x.h5ad", tmp_path / "y.h5ad", "gmm_X", mixtures(), CellAssignment(np.zeros(3, int), np.ones((3, 1)))
    )
    with h5py.File(tmp_path / "y.h5ad") as file:
        check_file(file, "gmm_X")


def test_the_column_of_joined_patients_replaces_nobodys(tmp_path):
    adata = make_cohort()
    adata.obs["visit"] = np.arange(adata.n_obs) % 2
    adata.obs["gmm_X_pca_patient"] = "theirs"
    adata.write_h5ad(tmp_path / "x.h5ad")
    joined = OPTIONS | {"patient_col": ["patient", "visit"]}
    with h5py.File(tmp_path / "x.h5ad") as file:
        check_file(file, "gmm_X_pca", "patient")
        check_file(file, "gmm_X_pca", ["patient"])
        with pytest.raises(DataError, match=re.escape("obs['gmm_X_pca_patient'] without mixtures")):
            check_file(file, "gmm_X_pca", joined["patient_col"])
    with pytest.raises(DataError, match=re.escape("obs['gmm_X_pca_patient'] without mixtures")):
        cohortgmm.fit_gmm(adata, **joined)
    cohortgmm.fit_gmm(adata, **OPTIONS)
    assert set(adata.obs["gmm_X_pca_patient"]) == {"theirs"}
    del (
        adata.obs["gmm_X_pca_patient"],
        adata.uns["gmm_X_pca"],
        adata.obs["gmm_X_pca_comp"],
        adata.obsm["gmm_X_pca_resp"],
    )
    for _ in range(2):  # results replace results
        cohortgmm.fit_gmm(adata, **joined)
