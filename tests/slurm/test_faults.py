"""Faults of a cluster: whatever happens, the results are those of an undisturbed run."""

import os
import re
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from clusters import SlurmProject, cluster, slurm, slurm_project, wait_for
from projects import TARGETS

from cohortgmm.pipeline.failures import read_failures
from cohortgmm.pipeline.slurm.orphans import RUN_FILE
from cohortgmm.pipeline.usage import read_usage

pytestmark = [pytest.mark.pipeline, pytest.mark.slurm]

#: Faults of single runs, which are tried side by side: a run mostly waits.
SCENARIOS: dict[str, Callable[[SlurmProject], None]] = {}

#: Those that are tried before a release only. Locks and a full disk are tried without SLURM too (tests/workflow).
RELEASE = (
    *("snakemake_interrupted", "refused_by_slurm", "a_fit_that_never_succeeds"),
    *("two_runs_in_one_directory", "a_full_disk"),
)


def n_fits(project):
    return len(list((project.directory / "results").glob("fits/*/*.npz")))


def scenario(function):
    SCENARIOS[function.__name__] = function
    return function


@scenario
def out_of_memory(project):
    """Fits need 400 MB more than is foreseen: their first try is killed, the next one has twice as much."""
    (project.directory / "eat").write_text("400")
    assert project.finish(project.start(*TARGETS)).count("Trying to restart job") >= 2
    logs = [log.read_text() for log in (project.directory / "results/logs/slurm/rule_fit").rglob("*.log")]
    assert sum(bool(re.search("oom|exceeded memory limit", log, re.IGNORECASE)) for log in logs) == 2
    fits = [job for job in read_usage(project.directory / "results" / "logs") if job.rule == "fit"]
    assert len(fits) == 2
    assert all(job.need > job.memory_asked for job in fits)  # of the first try


@scenario
def over_its_time_limit(project):
    project.hold()
    output = project.finish(project.start("--set-resources", "fit:runtime=1", "--", *TARGETS))
    assert "SLURM status is: 'TIMEOUT'" in output


@scenario
def cancelled_from_outside(project):
    process = project.start_held()
    slurm("scancel", project.held_job())
    assert "SLURM status is: 'CANCELLED'" in project.finish(process)


@scenario
def snakemake_terminated(project):
    """Snakemake ends what it has begun; the next call does the rest."""
    process = project.start_held()
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: "Will exit after finishing currently running jobs" in project.output(), "Snakemake has heard")
    project.release()
    project.finish(process, status=1)
    assert not (project.directory / "results" / "cohort_gmm.h5ad").exists()
    project.finish(project.start(*TARGETS))


@scenario
def snakemake_interrupted(project):
    """By Ctrl-C: nothing of it is left in SLURM's queue."""
    process = project.start_held()
    job = project.held_job()
    process.send_signal(signal.SIGINT)
    project.finish(process, status=1)
    wait_for(lambda: not slurm("squeue", f"--jobs={job}", "--noheader"), "the job is gone")
    assert not (project.directory / "results" / RUN_FILE).exists()
    project.finish(project.start(*TARGETS))


@scenario
def refused_by_slurm(project):
    """A partition that does not exist, and then a time limit that none has: SLURM's own words are told."""
    for resource, told in (
        ("slurm_partition=nosuch", r"SLURM refused the job: .*[Ii]nvalid partition"),
        ("runtime=100000", r"fit ended without a result; SLURM would never have started it: .* PartitionTimeLimit"),
    ):
        options = ["--retries", "0", "--set-resources", f"fit:{resource}", "--", *TARGETS]
        output = project.finish(project.start(*options), status=1)
        (_, failed) = output.split("2 failed:")
        assert re.match(rf"patient 'P1', k=1: {told}", failed.strip().splitlines()[0])
    project.finish(project.start(*TARGETS))


@scenario
def snakemake_killed(project):
    """The jobs live on; the next call cancels them, as they would do its work beside it."""
    process = project.start_held()
    job = project.held_job()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert slurm("squeue", f"--jobs={job}", "--noheader", "--format=%T") == "RUNNING"
    output = project.finish(project.start(*TARGETS))
    assert "jobs that a killed run had left in SLURM's queue" in output
    assert slurm("squeue", f"--jobs={job}", "--states=all", "--noheader", "--format=%T") == "CANCELLED"


@scenario
def configured_anew_after_a_kill(project):
    """Files that jobs wrote after their run was killed are of another configuration, and are made again."""
    project.configure(gmm={"max_iter": 1})
    process = project.start_held()
    job = project.held_job()
    wait_for(lambda: n_fits(project) == 1, "the other fit ends")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    project.release()
    wait_for(lambda: slurm("squeue", f"--jobs={job}", "--states=all", "-h", "--format=%T") == "COMPLETED", "it ends")
    assert n_fits(project) == 2
    project.configure(gmm={"max_iter": None})
    project.finish(project.start(*TARGETS))


@scenario
def two_runs_in_one_directory(project):
    process = project.start_held()
    second = subprocess.run(project.command(*TARGETS), capture_output=True, text=True, timeout=120, check=False)
    assert second.returncode != 0
    assert "results is in use by another run (process" in second.stderr
    assert "Traceback" not in second.stderr
    project.release()
    project.finish(process)


@scenario
def a_full_disk(project):
    """Retries do not help; the failures name the disk, and nothing half-written is taken for whole afterwards."""
    results = project.directory / "results"
    results.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=130k", "tmpfs", str(results)], check=True)
    try:
        process = project.start("--retries", "0", "--", *TARGETS)
        output = project.finish(process, status=1)
        assert "No space left on device" in output
        assert not list(results.rglob(".*.npz"))
        subprocess.run(["mount", "-o", "remount,size=50m", str(results)], check=True)
        project.finish(project.start(*TARGETS))
        project.kept = project.results()
    finally:
        subprocess.run(["umount", "--lazy", str(results)], check=True)


@scenario
def a_fit_that_never_succeeds(project):
    """The others are done; patient, k, the state in SLURM and the remedy are told at the end and kept."""
    (project.directory / "eat").write_text("3000")
    options = ["--retries", "0", "--set-resources", "fit:mem_mb=400", "--", *TARGETS]
    output = project.finish(project.start(*options), status=1)
    (_, told) = output.split("2 failed:")
    first = told.strip().splitlines()[0]
    assert first.strip().startswith(
        "patient 'P1', k=1: fit ended without a result; give it more: --set-resources 'fit:mem_mb=800*attempt'"
    )
    assert "OUT_OF_MEMORY" in first
    failures = read_failures(str(project.directory / "results"))
    assert [(f.rule, f.patient, f.k, f.slurm_state) for f in failures] == [
        ("fit", "P1", k, "OUT_OF_MEMORY") for k in "12"
    ]
    assert all(os.path.exists(failure.slurm_log) for failure in failures)
    (project.directory / "eat").unlink()
    project.finish(project.start(*TARGETS))
    assert not read_failures(str(project.directory / "results"))


@pytest.fixture(scope="module")
def outcomes(request, tmp_path_factory, one_node_cluster) -> dict[str, tuple[SlurmProject, Future]]:
    """All scenarios that this call of pytest tries, begun."""
    folder = tmp_path_factory.mktemp("faults")
    calls = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    names = [call["scenario_name"] for call in calls if "scenario_name" in call]
    with ThreadPoolExecutor(len(names)) as pool:
        projects = {name: slurm_project(folder / name, patients=("P1",)) for name in names}
        yield {name: (project, pool.submit(SCENARIOS[name], project)) for name, project in projects.items()}


@pytest.mark.parametrize(
    "scenario_name",
    [pytest.param(name, marks=[pytest.mark.release] if name in RELEASE else []) for name in SCENARIOS],
)
def test_the_results_are_those_of_an_undisturbed_run(outcomes, undisturbed_patient, scenario_name):
    project, outcome = outcomes[scenario_name]
    outcome.result(timeout=500)
    results = project.kept if scenario_name == "a_full_disk" else project.results()
    assert results == undisturbed_patient


@pytest.fixture
def patient(tmp_path, one_node_cluster):
    """A cohort of one patient."""
    return slurm_project(tmp_path / "project", patients=("P1",))


def test_the_controller_is_away_at_the_start_and_in_the_middle(patient, undisturbed_patient):
    cluster("stop", "slurmctld")
    patient.hold()
    process = patient.start("--verbose", "--retries", "0", "--", *TARGETS)
    wait_for(lambda: "SLURM does not answer; submitting split again" in patient.output(), "a job is not submitted")
    cluster("start", "slurmctld")
    patient.wait_until_held()
    cluster("stop", "slurmctld")
    patient.release()  # the fit ends while nobody can be asked
    wait_for(lambda: n_fits(patient) == 2, "a fit ends without the controller")
    wait_for(lambda: "(final attempt)" in patient.output(), "all questions of a round stay without an answer")
    cluster("start", "slurmctld")
    patient.finish(process)
    assert patient.results() == undisturbed_patient


def test_the_daemon_of_the_node_dies_and_comes_back(patient, undisturbed_patient):
    process = patient.start_held()
    cluster("kill", "slurmd")
    patient.release()
    wait_for(lambda: n_fits(patient) == 2, "a fit ends without the daemon")
    cluster("start", "slurmd")
    patient.finish(process)
    assert patient.results() == undisturbed_patient


@pytest.mark.release
def test_the_controller_comes_back_without_its_memory(patient, undisturbed_patient):
    """It knows no job any more: those that run are lost and made again."""
    process = patient.start_held()
    cluster("stop", "slurmctld")
    cluster("forget")
    cluster("start", "slurmctld")
    wait_for(lambda: "SLURM status is: 'FORGOTTEN'" in patient.output(), "the jobs are given up")
    (patient.directory / "held").unlink(missing_ok=True)
    patient.finish(process)
    assert patient.results() == undisturbed_patient


@pytest.mark.release
def test_jobs_lose_their_node_and_are_preempted(patient, undisturbed_patient):
    process = patient.start_held()
    process.send_signal(signal.SIGSTOP)  # it must not see the loss before all that was lost is gone
    update = ["scontrol", "update", "NodeName=node", "Reason=test"]
    slurm(*update, "State=DOWN")
    subprocess.run([*update, "State=RESUME"], capture_output=True, check=False)  # it may be back by itself
    at_work = ["pgrep", "--full", f"{patient.directory}/.snakemake/scripts/"]
    wait_for(lambda: subprocess.run(at_work, capture_output=True, check=False).returncode, "the lost fits end")
    patient.release()
    patient.hold()
    process.send_signal(signal.SIGCONT)
    patient.wait_until_held()
    urgent = slurm("sbatch", "--parsable", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    wait_for(lambda: "COMPLETED" in slurm("squeue", f"--jobs={urgent}", "--states=all", "-h", "--format=%T"), "it ends")
    patient.release()
    output = patient.finish(process)
    for state in ("NODE_FAIL", "PREEMPTED"):
        assert f"SLURM status is: '{state}'" in output
    assert patient.results() == undisturbed_patient
