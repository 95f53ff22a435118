"""A copy of a cohort in another folder holds what the cohort has in other files."""

import anndata as ad
import h5py
import numpy as np
import pytest
from projects import make_cohort

from cohortgmm.cohort.merge import write_gmm
from cohortgmm.cohort.uns import CellAssignment

X = make_cohort().obsm["X_pca"]
ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}


def external(file, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        file.copy("obsm/X_pca", other, "x")
    del file["obsm/X_pca"]
    file["obsm/X_pca"] = h5py.ExternalLink("other.h5", "x")


def chain(file, folder):
    external(file, folder)
    with h5py.File(folder / "group.h5", "w") as other:
        other.create_group("g")["X_pca"] = h5py.ExternalLink("other.h5", "x")
    del file["obsm"]
    file["obsm"] = h5py.ExternalLink("group.h5", "g")


def of_obs(file, folder):
    with h5py.File(folder / "obs.h5", "w") as other:
        file.copy("obs", other, "x")
    del file["obs"]
    file["obs"] = h5py.ExternalLink("obs.h5", "x")


def virtual(file, folder):
    with h5py.File(folder / "v.h5", "w") as other:
        other["x"] = X
    layout = h5py.VirtualLayout(X.shape, X.dtype)
    layout[:] = h5py.VirtualSource("v.h5", "x", X.shape)
    del file["obsm/X_pca"]
    file.create_virtual_dataset("obsm/X_pca", layout)
    file["obsm/X_pca"].attrs.update(ARRAY)


def raw_storage(file, folder):
    del file["obsm/X_pca"]
    place = [(str(folder / "raw.bin"), 0, h5py.h5f.UNLIMITED)]
    file.create_dataset("obsm/X_pca", X.shape, X.dtype, external=place)[:] = X
    file["obsm/X_pca"].attrs.update(ARRAY)


def gone(file, folder):
    file["uns/lost"] = h5py.ExternalLink("gone.h5", "x")


@pytest.mark.parametrize("change", [external, chain, of_obs, virtual, raw_storage, gone])
def test_what_lies_in_other_files_comes_along(tmp_path, change, caplog):
    folder, away = tmp_path / "data", tmp_path / "results"
    folder.mkdir()
    cohort = make_cohort()
    cohort.write_h5ad(folder / "c.h5ad")
    with h5py.File(folder / "c.h5ad", "r+") as file:
        change(file, folder)
    assigned = CellAssignment(np.zeros(180, dtype=int), np.ones((180, 1)))
    write_gmm(folder / "c.h5ad", away / "m.h5ad", "g", {"a": 1, "model": {"mu": X}}, assigned)
    for file in folder.iterdir():
        file.unlink()
    result = ad.read_h5ad(away / "m.h5ad")
    np.testing.assert_array_equal(result.obsm["X_pca"], X)
    assert result.obs["patient"].tolist() == cohort.obs["patient"].tolist()
    assert result.obs["g_comp"].tolist() == [0] * 180
    assert ("uns/lost is a broken link and is left out" in caplog.text) is (change is gone)
