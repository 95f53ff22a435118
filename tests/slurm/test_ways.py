"""The three ways to spend a cluster, and single patients: the same results, and the jobs that were meant."""

import os
import re
import signal
import subprocess
import sys

import pytest
import yaml
from clusters import SlurmProject, slurm, slurm_project, wait_for
from projects import TARGETS, Project, copy_workflow

pytestmark = [pytest.mark.pipeline, pytest.mark.slurm]


def ours(project, *arguments, check=True, snakemake=()):
    """A command of cohortgmm's in a project, with options for Snakemake."""
    command = [sys.executable, "-m", "cohortgmm", *arguments]
    place = ["--configfile", "config.yaml", "--snakefile", str(project.workflow / "Snakefile")]
    return subprocess.run(
        [*command, *place, "--", *snakemake],
        cwd=project.directory,
        env=os.environ | {"PYTHONPATH": str(project.workflow / "src")},
        capture_output=True,
        text=True,
        check=check,
        timeout=120,
    )


def submit(project, *options):
    """Submit a run as few SLURM jobs; their numbers by name."""
    said = ours(project, "submit", "--cpus", "2", "--mem-mb", "3000", "--minutes", "10", *options).stdout
    return dict(re.findall(r"(\w+) as SLURM job (\d+)", said))


def submit_and_wait(project, *options):
    """The same, once they have ended."""
    numbers = submit(project, *options)
    ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY"}
    wait_for(lambda: states(numbers["finish"]) <= ended, f"the jobs end: {numbers}", seconds=400)
    return numbers


def refusal(project, shard):
    """Why a shard may not run now; empty if it may, or has nothing to do."""
    done = ours(project, "shard", shard, check=False, snakemake=["--cores", "1"])
    refused = re.findall(r"\S+/results is in use by another run \(process \d+ on \S+\)", done.stderr)
    assert (done.returncode == 0) == (not refused), done.stderr
    return "".join(refused)


def states(number):
    """States of a SLURM job and, for an array, its tasks."""
    return set(slurm("squeue", f"--jobs={number}", "--states=all", "--noheader", "--array", "--format=%T").split())


def test_one_slurm_job_for_every_job(tmp_path, one_node_cluster, undisturbed):
    """From a copy of the repository in which only partition and account are edited."""
    workflow = copy_workflow(tmp_path / "clone")
    path = workflow / "profiles" / "slurm" / "config.yaml"
    text = path.read_text()
    for key in ("slurm_partition", "slurm_account"):
        assert f'  # {key}: "' in text
        text = text.replace(f"  # {key}:", f"  {key}:")
    path.write_text(text)
    assert yaml.safe_load(text)["default-resources"]["slurm_partition"] == "short"
    project = slurm_project(tmp_path / "project", workflow)
    project = SlurmProject(project.directory, workflow, workflow / "profiles" / "slurm")
    output = project.finish(project.start(*TARGETS))
    assert re.search(r"cohortgmm \S+: 3 jobs, more once .* executor slurm; time limits of 0\.\d core-hours", output)
    assert "Finished." in output
    assert project.results() == undisturbed
    logs = project.directory / "results" / "logs"
    assert len(list((logs / "fit").glob("*/k*.log"))) == 4
    assert not list((logs / "slurm").rglob("*.log"))  # those of successful jobs are removed
    # A second run has nothing to do, wherever it is started.
    assert not project.run(*TARGETS)


def test_shards(project, undisturbed):
    """Two shards at the same time, a rerun of one beside the other, and a division that is refused meanwhile."""
    project.hold()
    numbers = submit(project, "--shards", "2")
    assert list(numbers) == ["split", "shards", "finish"]
    project.wait_until_held()
    wait_for(lambda: "COMPLETED" in states(numbers["shards"]), "the other shard ends")
    # The shard that is at work is refused a second time, and so are those of another division.
    refusals = [refusal(project, shard) for shard in ("1/2", "2/2", "1/1")]
    assert sorted(map(bool, refusals)) == [False, True, True]
    assert refusals[2]
    status = ours(project, "status").stdout
    assert "2 patients × 2 k" in status
    assert "1 running" in status
    project.release()
    wait_for(lambda: states(numbers["finish"]) == {"COMPLETED"}, "the last job ends", seconds=400)
    assert states(numbers["shards"]) == {"COMPLETED"}
    assert project.results() == undisturbed
    assert "4 of 4 fits done" in ours(project, "status").stdout
    # Again: nothing is fitted twice.
    before = project.logs()
    submit_and_wait(project, "--shards", "2")
    assert {job for job, time in project.logs().items() if before[job] != time} <= {"efficiency"}
    assert project.results() == undisturbed


def test_a_shard_that_is_cancelled_is_made_up_for(project, undisturbed):
    project.hold()
    numbers = submit(project, "--shards", "2")
    project.wait_until_held()
    slurm("scancel", numbers["shards"])
    project.release()
    wait_for(lambda: states(numbers["finish"]) == {"COMPLETED"}, "the last job ends", seconds=400)
    assert "CANCELLED" in states(numbers["shards"])
    assert project.results() == undisturbed


def test_one_allocation(project, undisturbed):
    numbers = submit_and_wait(project)
    assert list(numbers) == ["finish"]
    assert states(numbers["finish"]) == {"COMPLETED"}
    assert project.results() == undisturbed


def test_a_mistake_in_the_configuration_is_told_before_anything_is_submitted(project):
    project.configure(gmm={"tolerance": 1})
    refused = ours(project, "submit", "--shards", "2", check=False)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "gmm.tolerance: unknown key" in refused.stderr
    assert not (project.directory / "results").exists()


def set_seconds(scores, seconds):
    """Let the table of scores say that every fit took so long, as the text that is expected depends on it."""
    header, *rows = [line.split("\t") for line in scores.read_text().splitlines()]
    place = header.index("seconds")
    for row in rows:
        row[place] = seconds
    scores.write_text("".join("\t".join(row) + "\n" for row in [header, *rows]))


def test_many_short_fits_are_told_to_go_into_shards(tmp_path, one_node_cluster):
    """A second run over 20 fits, as their seconds are known from the first; it is ended once it has said so."""
    project = slurm_project(tmp_path / "project", patients=("P1",))
    project.configure(gmm={"k_comps": list(range(1, 21)), "n_init": 1})
    Project(project.directory, project.workflow).run()
    scores = project.directory / "results" / "scores.tsv"
    set_seconds(scores, "0.4")
    project.hold()
    process = project.start("--jobs", "1", "-R", "fit", "--", *TARGETS)
    wait_for(lambda: "20 fit" in project.output(), "the run begins")
    project.wait_until_held()
    process.send_signal(signal.SIGTERM)
    project.release()
    output = project.finish(process, status=1)
    assert (
        "A fit takes 0.4 s here (median of results/scores.tsv), a SLURM job about 6 s more: "
        "make slurm-shards runs them in few SLURM jobs." in output
    )


def test_one_patient_again(project, undisturbed):
    """`snakemake --profile profiles/slurm -R fit -- results/models/P2.npz`, as the README has it."""
    Project(project.directory, project.workflow).run()
    jobs = project.run("-R", "fit", "--", "results/models/P2.npz")
    assert set(jobs) == {"fit/P2/k1", "fit/P2/k2", "select/P2", "refit/P2"}
    assert project.results() == undisturbed
