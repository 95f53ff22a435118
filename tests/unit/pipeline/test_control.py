"""A run from the reading of the Snakefile to its last words, with a stand-in for Snakemake's workflow."""

import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.exceptions import WorkflowError

from cohortgmm import __version__
from cohortgmm.cohort.tables import PATIENT_COLUMNS, write_table
from cohortgmm.config import read_config
from cohortgmm.errors import CohortgmmError
from cohortgmm.pipeline import control, lock
from cohortgmm.pipeline.control import Run
from cohortgmm.pipeline.failures import read_failures
from cohortgmm.pipeline.lock import Shard
from cohortgmm.pipeline.slurm import orphans
from cohortgmm.pipeline.slurm.shards import SHARD_VARIABLE
from cohortgmm.pipeline.versions import version_of

LOGGER = logging.getLogger("snakemake.logging")


def job(rule, *, is_local=True, **wildcards):
    return SimpleNamespace(
        rule=SimpleNamespace(name=rule),
        wildcards=SimpleNamespace(**wildcards),
        log=[],
        attempt=1,
        threads=1,
        resources={"runtime": 60, "mem_mb": 500},
        is_local=is_local,
        output=[],
    )


class Workflow:
    """What a run asks of Snakemake's workflow."""

    def __init__(self, basedir, *jobs, executor="local", dryrun=False, is_main=True):
        self.basedir = str(basedir)
        self.is_main_process, self.dryrun = is_main, dryrun
        self.executor_plugin = SimpleNamespace(name=executor)
        self.configfiles, self.overwrite_configfiles = ["config.yaml"], ["config.yaml"]
        self.dag_settings = SimpleNamespace(batch=None)
        self.dag = SimpleNamespace(needrun_jobs=lambda: iter(jobs), forcerules=set(), jobid=lambda job: 0)
        self.scheduler = SimpleNamespace(failed=[])
        self.records = set()

    def get_rule(self, name):
        return name


RUNS: list[Run] = []


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """An empty working directory; afterwards no handler and no lock of a run is left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(SHARD_VARIABLE, raising=False)
    monkeypatch.setattr(control, "check_header", lambda config: None)
    monkeypatch.setattr(
        control.plugin_patches, "has_records", lambda workflow, paths: bool(workflow.records & {*paths})
    )
    handlers = list(LOGGER.handlers)
    yield
    LOGGER.handlers = handlers
    while RUNS:
        for descriptor in RUNS.pop()._lock:
            os.close(descriptor)


def run(*jobs, sheet=None, shard=None, gmm=None, **options):
    config = read_config({"input": "x.h5ad", "patient_col": "p", "preprocess": {"enabled": False}, "gmm": gmm or {}})
    RUNS.append(Run(Workflow("/flow", *jobs, **options), config, sheet, shard))
    return RUNS[-1]


def divide(*patients, dropped=()):
    """The table of patients and their array files."""
    rows = [{"patient": name, "file": name, "status": "ok"} for name in patients]
    rows += [{"patient": name, "file": name, "status": "dropped"} for name in dropped]
    write_table(control.TABLE, PATIENT_COLUMNS, rows)
    for name in patients:
        touch(f"results/patients/{name}.npz")


def touch(name):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


# Reading the Snakefile


def test_a_run_reads_its_configuration_and_prepares_the_jobs(tmp_path, monkeypatch):
    prepared = []
    monkeypatch.setattr(control.settings, "prepare_jobs", lambda *given, **options: prepared.append((given, options)))
    monkeypatch.setattr(control.plugin_patches, "patch_snakemake", lambda *given, **options: prepared.append(options))
    touch("x{y}.h5ad")
    (tmp_path / "sheet.tsv").write_text("patient\nP1\nP2\n")
    config = {"input": "x{y}.h5ad", "patients": "sheet.tsv", "patient_col": "p"}
    monkeypatch.setenv(SHARD_VARIABLE, "2/3")
    read = Run.read(Workflow(tmp_path), config)
    assert (list(read.sheet), read.shard, read.sheet_file) == (["P1", "P2"], Shard(2, 3), "sheet.tsv")
    assert "{" not in read.input_file  # a link with a plain name
    assert read.further_files == []
    assert prepared == [
        ((str(tmp_path / "src"),), {"verbose": True}),
        {"is_main_process": True, "recorded_at_end": "refit"},
    ]


def test_problems_of_the_configuration_end_the_call(tmp_path):
    with pytest.raises(WorkflowError, match=r"no such file: nowhere\.h5ad"):
        Run.read(Workflow(tmp_path), {"input": "nowhere.h5ad", "patient_col": "p"})
    (tmp_path / "results").touch()
    with pytest.raises(WorkflowError, match="is not a folder"):
        Run.read(Workflow(tmp_path), {})


# While Snakemake plans


def no_table():
    raise AssertionError("the table is not asked for")


def test_the_units_of_a_dry_run_are_those_of_the_sample_sheet():
    planned = run(sheet=["P1", "P/2", "P3"], dryrun=True)
    planned._checked.add("input")
    divide("P1", dropped=["P3"])
    assert list(planned.units(no_table)) == ["P1", "P=2F2"]
    assert planned.cells_file("P1", planned.foreseen) == "results/patients/P1.npz"
    assert planned.cells_file("P=2F2", planned.foreseen) == control.TABLE  # while there is no file


def test_the_units_of_a_run_are_those_of_the_divided_cohort(capsys):
    planned = run(sheet=["P1", "P2", "P3"])
    divide("P1", "P2", dropped=["P3"])
    names = planned.units(lambda: control.TABLE)
    assert list(names) == ["P1", "P2"]
    assert planned.cells_file("P2", names) == "results/patients/P2.npz"
    with pytest.raises(SystemExit):
        planned.cells_file("P3", names)
    assert "error: no patient 'P3'; results/patients.tsv lists them" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["shard", "batch"])
def test_a_shard_and_a_batch_take_the_division_as_it_is(capsys, how):
    planned = run(shard=Shard(1, 2) if how == "shard" else None)
    planned.workflow.dag_settings.batch = how == "batch"
    with pytest.raises(SystemExit):
        planned.units(no_table)
    assert "results/patients.tsv does not exist: split the cohort first" in capsys.readouterr().err
    divide("P1")
    assert list(planned.units(no_table)) == ["P1"]


def test_lost_array_files_end_the_call(capsys):
    divide("P1")
    os.remove("results/patients/P1.npz")
    with pytest.raises(SystemExit):
        run().units(lambda: control.TABLE)
    assert "error: 1 array files are gone" in capsys.readouterr().err


def test_within_a_run_snakemake_ends_its_jobs():
    begun = run()
    LOGGER.addHandler(begun._errors)
    with pytest.raises(WorkflowError, match=r"^no luck$"):
        begun.stop("no luck")


def test_the_input_is_checked_once_and_in_dry_runs_of_users_only(monkeypatch, capsys):
    checked = []

    def check(config):
        checked.append(config)
        raise CohortgmmError("no column p\nno column q")

    monkeypatch.setattr(control, "check_header", check)
    for other in (run(), run(dryrun=True, shard=Shard(1, 2)), run(dryrun=True, is_main=False)):
        other.check_input()
    assert checked == []
    dry = run(dryrun=True)
    with pytest.raises(SystemExit):
        dry.check_input()
    assert capsys.readouterr().err == "\nerror: no column p\nerror: no column q\n\n"
    dry.check_input()
    assert len(checked) == 1


def test_a_lost_division_is_made_again():
    for planned, forced in ((run(), True), (run(shard=Shard(1, 2)), False)):
        touch("results/scores.tsv")
        planned.split_again()
        assert planned.workflow.dag.forcerules == ({"split"} if forced else set())
    divide("P1")
    touch("results/positions.npz")
    planned = run()
    planned.split_again()
    assert planned.workflow.dag.forcerules == set()


def test_a_report_is_refused_while_jobs_would_run(capsys):
    run().check_report()
    with pytest.raises(SystemExit):
        run(job("fit", patient="P1", k="2")).check_report()
    assert "error: no report: the results are not, or not all, those of this configuration" in capsys.readouterr().err


def test_results_without_records_are_refused_if_they_are_of_another_configuration(monkeypatch, capsys):
    divide("P1")
    touch("results/models/P1.npz")
    status = SimpleNamespace(stale={"P1"}, fits={"P1": ["done"]})
    monkeypatch.setattr(control, "read_status", lambda *given: status)
    with pytest.raises(SystemExit):
        run().units(lambda: control.TABLE)
    assert "results/ holds results of another configuration or version" in capsys.readouterr().err
    for path in (control.TABLE, "results/models/P1.npz"):
        recorded = run()
        recorded.workflow.records.add(path)
        assert list(recorded.units(lambda: control.TABLE)) == ["P1"]
    status.stale, status.fits = set(), {"P1": ["of another configuration"]}
    assert control.unrecorded_problem(Workflow("/flow"), run().config)
    status.fits = {"P1": ["done", "to do"]}
    assert control.unrecorded_problem(Workflow("/flow"), run().config) == ""


def test_files_of_jobs_that_outlived_their_run_are_removed_before_snakemake_looks(monkeypatch):
    removed = []
    monkeypatch.setattr(orphans, "remove_unrecorded", lambda: removed.append(1))
    divide("P1")
    for other in (run(dryrun=True), run(shard=Shard(1, 2)), run(is_main=False)):
        other.units(lambda: control.TABLE)
    held = lock.lock_results("results")
    run().units(lambda: control.TABLE)
    assert removed == []
    for descriptor in held:
        os.close(descriptor)
    planned = run()
    planned.units(lambda: control.TABLE)
    planned.units(lambda: control.TABLE)
    assert removed == [1]


# Begin and end


def test_a_run_locks_the_results_and_reports_its_jobs(capsys):
    first = run(job("split"), job("all"), sheet=["P1", "P2"])
    first.begin()
    assert "1 jobs for 2 patients, more once the patients are known, executor local" in capsys.readouterr().err
    assert lock.lock_holders("results")
    with pytest.raises(WorkflowError, match="is in use by another run"):
        run().begin()
    # When the first job of a patient starts, all jobs are known.
    divide("P1", "P2")
    record = LOGGER.makeRecord("snakemake", logging.INFO, "", 0, "", (), None)
    record.event, record.rule_name, record.jobid = SimpleNamespace(name="JOB_INFO"), "fit", 1
    for handler in [*LOGGER.handlers] * 2:
        handler.handle(record)
    assert capsys.readouterr().err.count("1 jobs for 2 patients") == 1
    first.succeed(lambda: {})


def test_the_version_of_the_results_is_reported_and_noted_when_all_of_them_are_made(monkeypatch, capsys):
    divide("P1")
    for target, seen in (("refit", "0.1.0"), ("all", __version__)):
        begun = run(job(target))
        begun.begin()
        assert "results/ holds results of cohortgmm 0.1.0" in capsys.readouterr().err
        begun.succeed(lambda: {})
        assert version_of("results") == seen
        os.close(begun._lock.pop())


def test_shards_work_side_by_side(capsys):
    shards = [run(shard=Shard(i, 2)) for i in (1, 2)]
    for shard in shards:
        shard.begin()
        shard.succeed(lambda: {})
    assert len(lock.lock_holders("results")) == 2


def test_on_a_cluster_the_input_is_checked_before_the_first_job(monkeypatch):
    def check(config):
        raise CohortgmmError("no column p")

    monkeypatch.setattr(control, "check_header", check)
    with pytest.raises(WorkflowError, match=r"^no column p$"):
        run(executor="slurm").begin()
    assert lock.lock_holders("results") == []


def test_jobs_in_slurm_are_followed_and_remembered(monkeypatch, programs, capsys):
    patched = []
    monkeypatch.setattr(control.plugin_patches, "patch_slurm_executor", lambda *given: patched.append(given))
    programs.make("scontrol", "echo 'MinJobAge = 10 sec'")
    programs.make("sacct")
    executor = SimpleNamespace(run_uuid="run-17")
    executor.workflow = SimpleNamespace(executor_settings=SimpleNamespace(init_seconds_before_status_checks=20))
    begun = run(job("fit", is_local=False, patient="P1", k="2"), executor="slurm")
    begun.workflow.scheduler.get_executor = lambda job: executor
    begun.begin()
    assert patched == [(executor, 10)]
    assert Path("results", orphans.RUN_FILE).read_text() == "run-17\n"
    assert "SLURM's MinJobAge is 10 s" in capsys.readouterr().err
    # At its end nothing is left in the queue.
    programs.make("squeue", "test -e ended || echo 7")
    programs.make("scancel", ": > ended")
    begun.succeed(lambda: {})
    assert "Cancelled 1 jobs that were still in SLURM's queue." in capsys.readouterr().err


def test_failures_are_reported_and_stored_until_a_run_succeeds(capsys):
    failed = run()
    failed.begin()
    failed.workflow.scheduler.failed = [job("fit", patient="P1", k="2")]
    failed.fail()
    assert "1 failed:\n  patient 'P1', k=2: fit ended without a result" in capsys.readouterr().err
    assert [(row.rule, row.patient, row.k) for row in read_failures("results")] == [("fit", "P1", "2")]
    failed.succeed(lambda: {})
    assert read_failures("results") == []


def test_a_queue_that_does_not_answer_at_the_end_is_left_to_the_next_run(programs, capsys):
    ended = run()
    ended.begin()
    orphans.remember_run("results", "run-17")
    ended.succeed(lambda: {})
    assert (
        "there is no squeue here: run again on a login node. The next run will cancel them." in capsys.readouterr().err
    )


def test_a_finished_run_says_what_to_do_with_its_result(monkeypatch, capsys, tmp_path):
    divide("P1")
    for name, columns in (("selection", ["patient", "metric", "n_floored", "at_edge", "k"]), ("scores", ["patient"])):
        write_table(f"results/{name}.tsv", columns, [])
    touch(control.MERGED)
    finished = run()
    finished.workflow.basedir = str(tmp_path)
    finished.succeed(lambda: {"P1": None})
    said = capsys.readouterr().err
    assert 'adata = anndata.read_h5ad("results/cohort_gmm.h5ad")' in said
    assert "Finished. For the report: snakemake --configfile config.yaml --report results/report.html" in said
    run(shard=Shard(1, 2)).succeed(lambda: {"P1": None})
    assert capsys.readouterr().err == ""
