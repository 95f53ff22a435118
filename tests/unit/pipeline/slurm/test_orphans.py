"""Jobs that a killed run has left in SLURM's queue are cancelled before their work is done once more."""

import subprocess
import types

import pytest
from snakemake.persistence.file import FilePersistence

from cohortgmm.errors import CohortgmmError
from cohortgmm.pipeline.slurm import commands, orphans
from cohortgmm.pipeline.slurm.orphans import RUN_FILE, cancel_orphans, forget_run, remember_run, remove_unrecorded

NAME = "cohortgmm-1b4e28ba-2fa1-11d2-883f-0016d3cca427"
ASKED = ["squeue", f"--name={NAME}", "--noheader", "--format=%A"]
CANCELLED = ["scancel", f"--name={NAME}"]


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


@pytest.fixture
def queue(programs):
    """A queue that `squeue` lists, and a `scancel`; the file of the queue."""
    path = programs.folder / "queue"
    path.write_text("")
    programs.make("squeue", f"while read -r job; do echo \"$job\"; done < '{path}'")
    programs.make("scancel")
    return path


@pytest.fixture
def clock(monkeypatch):
    """A clock on which a second takes no time; what happens while it is waited for is put into `meanwhile`."""

    def sleep(seconds):
        clock.now += seconds
        clock.naps += 1
        assert clock.naps < 1000
        if clock.meanwhile:
            clock.meanwhile.pop(0)()

    clock = types.SimpleNamespace(now=1000.0, naps=0, meanwhile=[], sleep=sleep, monotonic=lambda: clock.now)
    monkeypatch.setattr(orphans, "time", clock)
    return clock


def problem(results):
    with pytest.raises(CohortgmmError) as caught:
        cancel_orphans(str(results))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_an_earlier_run_nobody_is_asked(results, programs):
    programs.make("squeue", "exit 1")
    assert cancel_orphans(str(results)) == 0
    assert cancel_orphans(str(results / "nothing here")) == 0
    (results / RUN_FILE).write_text("\n")  # a name that is empty would be that of every job
    assert cancel_orphans(str(results)) == 0
    assert programs.calls == []


def test_a_run_that_left_nothing_is_forgotten(results, programs, queue, clock):
    remember_run(str(results), NAME)
    assert cancel_orphans(str(results)) == 0
    assert programs.calls == [ASKED]
    assert not (results / RUN_FILE).exists()
    assert cancel_orphans(str(results)) == 0
    assert programs.calls == [ASKED]


def test_live_jobs_are_cancelled_and_waited_for(results, programs, queue, clock):
    remember_run(str(results), NAME)
    queue.write_text("17\n18\n21\n")
    clock.meanwhile = [lambda: queue.write_text("18\n"), lambda: queue.write_text("")]
    assert cancel_orphans(str(results)) == 3
    assert programs.calls == [ASKED, CANCELLED, ASKED, ASKED, ASKED]
    assert clock.naps == 2
    assert not (results / RUN_FILE).exists()


def test_jobs_that_do_not_end_are_named(results, programs, queue, clock):
    remember_run(str(results), NAME)
    queue.write_text("17\n18\n")
    assert problem(results) == (f"jobs 17, 18 of a killed run do not end: scancel --name={NAME}, then run again")
    assert 100 <= clock.now - 1000 <= 200  # it was patient, but not for ever
    assert programs.calls.count(CANCELLED) == 1
    # The next run asks again.
    assert (results / RUN_FILE).read_text().strip() == NAME
    queue.write_text("")
    assert cancel_orphans(str(results)) == 0


def test_a_queue_that_does_not_answer_is_an_error(results, programs, clock):
    programs.make("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; echo x >&2; exit 1")
    remember_run(str(results), NAME)
    assert problem(results) == (
        f"jobs of a killed run may still be in SLURM's queue: `{' '.join(ASKED)}` failed: "
        "slurm_load_jobs error: Unable to contact slurm controller; x"
    )
    assert (results / RUN_FILE).exists()


def test_a_program_that_fails_without_a_word_is_an_error(results, programs, queue, clock):
    programs.make("scancel", "exit 3")
    remember_run(str(results), NAME)
    queue.write_text("17\n")
    found = problem(results)
    assert f"`scancel --name={NAME}` failed: " in found
    assert "exit status 3" in found
    assert (results / RUN_FILE).exists()


def test_a_queue_that_hangs_is_an_error(results, monkeypatch):
    def hang(command, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(commands.subprocess, "run", hang)
    remember_run(str(results), NAME)
    assert "timed out after 60 seconds" in problem(results)
    assert (results / RUN_FILE).exists()


def test_a_machine_without_slurm_sends_to_one_that_has_it(results, programs):
    remember_run(str(results), NAME)
    assert problem(results) == (
        "jobs of a killed run may still be in SLURM's queue: there is no squeue here: run again on a login node"
    )
    assert (results / RUN_FILE).exists()


def test_the_last_run_is_the_one_remembered(results, programs, queue, clock):
    remember_run(str(results), "before")
    remember_run(str(results), NAME)
    cancel_orphans(str(results))
    assert programs.calls == [ASKED]


def test_a_run_that_has_ended_by_itself_is_forgotten(results, programs):
    """Its results may go to a machine without SLURM."""
    remember_run(str(results), NAME)
    forget_run(str(results))
    assert cancel_orphans(str(results)) == 0
    assert programs.calls == []
    forget_run(str(results))


# Results that a killed run did not see


def test_results_that_were_not_recorded_are_removed(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    patient = "P" * 200
    names = [
        "results/fits/P1/k2.npz",
        f"results/models/{patient}.npz",
        "results/cohort_gmm.h5ad",
        "results/models/P2.npz",
    ]
    others = ["results/patients.tsv", "results/fits/P1/k1.npz", "notes.txt"]
    for name in names[:-1] + others:
        write(name)
    marks = FilePersistence(path=tmp_path / ".snakemake")
    for name in names + others[:1] + others[2:]:
        marks._mark_incomplete(name, None)
    write(".snakemake/incomplete/migration_underway")
    remove_unrecorded()
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.glob("results/**/*") if path.is_file()} == set(
        others[:2]
    )
    assert (tmp_path / "notes.txt").exists()
    remove_unrecorded()


def test_where_nothing_was_run_nothing_is_removed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    remove_unrecorded()
    assert not list(tmp_path.iterdir())
