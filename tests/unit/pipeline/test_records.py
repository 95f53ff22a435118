"""What Snakemake records of jobs, and when."""

import asyncio
import types

from snakemake.io import _IOFile
from snakemake.persistence import PersistenceBase
from snakemake.persistence.file import FilePersistence
from snakemake_interface_executor_plugins.settings import ExecMode

from cohortgmm.pipeline import records


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
                records.leave_records_to_run()
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
    records.record_parameters_at_the_end("refit")
    kept = FilePersistence(path=tmp_path / ".snakemake")
    jobs = {rule: Job(rule, "not chosen yet") for rule in ("refit", "fit")}
    assert [kept._params(job) for job in jobs.values()] == [["'not chosen yet'"]] * 2
    for job in jobs.values():
        job.k = 3
    assert kept._params(jobs["refit"]) == ["3"]
    assert kept._params(jobs["fit"]) == ["'not chosen yet'"]
