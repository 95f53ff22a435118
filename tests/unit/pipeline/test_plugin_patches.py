"""Changes to Snakemake and its SLURM plugin, and the versions that they are made for."""

import asyncio
import json
import logging
import time
import types
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from hostile import TEXTS
from snakemake.io import _IOFile
from snakemake.logging import logger
from snakemake.persistence import PersistenceBase
from snakemake.persistence.file import FilePersistence
from snakemake.report import html_reporter
from snakemake.report.html_reporter import data
from snakemake_interface_executor_plugins.settings import ExecMode

from cohortgmm.pipeline import plugin_patches
from cohortgmm.pipeline.plugin_patches import patch_slurm_executor, sacct_message, untested_message
from cohortgmm.pipeline.slurm.commands import never_starts

PACKAGES = ["snakemake", "snakemake-executor-plugin-slurm"]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_installed_versions_are_those_that_were_tested(package):
    assert plugin_patches.is_tested(package)
    assert untested_message(package) == ""


@pytest.fixture
def newer(monkeypatch):
    """Versions of which nothing is known."""
    monkeypatch.setattr(plugin_patches, "version", lambda package: "99.1.2")


def test_what_another_version_costs_is_one_line(newer):
    for package in PACKAGES:
        message = untested_message(package)
        assert message.startswith(f"{package} 99.1.2 is installed, but this workflow was tested with ")
        assert "\n" not in message
    assert "tested with 9.17 to 9.27. With another version results" in untested_message("snakemake")


def test_another_version_is_left_as_it_is(newer, tmp_path, monkeypatch):
    monkeypatch.setattr(html_reporter, "json", json)  # which another test of the same process may have replaced
    before = dict(vars(PersistenceBase))
    plugin_patches.patch_snakemake(tmp_path, is_main_process=False, recorded_at_end="refit")
    plugin_patches.force_rule(None, "split")
    plugin_patches.escape_report_page.__wrapped__()
    assert dict(vars(PersistenceBase)) == before
    assert html_reporter.json is json
    plugin = Plugin()
    patch_slurm_executor(plugin, 300)
    assert "check_active_jobs" not in vars(plugin)


# Snakemake


def test_jobs_of_a_cluster_leave_the_marks_of_their_files(tmp_path, monkeypatch):
    """As Snakemake itself does not: it removes them, and records nothing."""
    monkeypatch.setattr(PersistenceBase, "finished", PersistenceBase.finished)
    name = "results/fits/P1/k2.npz"
    workflow = types.SimpleNamespace(
        execution_settings=types.SimpleNamespace(keep_metadata=True),
        exec_mode=ExecMode.REMOTE,
        remote_execution_settings=types.SimpleNamespace(immediate_submit=False),
    )
    job = types.SimpleNamespace(output=[_IOFile(name, rule=None)])
    marks = FilePersistence(path=tmp_path / ".snakemake")
    marks.dag = types.SimpleNamespace(workflow=workflow)
    for ours in (True, False):
        with monkeypatch.context() as patch:
            if ours:
                patch.setattr(PersistenceBase, "finished", PersistenceBase.finished)
                plugin_patches.keep_incomplete_marks()
            marks._mark_incomplete(name, None)
            asyncio.run(marks.finished(job))
            assert bool(marks._filter_incomplete_keys([name])) == ours


class Job:
    """What of Snakemake's job has parameters: they are kept from the time when the job is planned."""

    def __init__(self, rule, k):
        self.rule, self.k = types.SimpleNamespace(name=rule), k
        self._expand_params()

    def _expand_params(self):
        self.non_derived_params = [self.k]


def test_parameters_of_a_rule_are_recorded_as_they_are_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(PersistenceBase, "_params", PersistenceBase._params)
    plugin_patches.record_parameters_at_end("refit")
    kept = FilePersistence(path=tmp_path / ".snakemake")
    jobs = {rule: Job(rule, "not chosen yet") for rule in ("refit", "fit")}
    assert [kept._params(job) for job in jobs.values()] == [["'not chosen yet'"]] * 2
    for job in jobs.values():
        job.k = 3
    assert kept._params(jobs["refit"]) == ["3"]
    assert kept._params(jobs["fit"]) == ["'not chosen yet'"]


def test_no_text_ends_the_scripts_of_the_page(monkeypatch):
    for module in (html_reporter, data.results, data.rules):
        monkeypatch.setattr(module, "json", json)
    plugin_patches.escape_report_page.__wrapped__()
    plugin_patches.escape_report_page.__wrapped__()
    texts = {text: text for text in [*TEXTS, "</script>", "<!--"]}
    for module in (html_reporter, data.results, data.rules):
        written = module.json.dumps(texts)
        assert "<" not in written
        assert json.loads(written) == texts


# The SLURM plugin


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
    patch_slurm_executor(plugin, None)
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
    patch_slurm_executor(plugin, None)
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
    patch_slurm_executor(plugin, age)
    look(plugin, "1")
    assert plugin.next_seconds_between_status_checks == pause


def test_where_sacct_is_asked_nothing_is_asked_more_often(programs):
    programs.make("sacct")
    plugin = Plugin()
    patch_slurm_executor(plugin, 10)
    look(plugin, "1")
    assert plugin.next_seconds_between_status_checks == 60


def test_a_job_that_slurm_has_forgotten_has_failed(programs):
    """Where it is not listed in three looks that SLURM answered, and nobody else is asked."""
    programs.make("squeue", "echo '1 RUNNING None'; echo '5_[1-3] PENDING Resources'")
    plugin = Plugin(j1="active", j5_2="active")
    patch_slurm_executor(plugin, 300)
    assert look(plugin, "1", "2", "5_2") == ["1", "2", "5_2"]
    programs.make("squeue", "exit 1")
    assert look(plugin, "1", "2", "5_2") == ["1", "2", "5_2"]
    programs.make("squeue", "echo '1 RUNNING None'; echo '5_[1-3] PENDING Resources'")
    assert look(plugin, "1", "2", "5_2") == ["1", "2", "5_2"]
    assert look(plugin, "1", "2", "5_2") == ["1", "5_2"]
    assert plugin.ended == [("2", "SLURM-job '2' failed, SLURM status is: 'FORGOTTEN'. ")]


def test_a_job_that_is_listed_again_was_not_forgotten(programs):
    plugin = Plugin()
    patch_slurm_executor(plugin, 300)
    for listed in ("7", "7", "2", "7", "7"):
        programs.make("squeue", f"echo '{listed} RUNNING None'")
        assert look(plugin, "2") == ["2"]


def test_where_sacct_is_asked_squeue_need_not_know_a_job(programs):
    programs.make("sacct")
    programs.make("squeue")
    plugin = Plugin(j1="active")
    patch_slurm_executor(plugin, 10)
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
    patch_slurm_executor(plugin, 300)
    assert look(plugin, "1") == []
    assert plugin.ended == [("1", f"SLURM-job '1' failed, SLURM status is: '{reason}'. ")]
    assert ["scancel", "1"] in programs.calls
    assert never_starts("--jobs=1") == reason


@pytest.mark.parametrize("reason", LATER)
def test_a_job_that_waits_is_waited_for(programs, reason):
    programs.make("squeue", f"echo '1 PENDING {reason}'")
    plugin = Plugin(j1="active")
    patch_slurm_executor(plugin, 300)
    assert look(plugin, "1") == ["1"]
    assert never_starts("--jobs=1") == ""


CALL = "sbatch --comment rule_fit_wildcards_P1_2 -N 1"
REFUSAL = f"SLURM sbatch failed. The error message was 'sbatch: error: {{}}'.\n    sbatch call:\n        {CALL}\n"


@pytest.fixture
def no_pause(monkeypatch):
    monkeypatch.setattr(plugin_patches, "_RETRY_SECONDS", 0)


@pytest.mark.parametrize(
    "said", ["Unable to contact slurm controller (connect failure)", "Socket timed out on send/recv"]
)
def test_a_job_is_submitted_again_until_slurm_answers(programs, no_pause, caplog, said):
    """Once: what SLURM had taken although it did not answer is cancelled."""
    programs.make("squeue", "echo '7 rule_fit_wildcards_P1_2'; echo '8 rule_fit_wildcards_P1_3'; echo '9 (null)'")
    programs.make("scancel")
    plugin = Plugin()
    plugin.refusals = [REFUSAL.format(said)] * 3
    patch_slurm_executor(plugin, 300)
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
    patch_slurm_executor(plugin, 300)
    plugin.run_job("the job")
    assert plugin.submitted == []
    assert len(plugin.ended) == 1


def test_nothing_is_submitted_after_the_end_of_a_run(programs):
    plugin = Plugin()
    plugin.refusals = [REFUSAL.format("Unable to contact slurm controller")]
    patch_slurm_executor(plugin, 300)
    plugin._job_submission_executor.shutdown()
    plugin.run_job("the job")
    assert plugin.submitted == []
    assert len(plugin.ended) == 1


@pytest.mark.parametrize(("age", "warns"), [(None, False), (300, False), (60, False), (59, True), (0, True)])
def test_a_warning_where_slurm_forgets_jobs_early(programs, age, warns):
    assert sacct_message(age, 60) == ""
    programs.make("sacct")
    message = sacct_message(age, 60)
    assert bool(message) == warns
    assert not warns or f"MinJobAge is {age} s" in message
