"""What a run leaves behind: the same bytes whatever the number of cores, the same models as the API, every mode."""

import json
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from projects import REPOSITORY, TARGETS, make_cohort, new_project

import cohortgmm
from cohortgmm.storage.names import escape_id

pytestmark = pytest.mark.pipeline

AWKWARD = ("a b", "a/b", "b=2F", "Ünïcode 患者", ".", "_cohort", "-x", "NA", "7", "x'y\"z", "$HOME;*?")


def test_one_and_two_cores_give_the_same_bytes(project, finished):
    project.run(cores=1)
    assert project.results() == finished.results()


def assert_same(ours, theirs):
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert_same(value, theirs[key])
    else:
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "gmm",
    [
        {"k_comps": [1, 2, 3], "k_selection_metric": "heldout_nll", "refit": "full"},
        {"k_comps": [1, 2], "component_sharing": "global", "covariance_type": "diag"},
        {"k_comps": 2},
        {"k_comps": None, "k_selection_metric": "bic"},
    ],
    ids=["selected", "global", "fixed", "default range"],
)
def test_pipeline_and_api_agree_bit_by_bit(project, gmm):
    project.configure(gmm=gmm)
    project.run("--set-threads", "fit=2", "refit=2", "--", *TARGETS)
    written = ad.read_h5ad(project.directory / "results" / "cohort_gmm.h5ad")
    direct = make_cohort()
    cohortgmm.fit_gmm(direct, patient_col="patient", use_rep="X_pca", verbose=False, n_jobs=2, **gmm)
    ours, theirs = written.uns["gmm_X_pca"], direct.uns["gmm_X_pca"]
    for name in ("mu", "var", "pi"):
        np.testing.assert_array_equal(ours["model"][name], theirs["model"][name])
    np.testing.assert_array_equal(ours["distribution_weights"], theirs["distribution_weights"])
    np.testing.assert_array_equal(ours["distribution_n_components"], theirs["distribution_n_components"])
    np.testing.assert_array_equal(written.obs["gmm_X_pca_comp"], direct.obs["gmm_X_pca_comp"])
    np.testing.assert_array_equal(written.obsm["gmm_X_pca_resp"], direct.obsm["gmm_X_pca_resp"])
    assert ("selection" in ours) == ("selection" in theirs)
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {"provenance"}:
        assert_same(ours[name], theirs[name])


def test_the_tables_hold_what_they_say(project):
    project.configure(gmm={"k_comps": [1, 2, 3, 40], "k_selection_metric": "heldout_nll"})
    project.run()
    results = project.directory / "results"
    scores = pd.read_csv(results / "scores.tsv", sep="\t")
    columns = (
        "patient k n_train n_val log_likelihood aic bic train_nll heldout_nll nll_gap n_iter converged seconds status"
    )
    assert " ".join(scores.columns[:14]) == columns
    assert len(scores) == 3 * 4
    skipped = scores[scores["status"] == "skipped"]
    assert skipped["k"].unique().tolist() == [40]
    assert skipped["aic"].isna().all()
    assert skipped["reason"].str.contains("30 training cells").all()
    fitted = scores[scores["status"] == "ok"]
    parameters = fitted["k"] * 3 + fitted["k"] * 6 + fitted["k"] - 1  # full covariances in 3 dimensions
    np.testing.assert_allclose(fitted["aic"], -2 * fitted["log_likelihood"] + 2 * parameters)
    np.testing.assert_allclose(fitted["bic"], -2 * fitted["log_likelihood"] + parameters * np.log(30))
    np.testing.assert_allclose(fitted["train_nll"], -fitted["log_likelihood"] / 30)
    np.testing.assert_allclose(fitted["nll_gap"], fitted["heldout_nll"] - fitted["train_nll"])
    selection = pd.read_csv(results / "selection.tsv", sep="\t").set_index("patient")
    assert (
        selection["k"] == fitted.loc[fitted.groupby("patient")["heldout_nll"].idxmin()].set_index("patient")["k"]
    ).all()
    model = cohortgmm.GaussianMixture.load(results / "models" / "P1.npz")
    cells = np.load(results / "patients" / "P1.npz")
    row = fitted[(fitted["patient"] == "P1") & (fitted["k"] == model.n_components)].iloc[0]
    heldout = model.log_prob(cells["x"][~cells["train"]].astype(float))
    np.testing.assert_allclose(row["heldout_nll"], -heldout.mean(), rtol=1e-12)
    score = json.loads((results / "fits" / "P1" / "k40.json").read_text())
    assert score["status"] == "skipped"
    assert score["aic"] is None


def test_the_rest_of_the_input_is_kept(project):
    cohort = make_cohort()
    cohort.layers["raw"] = np.arange(cohort.n_obs, dtype=np.float32)[:, None]
    cohort.uns["note"] = {"text": "kept", "numbers": np.arange(3)}
    cohort.obs["age"] = pd.Categorical(np.where(np.arange(cohort.n_obs) % 3, "old", "young"))
    cohort.write_h5ad(project.directory / "cohort.h5ad")
    project.run()
    written = ad.read_h5ad(project.directory / "results" / "cohort_gmm.h5ad")
    np.testing.assert_array_equal(written.layers["raw"], cohort.layers["raw"])
    assert written.uns["note"]["text"] == "kept"
    pd.testing.assert_frame_equal(written.obs[cohort.obs.columns], ad.read_h5ad(project.directory / "cohort.h5ad").obs)
    assert written.uns["gmm_X_pca"]["provenance"]["source"] == "cohort.h5ad"


def test_awkward_patient_ids_come_through(project):
    make_cohort(AWKWARD).write_h5ad(project.directory / "cohort.h5ad")
    project.run("--", "results/cohort_gmm.h5ad", f"results/models/{escape_id('a/b')}.npz")
    models = cohortgmm.read_gmm(project.directory / "results" / "cohort_gmm.h5ad")
    assert set(models) == set(AWKWARD)
    stored = ad.read_h5ad(project.directory / "results" / "cohort_gmm.h5ad").uns["gmm_X_pca"]["selection"]
    assert len(stored["best_k_by_distribution"]) == len(AWKWARD)
    assert all(np.ndim(k) == 0 for k in stored["best_k_by_distribution"].values())


def test_a_sample_sheet_shows_every_job_and_names_the_patients(project):
    (project.directory / "sheet.tsv").write_text("patient\tsite\nP1\tx\nP3\ty\n")
    project.configure(patients="sheet.tsv")
    planned = project.call("--dry-run", "results/cohort_gmm.h5ad")
    assert planned.returncode == 0, planned.stderr
    assert re.search(r"^fit +4$", planned.stdout + planned.stderr, re.MULTILINE)
    ran = project.run()
    assert {job for job in ran if job.startswith("fit")} == {f"fit/{p}/k{k}" for p in ("P1", "P3") for k in (1, 2)}
    assert list(cohortgmm.read_gmm(project.directory / "results" / "cohort_gmm.h5ad")) == ["P1", "P3"]
    (project.directory / "sheet.tsv").write_text("patient\nP1\nP3\nP2\n")
    # Of patients that have been split before, a dry run takes the cells as they are; the new one is foreseen.
    assert re.search(r"^fit +2$", project.call("--dry-run", "results/cohort_gmm.h5ad").stdout, re.MULTILINE)
    assert {job for job in project.run() if job.startswith("fit")} == {"fit/P2/k1", "fit/P2/k2"}


def test_batches_make_the_same(project, finished):
    early = project.call("--batch", "merge=1/2", "--", "results/cohort_gmm.h5ad")
    assert early.returncode
    assert "split the cohort first, snakemake results/patients.tsv" in early.stderr
    project.run("results/patients.tsv")
    first, last = (project.run("--batch", f"merge={i}/2", "--", "results/cohort_gmm.h5ad") for i in (1, 2))
    assert first["refit/P1"] == 1
    assert not {"merge", "select_cohort"} & set(first)
    assert last["merge"] == last["select_cohort"] == 1
    assert not set(first) & set(last)
    assert not project.run()
    assert project.results() == finished.results()


@pytest.mark.parametrize("sheet", [False, True], ids=["all patients", "sheet"])
def test_small_patients_are_dropped_where_asked(project, sheet):
    cohort = make_cohort()
    cohort = cohort[(cohort.obs["patient"] != "P2") | (np.arange(cohort.n_obs) % 60 < 5)].copy()
    cohort.write_h5ad(project.directory / "cohort.h5ad")
    if sheet:
        (project.directory / "sheet.tsv").write_text("patient\nP1\nP2\nP3\n")
        project.configure(patients="sheet.tsv")
    project.configure(on_small_patient="drop")
    project.run()
    table = pd.read_csv(project.directory / "results" / "patients.tsv", sep="\t").set_index("patient")
    assert table["status"].to_dict() == {"P1": "ok", "P2": "dropped", "P3": "ok"}
    written = ad.read_h5ad(project.directory / "results" / "cohort_gmm.h5ad")
    assert (written.obs["gmm_X_pca_comp"][written.obs["patient"] == "P2"] == -1).all()
    assert list(cohortgmm.read_gmm(written)) == ["P1", "P3"]


def test_figures_report_and_umap(project):
    project.configure(qc={"umap": True})
    result = project.call()
    assert result.returncode == 0, result.stderr
    qc = project.directory / "results" / "qc"
    for name in ("criteria", "overview", "composition", "patients/P1", "patients/P3"):
        assert (qc / f"{name}.svg").read_text().startswith("<?xml")
        assert (qc / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    umap = np.load(qc / "cells.npz")["umap"]
    assert np.isfinite(umap).all()
    assert (project.call("--report", "results/report.html")).returncode == 0
    page = (project.directory / "results" / "report.html").read_text()
    assert all(word in page for word in ("Cohort", "Patients", "Tables", "overview", "P2"))
    first = {path: path.read_bytes() for path in qc.rglob("*.*g")}
    assert project.call("-F").returncode == 0
    assert {path: path.read_bytes() for path in qc.rglob("*.*g")} == first


def test_counts_to_mixtures_give_the_same_bytes_on_one_and_two_cores(tmp_path):
    demo = ad.read_h5ad(REPOSITORY / "resources" / "demo" / "liu2021_covid_pbmc.h5ad")
    cohort = demo[demo.obs["patient"].isin(["HDML", "SHD1", "IM000040"])].copy()
    contents = []
    for cores in (1, 2):
        run = new_project(tmp_path / str(cores), REPOSITORY, cohort)
        run.configure(preprocess={"enabled": True, "n_pcs": 8})
        run.run(cores=cores)
        contents.append(run.results() | {"": (run.directory / "results/preprocessed/cohort.h5ad").read_bytes()})
    assert contents[0] == contents[1]
