"""No job of SLURM's is lost from view: Snakemake's own plugin in the cases in which it would lose some."""

import asyncio
from types import SimpleNamespace

import pytest

from cohortgmm.runs.watch import age_message, min_job_age, watch_jobs


class Plugin:
    """An executor as far as it is watched; `answers` is what it finds of every job."""

    run_uuid = "cohortgmm-17"

    def __init__(self, **answers):
        self.answers, self.ended = answers, []
        self.next_seconds_between_status_checks = 180
        self.workflow = SimpleNamespace(executor_settings=SimpleNamespace(init_seconds_before_status_checks=20))

    def report_job_success(self, job):
        self.ended.append((job.external_jobid, "success"))

    def report_job_error(self, job, msg=None, **others):
        self.ended.append((job.external_jobid, msg))

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
    programs.make("squeue", "echo 17_2; echo 4")
    plugin = Plugin(j1="active", j17_2="active")
    watch_jobs(plugin, None)
    assert look(plugin, "1", "17_2", "7") == ["1", "7"]
    assert plugin.ended == [("17_2", "SLURM-job '17_2' failed, SLURM status is: 'PREEMPTED'. ")]
    asked = ["squeue", "--name=cohortgmm-17", "--states=PREEMPTED", "--noheader", "--format=%i"]
    assert programs.calls == [asked]
    # Nobody is asked about jobs that have ended.
    plugin.answers = {"j1": "done"}
    assert look(plugin, "1") == []
    assert programs.calls == [asked]


@pytest.mark.parametrize(("age", "pause"), [(None, 60), (300, 60), (100, 50)])
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


@pytest.mark.parametrize(("age", "told"), [(None, False), (300, False), (60, False), (59, True), (0, True)])
def test_a_cluster_that_forgets_early_is_told(age, told):
    message = age_message(age, 60)
    assert bool(message) == told
    assert not told or f"for {age} s only (MinJobAge)" in message
