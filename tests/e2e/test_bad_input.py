"""Input and configurations that cannot be used: the run stops with one clear line, and what was there stays."""

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from projects import TARGETS, make_cohort

pytestmark = pytest.mark.pipeline


def refused(project, *lines, targets=TARGETS, begins="error: "):
    """Run it; it must fail and say every one of these lines once, without a traceback."""
    result = project.call(*targets)
    assert result.returncode != 0
    output = result.stdout + result.stderr
    assert "Traceback" not in output
    for line in lines:
        said = [text for text in result.stderr.splitlines() if text.startswith(begins + line)]
        assert len(said) == 1, (line, result.stderr)
    return output


def snapshot(project):
    """Every file of the results with its content.

    Without the logs, the lock, the list of what failed, and the tables of the stage that fails: Snakemake removes what a
    failed job was to write.
    """
    folder = project.directory / "results"
    parts = ("logs", "benchmarks", ".lock", "failed.tsv", "patients.tsv", "positions.npz")
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] not in parts
    }


def test_a_configuration_that_cannot_be_used_runs_nothing(project):
    project.configure(
        inputt="x.h5ad", gmm={"kcomps": [1, 2], "tol": "small"}, qc={"umap": "yes"}, patients="sheet.tsv", min_cells=0
    )
    output = refused(
        project,
        "inputt: unknown key; did you mean input?",
        "gmm.kcomps: unknown key; did you mean k_comps?",
        "gmm.tol: input should be a valid number, got 'small'",
        "qc.umap: input should be a valid boolean, got 'yes'",
        "min_cells: input should be greater than or equal to 2, got 0",
        begins="  ",
    )
    assert f"{project.directory}/config.yaml: 5 problems" in output
    assert not (project.directory / "results").exists()


def test_a_criterion_that_has_no_cells_runs_nothing(finished):
    before = snapshot(finished)
    finished.configure(gmm={"train_size": 1, "k_selection_metric": "heldout_nll"})
    output = refused(finished)
    assert (
        "config.yaml: gmm: train_size 1 holds no cells out, which k_selection_metric heldout_nll needs: "
        "lower train_size or choose aic or bic"
    ) in output
    assert snapshot(finished) == before


def test_an_input_that_is_not_there_runs_nothing(project):
    (project.directory / "cohort.h5ad").unlink()
    project.configure(patients="sheet.tsv")
    output = refused(project)
    for key, name in (("input", "cohort.h5ad"), ("patients", "sheet.tsv")):
        assert f"config.yaml: {key}: no such file: {name} (looked in {project.directory})" in output
    assert not (project.directory / "results").exists()


def test_an_input_of_another_kind_keeps_the_results(finished):
    before = snapshot(finished)
    path = finished.directory / "cohort.h5ad"
    path.write_text("patient\tcell\nP1\tc0\n")
    output = refused(finished, "cohort.h5ad: not an .h5ad file (")
    assert "1 failed:" in output
    assert "[results/logs/split.log]" in output
    assert snapshot(finished) == before
    path.unlink()
    with h5py.File(path, "w") as file:
        file["matrix"] = np.eye(3)
    refused(finished, "cohort.h5ad: an HDF5 file, but not an AnnData one (it has no obs and var)")
    assert snapshot(finished) == before


def test_a_name_that_is_not_in_the_data_keeps_the_results(finished):
    before = snapshot(finished)
    finished.configure(patient_col="patients")
    refused(
        finished, "patient_col: obs column 'patients' is not in the data; did you mean 'patient'? known: cell_type,"
    )
    finished.configure(patient_col="patient", use_rep="X_pcs")
    refused(finished, "use_rep: obsm key 'X_pcs' is not in the data; did you mean 'X_pca'? known: X_pca")
    assert snapshot(finished) == before


def test_cells_that_cannot_be_used_keep_the_results(finished):
    before = snapshot(finished)
    assert len(before) > 10
    cohort = make_cohort()
    cohort.obsm["X_pca"][[70, 130], 0] = np.nan
    cohort.write_h5ad(finished.directory / "cohort.h5ad")
    refused(
        finished,
        "obsm['X_pca'] has 2 NaN or infinite values in 2 cells, the first in patient 'P2': "
        "remove these cells or recompute the embedding",
    )
    assert snapshot(finished) == before
    cohort = make_cohort()
    cohort[(cohort.obs["patient"] != "P3") | (np.arange(180) % 60 < 19)].copy().write_h5ad(
        finished.directory / "cohort.h5ad"
    )
    refused(
        finished,
        "1 of 3 patients have too few cells: 'P3' (19 cells, min_cells is 20). "
        "Use a smaller k or a smaller min_cells, or set on_small_patient to drop to leave them out",
    )
    assert snapshot(finished) == before
    make_cohort().write_h5ad(finished.directory / "cohort.h5ad")
    jobs = finished.run()
    assert not [job for job in jobs if job.startswith(("fit", "refit", "select/"))]
    assert snapshot(finished) == before


def test_a_key_that_is_given_twice_runs_nothing(project):
    path = project.directory / "config.yaml"
    path.write_text(path.read_text() + "seed: 1\nseed: 2\n")
    output = refused(project)
    last = path.read_text().count("\n")
    assert f"config.yaml: the key seed is given twice, in lines {last - 1} and {last}: remove one of them" in output
    assert not (project.directory / "results").exists()


def test_rows_that_do_not_fit_and_labels_that_vary(project):
    path = project.directory / "cohort.h5ad"
    with h5py.File(path, "r+") as file:
        x, attributes = file["obsm/X_pca"][:], dict(file["obsm/X_pca"].attrs)
        del file["obsm/X_pca"]
        file["obsm/X_pca"] = x.T
        file["obsm/X_pca"].attrs.update(attributes)
    refused(
        project, "cohort.h5ad: obsm['X_pca'] has 3 rows for 180 cells, it looks transposed: it needs one row for each"
    )
    cohort = make_cohort()
    cohort.obs["timepoint"] = np.tile(np.repeat(["before", "after"], 30), 3)
    cohort.obs["condition"] = np.where(cohort.obs["timepoint"] == "before", "sick", "well")
    cohort.write_h5ad(path)
    refused(
        project,
        "label_col 'condition': the cells of 3 patients have several labels: 'P1' (30 sick, 30 well); 'P2' (30 sick, 30 "
        "well); 'P3' (30 sick, 30 well). The obs column 'timepoint' divides them into units of one label: "
        "patient_col: [patient, timepoint]; on_mixed_label: majority takes the most frequent label",
    )
    project.configure(patient_col=["patient", "timepoint"])
    project.run()
    merged = ad.read_h5ad(project.directory / "results" / "cohort_gmm.h5ad")
    assert merged.obs["gmm_X_pca_patient"].value_counts().tolist() == [30] * 6
    labels = pd.read_csv(project.directory / "results" / "patients.tsv", sep="\t").set_index("patient")["label"]
    assert labels.to_dict() == {
        f"P{i}_{time}": label for i in (1, 2, 3) for time, label in (("before", "sick"), ("after", "well"))
    }
