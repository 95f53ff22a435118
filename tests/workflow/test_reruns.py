"""What runs again after a change, on the real DAG with real files: contracts with the user."""

import shutil

import anndata as ad
import numpy as np
import pytest
from projects import TARGETS, make_cohort

from cohortgmm.cohort.tables import read_rows

pytestmark = pytest.mark.pipeline

PATIENTS = ("P1", "P2", "P3")
AGGREGATES = {"select_cohort", "merge"}


def jobs(patients=PATIENTS, fits=(), stages=("select", "refit"), others=AGGREGATES) -> set[str]:
    """Names of jobs: every stage and every fitted k of some patients, and jobs of the whole cohort."""
    return (
        {f"{stage}/{patient}" for stage in stages for patient in patients}
        | {f"fit/{patient}/k{k}" for patient in patients for k in fits}
        | set(others)
    )


def test_without_a_change_nothing_runs(finished):
    assert not finished.run()


def test_a_change_of_one_patients_cells_reruns_that_patient(finished):
    cohort = make_cohort()
    cohort.obsm["X_pca"][3] += 0.5  # the fourth cell is of P1
    cohort.write_h5ad(finished.directory / "cohort.h5ad")
    assert set(finished.run()) == jobs(["P1"], fits=[1, 2], others=AGGREGATES | {"split"})


def permuted(cohort):
    return cohort[np.random.default_rng(0).permutation(cohort.n_obs)].copy()


def test_another_order_of_the_cells_reruns_no_patient(finished):
    before = ad.read_h5ad(finished.directory / "results" / "cohort_gmm.h5ad")
    permuted(make_cohort()).write_h5ad(finished.directory / "cohort.h5ad")
    assert set(finished.run()) == {"split", "merge"}
    after = ad.read_h5ad(finished.directory / "results" / "cohort_gmm.h5ad")[before.obs_names]
    np.testing.assert_array_equal(after.obsm["gmm_X_pca_resp"], before.obsm["gmm_X_pca_resp"])
    assert after.obs.equals(before.obs)


def test_a_patient_inserted_among_the_others_is_all_that_is_fitted(finished):
    permuted(make_cohort((*PATIENTS, "P2b"))).write_h5ad(finished.directory / "cohort.h5ad")
    assert set(finished.run()) == jobs(["P2b"], fits=[1, 2], others=AGGREGATES | {"split"})


def test_cells_that_another_patient_loses_rerun_that_patient(finished):
    cohort = make_cohort()
    cohort[np.arange(cohort.n_obs) != 65].copy().write_h5ad(finished.directory / "cohort.h5ad")  # of P2
    assert set(finished.run()) == jobs(["P2"], fits=[1, 2], others=AGGREGATES | {"split"})


def test_an_added_patient_is_all_that_is_fitted(finished):
    make_cohort((*PATIENTS, "P4")).write_h5ad(finished.directory / "cohort.h5ad")
    assert set(finished.run()) == jobs(["P4"], fits=[1, 2], others=AGGREGATES | {"split"})


def test_a_removed_patient_leaves_the_results(finished):
    make_cohort(PATIENTS[:2]).write_h5ad(finished.directory / "cohort.h5ad")
    assert set(finished.run()) == AGGREGATES | {"split"}
    assert not (finished.directory / "results" / "patients" / "P3.npz").exists()
    written = ad.read_h5ad(finished.directory / "results" / "cohort_gmm.h5ad")
    assert written.uns["gmm_X_pca"]["weight_inference"]["distribution_ids"].tolist() == ["P1", "P2"]


def test_a_new_k_is_all_that_is_fitted(finished):
    finished.configure(gmm={"k_comps": [1, 2, 3]})
    assert set(finished.run()) == jobs(fits=[3])


def k_by_patient(project) -> dict[str, str]:
    return {row["patient"]: row["k"] for row in read_rows(project.directory / "results" / "selection.tsv")}


@pytest.mark.parametrize("refit", ["none", "full"])
def test_another_criterion_refits_the_patients_of_another_k_only(finished, refit):
    """P2 has three groups, which only the held-out likelihood takes for two; AIC takes three everywhere."""
    cohort = make_cohort()
    cohort.obsm["X_pca"][60:120:4] -= 8.0
    cohort.write_h5ad(finished.directory / "cohort.h5ad")
    finished.configure(gmm={"k_comps": [1, 2, 3], "refit": refit, "k_selection_metric": "aic"})
    finished.run()
    for metric, moved in (("bic", {"P1", "P3"}), ("heldout_nll", {"P2"})):
        before = k_by_patient(finished)
        finished.configure(gmm={"k_selection_metric": metric})
        assert set(finished.run()) == jobs(moved, stages=["refit"])
        after = k_by_patient(finished)
        assert {patient for patient in PATIENTS if after[patient] != before[patient]} == moved
        assert not finished.run()


def test_a_choice_that_changes_with_the_scores_is_recorded(finished):
    """The k that a refit ran with is only known once this run's scores are there."""
    finished.configure(gmm={"k_comps": [1], "refit": "full"})
    finished.run()
    assert set(k_by_patient(finished).values()) == {"1"}
    finished.configure(gmm={"k_comps": [1, 2]})
    finished.run()
    assert set(k_by_patient(finished).values()) == {"2"}
    assert not finished.run()
    finished.configure(gmm={"k_comps": [1, 2, 3], "train_size": 0.7})
    finished.run()
    assert not finished.run()


def test_another_tolerance_fits_everything(finished):
    finished.configure(gmm={"tol": 0.01})
    assert set(finished.run()) == jobs(fits=[1, 2])


def test_another_refit_fits_no_candidate(finished):
    finished.configure(gmm={"refit": "full"})
    assert set(finished.run()) == jobs(stages=["refit"], others=["merge"])


def test_verbosity_reruns_nothing(finished):
    finished.configure(gmm={"verbose": False})
    assert not finished.run()


def test_comments_and_touched_files_rerun_nothing(finished):
    for path in ("scripts/fit.py", "src/cohortgmm/mixture/fit.py", "workflow/rules/fit.smk"):
        file = finished.workflow / path
        file.write_text(file.read_text() + "\n# a remark\n")
    for touched in finished.workflow.rglob("*.py"):
        touched.touch()
    (finished.directory / "cohort.h5ad").touch()
    assert not finished.run()


def test_a_change_of_the_em_code_fits_everything(finished):
    file = finished.workflow / "src" / "cohortgmm" / "mixture" / "em" / "mstep.py"
    assert "_DEAD = 1e-10" in file.read_text()
    file.write_text(file.read_text().replace("_DEAD = 1e-10", "_DEAD = 1e-11"))
    assert set(finished.run()) == jobs(fits=[1, 2])


def test_a_change_of_a_script_reruns_its_rule_and_what_follows(finished):
    file = finished.workflow / "scripts" / "select.py"
    text = file.read_text()
    assert "best = criteria_by_k(rows)" in text
    file.write_text(text.replace("best = criteria_by_k(rows)", "best = criteria_by_k(list(rows))"))
    assert set(finished.run()) == jobs()


def test_a_change_of_the_figures_code_fits_nothing(finished):
    assert finished.call().returncode == 0
    file = finished.workflow / "src" / "cohortgmm" / "plots" / "overview.py"
    file.write_text(file.read_text() + "\nchanged = 1\n")
    assert set(finished.run("all")) == {"qc_criteria", "qc_overview", "qc_composition", "efficiency"}


def test_one_patient_can_be_forced(finished):
    before = finished.results()
    assert set(finished.run("-F", "results/models/P2.npz")) == jobs(["P2"], fits=[1, 2], others=["split"])
    finished.run()
    assert finished.results() == before


def test_a_lost_model_is_made_again(finished):
    before = finished.results()
    (finished.directory / "results" / "models" / "P3.npz").unlink()
    assert not finished.run()  # the merged file has it
    assert set(finished.run("results/models/P3.npz")) == {"refit/P3"}
    finished.run()
    assert finished.results() == before


def test_lost_cells_are_named_with_the_remedy(finished):
    before = finished.results()
    (finished.directory / "results" / "patients" / "P1.npz").unlink()
    result = finished.call(*TARGETS)
    assert result.returncode != 0
    assert "1 array files are gone, the first is results/patients/P1.npz: run once with -R split" in result.stderr
    assert set(finished.run("-R", "split", "--", *TARGETS)) == {"split"}
    finished.run()
    assert finished.results() == before


def test_all_results_lost_come_back_the_same(finished):
    before = finished.results()
    shutil.rmtree(finished.directory / "results")
    finished.run()
    assert finished.results() == before


@pytest.mark.parametrize("name", ["positions.npz", "patients.tsv"])
def test_a_change_of_the_configuration_is_seen_where_a_part_of_the_division_is_lost(finished, name):
    (finished.directory / "results" / name).unlink()
    finished.configure(gmm={"tol": 1e-5})
    assert set(finished.run()) == jobs(fits=[1, 2], others=AGGREGATES | {"split"})
    assert not finished.run()


def test_results_without_records_are_refused_only_where_they_are_of_another_configuration(finished):
    shutil.rmtree(finished.directory / ".snakemake")
    assert not finished.run()
    finished.configure(gmm={"tol": 1e-5})
    for arguments in (TARGETS, ("-n",), ("--report", "report.html")):
        result = finished.call(*arguments)
        assert result.returncode != 0
        assert "error: results/ holds results of another configuration or version, and Snakemake's" in result.stderr
        assert "Traceback" not in result.stderr
    shutil.rmtree(finished.directory / "results")
    assert set(finished.run()) == jobs(fits=[1, 2], others=AGGREGATES | {"split"})


def test_one_patients_target_makes_only_that_patient(project):
    assert set(project.run("results/models/P2.npz")) == jobs(["P2"], fits=[1, 2], others=["split"])
    assert set(project.run(*TARGETS)) == jobs(["P1", "P3"], fits=[1, 2])
