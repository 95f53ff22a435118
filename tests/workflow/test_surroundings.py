"""What surrounds a run: inputs that are its own results, other configurations, damaged results, places and locales."""

import os
import re
import shutil
import subprocess
import sys

import anndata as ad
import pytest
import yaml
from projects import REPOSITORY, TARGETS, make_cohort, new_project

pytestmark = pytest.mark.pipeline


def command_of(project, *arguments, name="config.yaml"):
    """One of the commands beside Snakemake, as a user calls it."""
    place = ["--snakefile", project.workflow / "Snakefile", "--configfile", project.directory / name]
    done = subprocess.run(
        [sys.executable, "-m", "cohortgmm", *arguments, *map(str, place), "--directory", str(project.directory)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(project.workflow / "src"), "PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def refused(project, *arguments):
    """Everything said by a call that must fail, without a traceback."""
    done = project.call(*arguments)
    output = done.stdout + done.stderr
    assert done.returncode != 0, output
    assert "Traceback" not in output
    return output


def snapshot(project):
    """Results with their content; without what every call writes."""
    folder = project.directory / "results"
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] not in ("logs", "benchmarks", ".lock", "failed.tsv")
    }


# Inputs that are results


def test_results_as_input_are_refused_before_anything_is_removed(finished):
    before = snapshot(finished)
    results = finished.directory / "results"
    (finished.directory / "link.npz").symlink_to(results / "models" / "P1.npz")
    os.link(results / "patients.tsv", finished.directory / "second.tsv")
    finished.configure(
        input="results/cohort_gmm.h5ad", patients="second.tsv", gmm={"k_comps": None, "reference": "link.npz"}
    )
    expected = (
        ("input", "results/cohort_gmm.h5ad", "cohort_gmm.h5ad", "move or copy it out of results/"),
        ("patients", "second.tsv", "patients.tsv", "`python -m cohortgmm keep DIR` and name DIR/patients.tsv"),
        ("gmm.reference", "link.npz", "models/P1.npz", "`python -m cohortgmm keep DIR` and name DIR/models/P1.npz"),
    )
    for arguments in (("-n",), TARGETS, ("-F", "results/models/P1.npz")):
        lines = refused(finished, *arguments).splitlines()
        for key, name, result, way in expected:
            (line,) = [line for line in lines if f": {key}: {name} is one of this run's own results" in line]
            assert f"(results/{result})" in line
            assert way in line
    for command in (["status"], ["submit", "--print"], ["shard", "1/2"]):
        done = command_of(finished, *command)
        assert done.returncode == 1
        assert "is one of this run's own results" in done.stderr
    assert snapshot(finished) == before


def test_models_that_are_kept_can_be_mapped_onto(finished):
    target = finished.directory.parent / "kept models"
    done = command_of(finished, "keep", str(target))
    assert done.returncode == 0, done.stderr
    values = yaml.safe_load(done.stdout.split("\n", 2)[2])
    assert values == {"gmm": {"reference": f"{target}/models/P1.npz"}}
    finished.configure(gmm={"k_comps": None} | values["gmm"])
    finished.run()
    assert set(ad.read_h5ad(finished.directory / "results" / "cohort_gmm.h5ad").uns) == {"gmm_X_pca"}


# Another configuration


def test_a_report_and_the_status_of_another_configuration(finished):
    finished.run("results/cohort_gmm.h5ad", "results/qc/efficiency.tsv")
    assert finished.call("--report", "old.html").returncode == 0
    assert command_of(finished, "status").stdout.startswith("3 patients × 2 k: 6 of 6 fits done\n")
    finished.configure(gmm={"tol": 0.01})
    output = refused(finished, "--report", "new.html")
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "no report: the results are not, or not all, those of this configuration and input" in line
    assert "6 fit" in line
    assert line.endswith(f"--configfile {finished.directory}/config.yaml --cores all")
    assert not (finished.directory / "new.html").exists()
    assert command_of(finished, "status").stdout.splitlines()[:2] == [
        "3 patients × 2 k: 0 of 6 fits done, 6 of another configuration",
        "0 of 3 final mixtures (3 more are of another configuration); cohort_gmm.h5ad is of another configuration",
    ]
    assert command_of(finished, "keep", str(finished.directory / "kept")).returncode == 1
    finished.run("results/cohort_gmm.h5ad", "results/qc/efficiency.tsv")
    assert command_of(finished, "status").stdout.startswith("3 patients × 2 k: 6 of 6 fits done\n")
    assert finished.call("--report", "new.html").returncode == 0


# Damaged results


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("scores.tsv", "results/scores.tsv holds no scores: "),
        ("selection/P1.tsv", "results/selection/P1.tsv holds no scores: "),
        ("fits/P1/k2.json", "results/fits/P1/k2.json holds no scores: "),
        ("patients.tsv", "results/patients.tsv holds no patients: "),
    ],
)
def test_damaged_results_are_named_and_made_anew_once_removed(finished, name, line):
    path = finished.directory / "results" / name
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        output = refused(finished, *TARGETS)
        assert [text for text in output.splitlines() if text.startswith(f"error: {line}") or f": {line}" in text]
        assert "; remove it and run again" in output
    path.unlink()
    finished.run()
    assert path.is_file()


def test_without_the_table_of_patients_nothing_counts_as_up_to_date(finished):
    table = finished.directory / "results" / "patients.tsv"
    content = table.read_bytes()
    table.unlink()
    assert set(finished.run("results/cohort_gmm.h5ad")) == {"split"}
    assert table.read_bytes() == content
    table.unlink()
    finished.configure(gmm={"tol": 0.01})
    jobs = finished.run("results/cohort_gmm.h5ad")
    assert {f"fit/P{i}/k{k}" for i in (1, 2, 3) for k in (1, 2)} | {"split", "merge"} <= set(jobs)


# A target that is taken for a configuration


def test_targets_without_dashes(finished):
    arguments = ["--cores", "1", "-n", "--configfile", "config.yaml", "results/fits/P1/k1.json"]
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(finished.workflow / "Snakefile"), *arguments]
    done = subprocess.run(command, cwd=finished.directory, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert (
        "results/fits/P1/k1.json was taken for a configuration: --configfile takes all that follows it, so put -- before "
        f"targets: snakemake --configfile {finished.directory}/config.yaml -- results/fits/P1/k1.json"
    ) in done.stdout + done.stderr


# A dry run looks at the input


@pytest.mark.parametrize("targets", [(), ("results/patients.tsv",), ("results/models/P1.npz",)])
def test_a_dry_run_fails_where_the_run_would(project, targets):
    project.configure(patient_col="donor", celltype_col="type", use_rep="X_pc")
    output = refused(project, "-n", *targets)
    told = [line for line in output.splitlines() if line.startswith("error: ")]
    assert [line.split(":")[1].strip() for line in told] == ["patient_col", "celltype_col", "use_rep"]
    assert told[2].endswith("obsm key 'X_pc' is not in the data; did you mean 'X_pca'? known: X_pca")
    project.configure(patient_col="patient", celltype_col="cell_type")
    (line,) = [line for line in refused(project, *TARGETS).splitlines() if line.startswith("error: ")]
    assert line == told[2]  # the job says the same


# Places


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("place", [".", "results"])
def test_a_dry_run_needs_to_write_nothing(finished, place):
    finished.configure(gmm={"tol": 0.01})
    before = snapshot(finished)
    path = finished.directory / place
    subprocess.run(["mount", "--bind", path, path], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)
        done = finished.call("-n")
        assert done.returncode == 0, done.stderr
        assert re.search(r"^fit +6$", done.stdout + done.stderr, re.MULTILINE)
        output = refused(finished, *TARGETS)
        assert "results cannot be written: " in output
        assert "is not writable; choose another with --directory" in output
        assert command_of(finished, "status").returncode == 0
    finally:
        subprocess.run(["umount", path], check=True)
    assert snapshot(finished) == before


def test_results_may_be_a_link_to_another_disk(project, finished):
    disk = project.directory.parent / "disk"
    disk.mkdir()
    (project.directory / "results").symlink_to(disk)
    project.run()
    assert project.results() == finished.results()
    shutil.rmtree(disk)
    output = refused(project, *TARGETS)
    assert (
        f"{project.directory}/results is a link to {disk}, which does not exist: make that folder, or remove" in output
    )


@pytest.mark.parametrize("name", ["it's été", 'a "quoted" one', "50% of [it] in a$HOME b"])
def test_a_working_directory_of_any_name(tmp_path, name):
    """With a configuration that is named by a relative path."""
    project = new_project(tmp_path / name, REPOSITORY, make_cohort(("P1",)))
    command = [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--cores", "2"),
        *("--directory", name, "--configfile", f"{name}/config.yaml", "--", *TARGETS),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert command_of(project, "status").stdout.startswith("1 patients × 2 k: 2 of 2 fits done\n")


def test_a_locale_that_is_not_utf_8(tmp_path):
    project = new_project(tmp_path / "été", REPOSITORY, make_cohort(("Zoé", "患者 1")))
    (project.directory / "cohort.h5ad").rename(project.directory / "données.h5ad")
    project.configure(input="données.h5ad")
    surroundings = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    surroundings |= {"PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run(project.command(*TARGETS), capture_output=True, env=surroundings, check=False)
    output = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == 0, output
    written = ad.read_h5ad(project.directory / "results" / "cohort_gmm.h5ad")
    assert written.uns["gmm_X_pca"]["weight_inference"]["distribution_ids"].tolist() == ["Zoé", "患者 1"]
    assert written.uns["gmm_X_pca"]["provenance"]["source"] == "données.h5ad"
    arguments = ["status", "--snakefile", str(REPOSITORY / "Snakefile"), "--configfile", "config.yaml"]
    done = subprocess.run(
        [sys.executable, "-m", "cohortgmm", *arguments],
        cwd=project.directory,
        capture_output=True,
        env=surroundings,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode("ascii").startswith("2 patients \\xd7 2 k: 4 of 4 fits done\n")
