"""From counts that are elsewhere, with patients that no filter leaves a cell of, to mixtures."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from projects import REPOSITORY, new_project

pytestmark = pytest.mark.pipeline


def cohort_with_raw():
    """Three patients: counts in ``raw`` under Ensembl ids, scaled values of few genes in X; the cells of P{3} are dying."""
    rng = np.random.default_rng(0)
    n, n_genes = 150, 60
    counts = rng.poisson(rng.gamma(1, 2, size=n_genes) + 0.5, (n, n_genes)).astype(np.float32)
    counts[100:, :2] += 500
    obs = pd.DataFrame(
        {"patient": np.repeat(["P1", "P2", "P{3}"], 50), "condition": "x", "cell_type": "y"},
        index=[f"c{i}" for i in range(n)],
    )
    var = pd.DataFrame(
        {"symbol": ["MT-ND1", "MT-ND2", *(f"G{i}" for i in range(2, n_genes))]},
        index=[f"ENSG{i:011d}" for i in range(n_genes)],
    )
    raw = ad.AnnData(counts, obs=obs, var=var)
    cohort = raw[:, 5:20].copy()
    cohort.raw = raw
    cohort.X = counts[:, 5:20] - 3
    cohort.obsm["X_pca"] = rng.normal(size=(n, 20))
    return cohort


def test_counts_in_raw_and_a_patient_without_cells(tmp_path):
    project = new_project(tmp_path / "project", REPOSITORY, cohort_with_raw())
    options = {"enabled": True, "n_pcs": 4, "max_mito_percent": 50, "min_counts": 1}
    said = []
    for more in ({}, {"counts": "raw"}, {"counts": "raw", "symbols": "symbol"}):
        project.configure(preprocess=options | more)
        result = project.call("results/patients.tsv")
        assert result.returncode == 1
        said.append(result.stdout + result.stderr)
    assert (
        "error: preprocessing needs raw counts in X, but X holds negative numbers (-3), as scaled data do: raw.X holds "
        "whole numbers: set preprocess.counts to raw\n" in said[0]
    )
    assert "var column 'symbol' has such names, set preprocess.symbols to it\n" in said[1]
    assert "1 of 3 patients have too few cells: 'P{3}' (no cell passed the filters of preprocess)" in said[2]
    assert not any("Traceback" in text for text in said)
    project.configure(on_small_patient="drop")
    jobs = project.run()
    assert jobs["preprocess"] == 0  # it had succeeded
    assert jobs["split"] == 1
    folder = project.directory / "results"
    summary = json.loads((folder / "preprocessed" / "summary.json").read_text())
    assert summary["patients_without_cells"] == ["P{3}"]
    assert summary["filters"][-1] == {"key": "max_mito_percent", "limit": 50.0, "n_failed": 50}
    table = pd.read_csv(folder / "patients.tsv", sep="\t").set_index("patient")
    assert table["status"].to_dict() == {"P1": "ok", "P2": "ok", "P{3}": "dropped"}
    assert table.loc["P{3}", "reason"] == "no cell passed the filters of preprocess"
    result = ad.read_h5ad(folder / "cohort_gmm.h5ad")
    assert result.shape == (100, 60)
    assert result.obsm["X_pca"].shape == (100, 4)
    assert result.obsm["X_pca_input"].shape == (100, 20)
    np.testing.assert_array_equal(result.obsm["X_input"], cohort_with_raw().X[:100])


def test_the_order_of_the_rows_fits_nothing_again(tmp_path):
    demo = ad.read_h5ad(REPOSITORY / "resources" / "demo" / "liu2021_covid_pbmc.h5ad")
    cohort = demo[demo.obs["patient"].isin(["HDML", "SHD1"])].copy()
    project = new_project(tmp_path / "project", REPOSITORY, cohort)
    project.configure(preprocess={"enabled": True, "n_pcs": 5, "hvg_batch_col": "batch"})
    assert project.run()["fit/HDML/k1"] == 1
    project.configure(label_col="batch")
    jobs = project.run()
    assert jobs["split"] == 1
    assert not [job for job in jobs if job.startswith(("preprocess", "fit", "select/", "refit"))]
    cohort[np.random.default_rng(0).permutation(cohort.n_obs)].copy().write_h5ad(project.directory / "cohort.h5ad")
    jobs = project.run()
    assert jobs["preprocess"] == jobs["split"] == jobs["merge"] == 1
    assert not [job for job in jobs if job.startswith(("fit", "select/", "refit"))]
