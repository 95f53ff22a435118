"""Runs that are killed, collide, or cannot write: nothing half-written is taken for whole, and one line says why."""

import os
import signal
import subprocess
import time

import pytest
from projects import TARGETS, make_cohort

pytestmark = pytest.mark.pipeline


def output_of(result: subprocess.CompletedProcess) -> str:
    return result.stdout + result.stderr


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGKILL], ids=lambda kill: kill.name)
def test_a_killed_run_is_finished_by_the_next(project, finished, kill):
    process = subprocess.Popen(
        project.command(*TARGETS), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list(project.directory.glob("results/fits/*/k*.json")):  # in the middle of the fits
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, kill)
    process.wait(timeout=60)
    assert not (project.directory / "results" / "cohort_gmm.h5ad").exists()
    project.run()
    assert project.results() == finished.results()


def test_jobs_that_outlive_their_run_are_told(project, finished):
    """Only Snakemake itself is killed, as when memory runs out."""
    (project.directory / "slow.py").write_text(
        "import os, time\nimport numpy as np\n\ndef seen(x):\n    while os.path.exists('hold'):\n        time.sleep(0.1)\n"
        "    return np.ones(len(x))\n"
    )
    (project.directory / "hold").touch()
    unchanged = (project.directory / "config.yaml").read_text()
    project.configure(gmm={"completeness": {"function": "slow.py:seen"}})
    process = subprocess.Popen(
        project.command(*TARGETS), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list(project.directory.glob("results/logs/fit/*/k*.log")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    (project.directory / "config.yaml").write_text(unchanged)
    refused = project.call(*TARGETS)
    assert refused.returncode != 0
    assert "jobs of a killed run are still at work; wait for them, or end them with: kill " in refused.stderr
    (project.directory / "hold").unlink()
    project.run()
    assert project.results() == finished.results()


def test_a_second_run_in_the_same_folder_is_refused(project):
    project.run("results/patients.tsv")
    lock = project.directory / "results" / ".lock"
    holder = subprocess.Popen(
        ["flock", "--no-fork", str(lock), "sleep", "60"]  # another program that holds the lock as a run does
    )
    try:
        time.sleep(0.5)
        result = project.call(*TARGETS)
        assert result.returncode != 0
        assert "is in use by another run" in output_of(result)
    finally:
        holder.kill()
        holder.wait()
    project.run()


def test_a_failed_fit_names_patient_and_k_and_keeps_the_rest(project):
    cohort = make_cohort()
    cohort.obsm["X_pca"][60:120] = 1.0  # all cells of P2 are the same
    cohort.write_h5ad(project.directory / "cohort.h5ad")
    project.configure(gmm={"singularity_handling": "strict", "k_comps": [1]})
    result = project.call(*TARGETS)
    assert result.returncode != 0
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: patient 'P2', k=1: component 0")]
    assert "singularity_handling" in line
    assert "1 failed:" in result.stderr
    assert "results/logs/fit/P2/k1.log" in result.stderr
    assert "Traceback" not in result.stderr
    assert {path.stem for path in (project.directory / "results" / "models").glob("*.npz")} == {"P1", "P3"}
    project.configure(gmm={"singularity_handling": "guarded"})
    project.run()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_named_and_leaves_nothing_half_written(project, finished):
    results = project.directory / "results"
    results.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(results)], check=True)
    try:
        result = project.call(*TARGETS)
        assert result.returncode != 0
        assert "No space left on device" in output_of(result)
        assert not list(results.rglob(".*.npz"))
        subprocess.run(["mount", "-o", "remount,size=50m", str(results)], check=True)
        project.run()
        assert project.results() == finished.results()
    finally:
        subprocess.run(["umount", str(results)], check=True)


def test_results_that_cannot_be_a_folder_are_named(project):
    (project.directory / "results").write_text("a file in the way\n")
    result = project.call(*TARGETS)
    assert result.returncode != 0
    assert f"results cannot be written: {project.directory / 'results'} is not a folder" in output_of(result)
    assert "Traceback" not in output_of(result)
    assert (project.directory / "results").read_text() == "a file in the way\n"
