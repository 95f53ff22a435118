"""What is told of jobs that failed."""

import logging
import os
import re
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from snakemake.exceptions import WorkflowError, print_exception
from snakemake.jobs import Job
from snakemake.logging import logger
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_logger_plugins.common import LogEvent

from cohortgmm.pipeline.failures import Failure, JobErrors, last_error, read_failures, write_failures
from cohortgmm.storage.names import COHORT


class Wildcards(SimpleNamespace):
    pass


def job(log="", rule="fit", attempt=1, **wildcards):
    return SimpleNamespace(
        rule=SimpleNamespace(name=rule),
        wildcards=Wildcards(**wildcards),
        log=[log] if log else [],
        attempt=attempt,
        resources={"mem_mb": 500, "runtime": 10},
    )


def record(number, state="", external="", logs=()):
    """As Snakemake and its SLURM plugin log the error of a job."""
    made = logging.LogRecord("snakemake", logging.ERROR, "", 0, f"Error in rule fit, jobid: {number}", None, None)
    made.event = SimpleNamespace(name="JOB_ERROR")
    made.jobid, made.log, made.aux = number, list(logs), {"external_jobid": external} if external else {}
    made.rule_msg = f"SLURM-job '{external}' failed, SLURM status is: '{state}'. Detailed" if state else None
    return made


def told(jobs, *records):
    errors = JobErrors()
    for one in records:
        errors.emit(one)
    return errors.failures(jobs, lambda job: jobs.index(job))


def test_the_error_in_the_log_is_told(tmp_path):
    log = tmp_path / "k3.log"
    log.write_text("INFO a\nused 40 MB of 500, 1.0 s of 600\nerror: patient 'P 2', k=3: no luck\n\n")
    (failure,) = told([job(str(log), patient="P=202", k="3")], record(0))
    assert (failure.rule, failure.patient, failure.k) == ("fit", "P=202", "3")
    assert str(failure) == f"patient 'P 2', k=3: no luck  [{log}]"


@pytest.mark.parametrize(
    ("state", "remedy"),
    [
        ("OUT_OF_MEMORY", "give it more: --set-resources 'fit:mem_mb=1000*attempt'"),
        ("TIMEOUT", "give it longer: --set-resources 'fit:runtime=20*attempt'"),
        ("CANCELLED", "somebody cancelled it: run again"),
        ("NODE_FAIL", "run again"),
        ("FAILED", "see the output of the SLURM job"),
    ],
)
def test_what_slurm_did_is_told_with_a_remedy(tmp_path, state, remedy):
    slurm_log = str(tmp_path / "17.log")
    (failure,) = told(
        [job("fit/P1/k3.log", attempt=3, patient="P1", k="3")], record(0, state, "17", ["fit/P1/k3.log", slurm_log])
    )
    assert str(failure) == (
        f"patient 'P1', k=3: fit ended without a result, 3 attempts; {remedy}  "
        f"[fit/P1/k3.log, SLURM job 17 {state}, {slurm_log}]"
    )


@pytest.mark.parametrize(
    "said", ["Detected 1 oom-kill event(s) in StepId=17.0", "Job 17 exceeded memory limit (410 > 400), being killed"]
)
def test_memory_that_only_a_step_ran_out_of_is_told(tmp_path, said):
    slurm_log = tmp_path / "17.log"
    slurm_log.write_text(f"slurmstepd: error: {said}.\n")
    (failure,) = told([job(patient="P1", k="3")], record(0, "FAILED", "17", [str(slurm_log)]))
    assert failure.slurm_state == "OUT_OF_MEMORY"
    assert "mem_mb=1000" in failure.reason


@pytest.mark.parametrize(("state", "wins"), [("FAILED", True), ("OUT_OF_MEMORY", False), ("TIMEOUT", False)])
def test_an_error_in_the_log_wins_unless_slurm_ended_the_job(tmp_path, state, wins):
    log = tmp_path / "k3.log"
    log.write_text("error: of this attempt or of one before\n")
    (failure,) = told([job(str(log), patient="P1", k="3")], record(0, state, "17"))
    assert (failure.reason == "of this attempt or of one before") == wins


def test_an_error_of_an_earlier_run_is_not_told(tmp_path):
    log = tmp_path / "k3.log"
    log.write_text("error: long ago\n")
    os.utime(log, (1e9, 1e9))
    (failure,) = told([job(str(log), patient="P1", k="3")], record(0))
    assert failure.reason == (
        "patient 'P1', k=3: fit ended without a result; it was killed (out of memory?): give it more with "
        "--set-resources 'fit:mem_mb=1000*attempt', or run again"
    )


def test_jobs_without_wildcards_and_of_all_patients_are_named():
    merge, everyone = told([job("merge.log", rule="merge"), job(patient=COHORT, k="2")], record(0), record(1))[::-1]
    assert merge.reason.startswith("merge: merge ended without a result; it was killed")
    assert everyone.reason.startswith("all patients, k=2: fit ended")


def test_failures_come_in_order_of_rule_patient_and_k():
    jobs = [job(patient="P2", k="10"), job(patient="P2", k="9"), job(patient="P1", k="11"), job(rule="efficiency")]
    found = [(failure.rule, failure.patient, failure.k) for failure in told(jobs)]
    assert found == [("efficiency", "", ""), ("fit", "P1", "11"), ("fit", "P2", "9"), ("fit", "P2", "10")]


def test_the_last_error_of_a_job_counts_and_other_records_do_not():
    other = logging.LogRecord("snakemake", logging.ERROR, "", 0, "something else", None, None)
    (failure,) = told([job(patient="P1", k="1")], record(0, "TIMEOUT", "17"), record(0, "CANCELLED", "18"), other)
    assert (failure.slurm_job, failure.slurm_state) == ("18", "CANCELLED")


def test_last_errors(tmp_path):
    log = tmp_path / "a.log"
    assert last_error(str(log)) == ""
    for text, error in (
        ("", ""),
        ("error: x\nINFO went on\n", ""),
        ("Traceback\nerror: KeyError: 'x'\n", "KeyError: 'x'"),
    ):
        log.write_text(text)
        assert last_error(str(log)) == error


def test_failures_are_kept_until_a_run_succeeds(tmp_path):
    failures = [
        Failure("fit", "P1", "3", 'a "reason"\twith all', "logs/a.log", "17", "TIMEOUT", "slurm/17.log"),
        Failure("merge", "", "", "no space", "logs/merge.log"),
    ]
    assert read_failures(str(tmp_path)) == []
    write_failures(str(tmp_path), failures)
    assert read_failures(str(tmp_path)) == failures
    write_failures(str(tmp_path), [])
    assert read_failures(str(tmp_path)) == []
    assert not list(tmp_path.iterdir())
    write_failures(str(tmp_path), [])


# What Snakemake itself says


class SnakemakeJob:
    """A job as Snakemake's own code sees it when it reports an error."""

    log_error = Job.log_error
    get_log_error_info = Job.get_log_error_info
    container_img = shellcmd = None
    output = ()

    def __init__(self, number, log, rule="fit", attempt=1, memory=500, runtime=10, **wildcards):
        self.rule = SimpleNamespace(name=rule)
        self.wildcards = SimpleNamespace(**wildcards)
        self.input, self.log = [], [log]
        self.attempt, self.resources = attempt, {"mem_mb": memory, "runtime": runtime}
        deployment = SimpleNamespace(deployment_method=set())
        self.dag = SimpleNamespace(jobid=lambda _: number, workflow=SimpleNamespace(deployment_settings=deployment))
        self.number = number


class Cluster(RemoteExecutor):
    """An executor without a cluster, which can report errors."""


Cluster.__abstractmethods__ = frozenset()


def report(job, number, status, slurm_log, said=""):
    """The plugin's report of a job that SLURM ended."""
    said = said or (
        f"SLURM-job '{number}' failed, SLURM status is: '{status}'. "
        "Detailed failure reason unavailable (status command is not 'sacct')."
    )
    info = SubmittedJobInfo(job, external_jobid=number)
    Cluster.__new__(Cluster).print_job_error(info, msg=said, aux_logs=[str(slurm_log)])


@pytest.fixture
def errors():
    """The handler among those of Snakemake's logger, as a run has it."""
    handler = JobErrors()
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def failures_of(errors, *jobs, on_cluster=True):
    return errors.failures(jobs, lambda job: job.number, on_cluster)


@pytest.mark.parametrize(
    ("state", "remedy"),
    [
        ("OUT_OF_MEMORY", "give it more: --set-resources 'refit:mem_mb=1600*attempt'"),
        ("TIMEOUT", "give it longer: --set-resources 'refit:runtime=80*attempt'"),
        ("DEADLINE", "run again"),
        ("CANCELLED", "somebody cancelled it: run again"),
        ("PREEMPTED", "run again, or on a partition without preemption"),
        ("BOOT_FAIL", "run again"),
        ("FAILED", "see the output of the SLURM job"),
        ("FORGOTTEN", "SLURM has lost it: run again"),
        (
            "PartitionTimeLimit",
            "SLURM would never have started it: lower its limits (--set-resources 'refit:runtime=...', "
            "'refit:mem_mb=...'), or choose another partition",
        ),
    ],
)
def test_every_state_that_the_plugin_reports_has_a_remedy(errors, tmp_path, state, remedy):
    log, slurm_log = tmp_path / "refit" / "P1.log", tmp_path / "slurm" / "4711.log"
    job = SnakemakeJob(5, str(log), rule="refit", attempt=2, memory=800, runtime=40, patient="P1")
    report(job, "4711", state, slurm_log)
    assert failures_of(errors, job) == [
        Failure(
            rule="refit",
            patient="P1",
            k="",
            reason=f"patient 'P1': refit ended without a result, 2 attempts; {remedy}",
            log=str(log),
            slurm_job="4711",
            slurm_state=state,
            slurm_log=str(slurm_log),
        )
    ]


def test_a_lost_node_is_reported_in_other_words(errors, tmp_path):
    job = SnakemakeJob(5, "k3.log", patient="P1", k="3")
    said = (
        "SLURM-job '17' failed due to a node failure, SLURM status is: 'NODE_FAIL'. "
        "Failed nodes will be excluded from future job submissions."
    )
    report(job, "17", "", tmp_path / "17.log", said)
    (failure,) = failures_of(errors, job)
    assert (failure.slurm_state, failure.slurm_job) == ("NODE_FAIL", "17")
    assert failure.reason == "patient 'P1', k=3: fit ended without a result; run again"


def test_reasons_that_sacct_gives_are_no_states(errors, tmp_path):
    job = SnakemakeJob(5, "k3.log", patient="P1", k="3")
    report(job, "17", "", tmp_path / "17.log", "SLURM-job '17' failed, SLURM status is: 'TIMEOUT'. Reason: 'FAILED'.")
    (failure,) = failures_of(errors, job)
    assert failure.slurm_state == "TIMEOUT"


def test_a_task_of_an_array_has_its_own_log(errors, tmp_path):
    job = SnakemakeJob(5, "k3.log", patient="P1", k="3")
    report(job, "17_4", "TIMEOUT", tmp_path / "17_4.log")
    (failure,) = failures_of(errors, job)
    assert (failure.slurm_job, failure.slurm_log) == ("17_4", str(tmp_path / "17_4.log"))


@pytest.mark.parametrize("number", ["3", "17"])
def test_a_log_of_k_is_not_taken_for_that_of_slurm(errors, tmp_path, number):
    """SLURM's job 3 may fit k=3, and job 17 patient 17."""
    for log, wildcards in ((f"fit/P1/k{number}.log", {"k": number}), (f"refit/{number}.log", {"patient": number})):
        slurm_log = tmp_path / f"{number}.log"
        slurm_log.write_text("slurmstepd: error: Detected 1 oom_kill event in StepId=3.0. Some of the step tasks\n")
        job = SnakemakeJob(5, log, **{"patient": "P1"} | wildcards)
        report(job, number, "FAILED", slurm_log)
        (failure,) = failures_of(errors, job)
        assert failure.slurm_log == str(slurm_log)
        assert failure.slurm_state == "OUT_OF_MEMORY"


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=17.0 cgroup.", "OUT_OF_MEMORY"),
        ("slurmstepd: error: Detected 2 oom_kill events in StepId=17.batch. Some of the step tasks", "OUT_OF_MEMORY"),
        ("srun: error: node7: task 0: Out Of Memory", "OUT_OF_MEMORY"),
        ("slurmstepd: error: Exceeded job memory limit at some point.", "OUT_OF_MEMORY"),
        ("slurmstepd: error: *** JOB 17 ON node7 CANCELLED ***", "FAILED"),
        (None, "FAILED"),
    ],
)
def test_slurms_own_words_tell_what_a_step_ran_out_of(errors, tmp_path, text, state):
    slurm_log = tmp_path / "17.log"
    if text is not None:
        slurm_log.write_text(f"host: node7\n{text}\nsrun: error: node7: task 0\n")
    job = SnakemakeJob(5, "k3.log", patient="P1", k="3")
    report(job, "17", "FAILED", slurm_log)
    (failure,) = failures_of(errors, job)
    assert failure.slurm_state == state
    assert ("mem_mb=1000" in failure.reason) == (state == "OUT_OF_MEMORY")


def test_a_step_that_ran_out_of_memory_did_not_end_a_job_that_was_out_of_time(errors, tmp_path):
    slurm_log = tmp_path / "17.log"
    slurm_log.write_text("slurmstepd: error: Detected 1 oom_kill event in StepId=17.0.\n")
    job = SnakemakeJob(5, "k3.log", patient="P1", k="3")
    report(job, "17", "TIMEOUT", slurm_log)
    (failure,) = failures_of(errors, job)
    assert failure.slurm_state == "TIMEOUT"


@pytest.mark.parametrize("state", ["OUT_OF_MEMORY", "TIMEOUT", "CANCELLED", "NODE_FAIL", "FAILED"])
def test_what_ended_the_job_is_told_before_what_it_had_said(errors, tmp_path, state):
    log = tmp_path / "k3.log"
    log.write_text("used 1 MB of 2, 3.0 s of 4\nerror: patient 'P1', k=3: no luck\n")
    job = SnakemakeJob(5, str(log), patient="P1", k="3")
    report(job, "17", state, tmp_path / "17.log")
    (failure,) = failures_of(errors, job)
    if state == "FAILED":
        assert failure.reason == "patient 'P1', k=3: no luck"
    else:
        assert failure.reason.startswith("patient 'P1', k=3: fit ended without a result; ")


def test_a_job_of_this_machine_that_failed_is_told_by_its_log(errors, tmp_path):
    log = tmp_path / "k3.log"
    log.write_text("error: patient 'P1', k=3: no luck\n")
    job = SnakemakeJob(5, str(log), patient="P1", k="3")
    job.log_error(None)
    (failure,) = failures_of(errors, job)
    assert str(failure) == f"patient 'P1', k=3: no luck  [{log}]"
    log.write_text("INFO going on\n")
    (failure,) = failures_of(errors, job, on_cluster=False)
    assert failure.reason == (
        "patient 'P1', k=3: fit ended without a result; it was killed (out of memory?): give it more with "
        "--set-resources 'fit:mem_mb=1000*attempt', or run again"
    )
    assert (failure.slurm_job, failure.slurm_state, failure.slurm_log) == ("", "", "")


def test_what_snakemake_itself_found_wrong_is_told_of_jobs_that_slurm_completed(errors, tmp_path, caplog):
    """And not what became of an earlier attempt, nor that they may have run out of memory."""
    job = SnakemakeJob(5, "k3.log", patient="P1", k="3")
    report(job, "101", "TIMEOUT", tmp_path / "101.log")
    with caplog.at_level(logging.INFO, logger.name):
        logger.info(None, extra={"event": LogEvent.JOB_INFO, "jobid": 5})
    (failure,) = failures_of(errors, job)
    assert failure.reason == "patient 'P1', k=3: fit ended without a result; see the output of the SLURM job"
    print_exception(WorkflowError("Error recording metadata for finished job", "(quota)"), {})
    (failure,) = failures_of(errors, job)
    assert re.search(r"without a result; .*Error recording metadata for finished job.*\(quota\)$", failure.reason)
    assert (failure.slurm_job, failure.slurm_state) == ("", "")


def test_jobs_are_not_mixed_up(errors, tmp_path):
    jobs = [SnakemakeJob(number, f"k{number}.log", patient="P1", k=str(number)) for number in (1, 2, 3)]
    report(jobs[0], "101", "TIMEOUT", tmp_path / "101.log")
    report(jobs[2], "103", "CANCELLED", tmp_path / "103.log")
    found = failures_of(errors, *jobs)
    assert [failure.slurm_job for failure in found] == ["101", "", "103"]
    assert [failure.slurm_state for failure in found] == ["TIMEOUT", "", "CANCELLED"]
    # Of those that succeeded in a later attempt nothing is told.
    assert [failure.slurm_job for failure in failures_of(errors, jobs[2])] == ["103"]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.builds(Failure, *[texts] * 8), min_size=1, max_size=3))
@example([Failure("fit", "=C3=BC", "3", "patient 'ü', k=3: \"x\"\ty\r", "a b.log")])
def test_failures_come_back_whatever_they_say(tmp_path, failures):
    write_failures(str(tmp_path / "results"), iter(failures))
    assert read_failures(str(tmp_path / "results")) == failures


def test_there_may_be_no_results_to_remove_failures_from(tmp_path):
    write_failures(str(tmp_path / "results"), [])
    assert read_failures(str(tmp_path / "results")) == []
    assert not (tmp_path / "results").exists()


# Jobs that SLURM did not take


def refused(job, said):
    Cluster.__new__(Cluster).print_job_error(SubmittedJobInfo(job), msg=said)


def test_a_job_that_slurm_refuses_is_told_with_its_words(errors, tmp_path):
    log = tmp_path / "k3.log"
    log.write_text("error: of an attempt before\n")
    job = SnakemakeJob(5, str(log), patient="P1", k="3")
    words = ("invalid partition specified: nosuch", "Batch job submission failed: Invalid partition")
    said = "\n".join(f"sbatch: error: {line}" for line in words)
    refused(
        job, f"SLURM sbatch failed. The error message was '{said}'.\n    sbatch call:\n        sbatch --parsable 'x'\n"
    )
    (failure,) = failures_of(errors, job)
    assert failure.reason == (
        "patient 'P1', k=3: SLURM refused the job: invalid partition specified: nosuch; "
        "Batch job submission failed: Invalid partition"
    )
    assert (failure.slurm_job, failure.slurm_state) == ("", "")


def test_a_submission_that_ends_with_an_exception_is_told(errors):
    job = SnakemakeJob(5, "k3.log", patient="P1", k="3")
    refused(job, "Job submission failed with exception: [Errno 12] Cannot allocate memory")
    (failure,) = failures_of(errors, job)
    assert failure.reason == "patient 'P1', k=3: SLURM refused the job: [Errno 12] Cannot allocate memory"
