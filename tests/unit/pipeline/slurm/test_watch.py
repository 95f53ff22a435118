"""No job of SLURM's is lost from view: Snakemake's own plugin in the cases in which it would lose some."""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from snakemake.logging import logger

from cohortgmm.pipeline.slurm import watch
from cohortgmm.pipeline.slurm.watch import age_message, min_job_age, never_starts, watch_jobs


class Plugin:
    """An executor as far as it is watched; `answers` is what it finds of every job."""

    run_uuid = "cohortgmm-17"

    def __init__(self, **answers):
        self.answers, self.ended = answers, []
        self.next_seconds_between_status_checks = 180
        self._job_submission_executor = ThreadPoolExecutor(2)
        self.refusals, self.submitted = [], []
        self.workflow = SimpleNamespace(executor_settings=SimpleNamespace(init_seconds_before_status_checks=20))

    def report_job_success(self, job):
        self.ended.append((job.external_jobid, "success"))

    def report_job_error(self, job, msg=None, **others):
        self.ended.append((job.external_jobid, msg))

    def _report_job_error_threadsafe(self, info, msg):
        self.report_job_error(info, msg)

    def run_job(self, job):
        """Submit a job; SLURM refuses as often as there are refusals."""
        if self.refusals:
            self._report_job_error_threadsafe(SimpleNamespace(job=job, external_jobid=None), self.refusals.pop(0))
        else:
            self.submitted.append(job)

    async def check_active_jobs(self, jobs):
        for job in jobs:
            match self.answers.get(f"j{job.external_jobid}", "forgotten"):
                case "active":
                    yield job
                case "done":
                    self.report_job_success(job)
                case "failed":
                    self.report_job_error(job, msg="no luck", aux_logs=[])


def look(plugin, *numbers):
    """The jobs that are active after one round."""

    async def all_active(jobs):
        return [job.external_jobid async for job in plugin.check_active_jobs(jobs)]

    return asyncio.run(all_active([SimpleNamespace(external_jobid=number) for number in numbers]))


def test_jobs_that_the_plugin_forgets_stay_in_view(programs):
    plugin = Plugin(j1="active", j2="done", j3="failed")
    assert look(plugin, "1", "2", "3", "4") == ["1"]
    plugin = Plugin(j1="active", j2="done", j3="failed")
    watch_jobs(plugin, None)
    assert look(plugin, "1", "2", "3", "4") == ["1", "4"]
    assert plugin.ended == [("2", "success"), ("3", "no luck")]
    plugin.answers["j4"] = "done"
    assert look(plugin, "1", "4") == ["1"]
    assert plugin.ended[-1] == ("4", "success")


def test_a_preempted_job_has_failed(programs):
    programs.make(
        "squeue",
        "echo '17_2 PREEMPTED None'; echo '4 PREEMPTED None'; echo '1 RUNNING None'; echo '7 PENDING Priority'",
    )
    plugin = Plugin(j1="active", j17_2="active")
    watch_jobs(plugin, None)
    assert look(plugin, "1", "17_2", "7") == ["1", "7"]
    assert plugin.ended == [("17_2", "SLURM-job '17_2' failed, SLURM status is: 'PREEMPTED'. ")]
    asked = ["squeue", "--name=cohortgmm-17", "--states=all", "--noheader", "--format=%i %T %r"]
    assert programs.calls == [asked]
    # Nobody is asked about jobs that have ended.
    plugin.answers = {"j1": "done"}
    assert look(plugin, "1") == []
    assert programs.calls == [asked]


@pytest.mark.parametrize(("age", "pause"), [(None, 60), (300, 60), (100, 50), (0, 60)])
def test_jobs_are_looked_at_before_slurm_forgets_them_and_every_minute(programs, age, pause):
    plugin = Plugin()
    watch_jobs(plugin, age)
    look(plugin, "1")
    assert plugin.next_seconds_between_status_checks == pause


def test_how_long_slurm_keeps_jobs(programs):
    assert min_job_age() is None
    programs.make("scontrol", "echo 'MaxJobCount             = 20000'; echo 'MinJobAge               = 300 sec'")
    assert min_job_age() == 300
    programs.make("scontrol", "exit 1")
    assert min_job_age() is None


def test_where_sacct_is_asked_nothing_is_asked_more_often(programs):
    programs.make("sacct")
    plugin = Plugin()
    watch_jobs(plugin, 10)
    look(plugin, "1")
    assert plugin.next_seconds_between_status_checks == 60


def test_a_job_that_slurm_has_forgotten_has_failed(programs):
    """Where it is not listed in three looks that SLURM answered, and nobody else is asked."""
    programs.make("squeue", "echo '1 RUNNING None'; echo '5_[1-3] PENDING Resources'")
    plugin = Plugin(j1="active", j5_2="active")
    watch_jobs(plugin, 300)
    assert look(plugin, "1", "2", "5_2") == ["1", "2", "5_2"]
    programs.make("squeue", "exit 1")
    assert look(plugin, "1", "2", "5_2") == ["1", "2", "5_2"]
    programs.make("squeue", "echo '1 RUNNING None'; echo '5_[1-3] PENDING Resources'")
    assert look(plugin, "1", "2", "5_2") == ["1", "2", "5_2"]
    assert look(plugin, "1", "2", "5_2") == ["1", "5_2"]
    assert plugin.ended == [("2", "SLURM-job '2' failed, SLURM status is: 'FORGOTTEN'. ")]


def test_a_job_that_is_listed_again_was_not_forgotten(programs):
    plugin = Plugin()
    watch_jobs(plugin, 300)
    for listed in ("7", "7", "2", "7", "7"):
        programs.make("squeue", f"echo '{listed} RUNNING None'")
        assert look(plugin, "2") == ["2"]


def test_where_sacct_is_asked_squeue_need_not_know_a_job(programs):
    programs.make("sacct")
    programs.make("squeue")
    plugin = Plugin(j1="active")
    watch_jobs(plugin, 10)
    for _ in range(5):
        assert look(plugin, "1") == ["1"]


NEVER = [
    "PartitionTimeLimit",
    "PartitionNodeLimit",
    "BadConstraints",
    "QOSMaxWallDurationPerJobLimit",
    "AssocMaxMemPerJob",
]
LATER = ["Priority", "Resources", "Dependency", "QOSMaxJobsPerUserLimit", "AssocGrpCpuLimit", "ReqNodeNotAvail, a"]


@pytest.mark.parametrize("reason", NEVER)
def test_a_job_that_would_never_start_is_cancelled_and_has_failed(programs, reason):
    programs.make("squeue", f"echo '1 PENDING {reason}'")
    programs.make("scancel")
    plugin = Plugin(j1="active")
    watch_jobs(plugin, 300)
    assert look(plugin, "1") == []
    assert plugin.ended == [("1", f"SLURM-job '1' failed, SLURM status is: '{reason}'. ")]
    assert ["scancel", "1"] in programs.calls
    assert never_starts("--jobs=1") == reason


@pytest.mark.parametrize("reason", LATER)
def test_a_job_that_waits_is_waited_for(programs, reason):
    programs.make("squeue", f"echo '1 PENDING {reason}'")
    plugin = Plugin(j1="active")
    watch_jobs(plugin, 300)
    assert look(plugin, "1") == ["1"]
    assert never_starts("--jobs=1") == ""


CALL = "sbatch --comment rule_fit_wildcards_P1_2 -N 1"
REFUSAL = f"SLURM sbatch failed. The error message was 'sbatch: error: {{}}'.\n    sbatch call:\n        {CALL}\n"


@pytest.fixture
def no_pause(monkeypatch):
    monkeypatch.setattr(watch, "_AGAIN_SECONDS", 0)


@pytest.mark.parametrize(
    "said", ["Unable to contact slurm controller (connect failure)", "Socket timed out on send/recv"]
)
def test_a_job_is_submitted_again_until_slurm_answers(programs, no_pause, caplog, said):
    """Once: what SLURM had taken although it did not answer is cancelled."""
    programs.make("squeue", "echo '7 rule_fit_wildcards_P1_2'; echo '8 rule_fit_wildcards_P1_3'; echo '9 (null)'")
    programs.make("scancel")
    plugin = Plugin()
    plugin.refusals = [REFUSAL.format(said)] * 3
    watch_jobs(plugin, 300)
    with caplog.at_level(logging.WARNING, logger.name):
        plugin.run_job("the job")
        deadline = time.monotonic() + 30
        while not plugin.submitted and time.monotonic() < deadline:
            time.sleep(0.01)
    assert plugin.submitted == ["the job"]
    assert plugin.ended == []
    assert [call for call in programs.calls if call[0] == "scancel"] == [["scancel", "7"]] * 3
    assert "SLURM does not answer; submitting the job again" in caplog.text


def test_a_job_that_slurm_refuses_has_failed(programs, no_pause):
    plugin = Plugin()
    plugin.refusals = [REFUSAL.format("Invalid partition name specified")]
    watch_jobs(plugin, 300)
    plugin.run_job("the job")
    assert plugin.submitted == []
    assert len(plugin.ended) == 1


def test_nothing_is_submitted_after_the_end_of_a_run(programs):
    plugin = Plugin()
    plugin.refusals = [REFUSAL.format("Unable to contact slurm controller")]
    watch_jobs(plugin, 300)
    plugin._job_submission_executor.shutdown()
    plugin.run_job("the job")
    assert plugin.submitted == []
    assert len(plugin.ended) == 1


@pytest.mark.parametrize(("age", "told"), [(None, False), (300, False), (60, False), (59, True), (0, True)])
def test_a_cluster_that_forgets_early_is_told(programs, age, told):
    assert age_message(age, 60) == ""
    programs.make("sacct")
    message = age_message(age, 60)
    assert bool(message) == told
    assert not told or f"MinJobAge is {age} s" in message
