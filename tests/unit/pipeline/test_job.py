"""A job's log, the one line of its error, and the record of what it used."""

import logging
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from snakemake.iocontainers import Log, ResourceList, Wildcards

from cohortgmm.errors import DataError, FitError
from cohortgmm.pipeline import job as module
from cohortgmm.pipeline.job import (
    ATTEMPT_VARIABLE,
    ERROR_PREFIX,
    LEVEL_VARIABLE,
    Usage,
    failure_line,
    job_log,
    usage_path,
)

SOURCE = Path(__file__).parents[3] / "src"


@pytest.fixture(autouse=True)
def _root_level(monkeypatch):
    monkeypatch.delenv(LEVEL_VARIABLE, raising=False)
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


def job(path, wildcards=(), **resources):
    """What Snakemake gives a script, as far as the log looks at it."""
    return types.SimpleNamespace(
        rule="fit",
        log=Log(toclone=[str(path)]),
        wildcards=Wildcards(fromdict=dict(wildcards)),
        resources=ResourceList(fromdict=resources or {"mem_mb": 390, "runtime": 10}),
    )


def run_job(path, error=None, **wildcards):
    with job_log(job(path, wildcards)):
        print("on stdout")
        print("on stderr", file=sys.stderr)
        logging.getLogger("cohortgmm.test").info("a note")
        logging.getLogger("cohortgmm.test").warning("a warning")
        if error is not None:
            raise error


def test_all_a_job_says_is_in_its_log(tmp_path, capsys):
    path = tmp_path / "logs" / "fit" / "P1.log"
    before = list(logging.getLogger().handlers)
    run_job(path)
    lines = path.read_text().splitlines()
    assert lines == ["on stdout", "on stderr", "INFO a note", "WARNING a warning"]
    assert capsys.readouterr() == ("", "")
    assert logging.getLogger().handlers == before


def test_the_level_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(LEVEL_VARIABLE, "WARNING")
    run_job(tmp_path / "job.log")
    assert "a note" not in (tmp_path / "job.log").read_text()
    assert "WARNING a warning" in (tmp_path / "job.log").read_text()


def test_a_foreseen_failure_is_one_line_in_both_places(tmp_path, capsys):
    before = list(logging.getLogger().handlers)
    with pytest.raises(SystemExit) as caught:
        run_job(tmp_path / "job.log", FitError("no\n  luck"), patient="P1", k="3")
    assert caught.value.code == 1
    line = "error: patient 'P1', k=3: no luck"
    assert capsys.readouterr() == ("", line + "\n")
    assert (tmp_path / "job.log").read_text().splitlines()[-1] == line
    assert "Traceback" not in (tmp_path / "job.log").read_text()
    assert logging.getLogger().handlers == before


def test_an_unforeseen_failure_keeps_its_traceback_in_the_log(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_job(tmp_path / "job.log", ZeroDivisionError("division by zero"))
    line = "error: ZeroDivisionError: division by zero (traceback in the log)"
    assert capsys.readouterr().err == line + "\n"
    text = (tmp_path / "job.log").read_text()
    assert "Traceback (most recent call last)" in text
    assert "in run_job" in text
    assert text.splitlines()[-1] == line


def test_a_log_begins_anew(tmp_path):
    (tmp_path / "job.log").write_text("error: of an earlier attempt\n")
    run_job(tmp_path / "job.log")
    assert ERROR_PREFIX not in (tmp_path / "job.log").read_text()


def test_an_interrupt_is_not_swallowed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_job(tmp_path / "job.log", KeyboardInterrupt())
    assert ERROR_PREFIX not in (tmp_path / "job.log").read_text()


@pytest.mark.parametrize(
    ("error", "context", "line"),
    [
        (DataError("bad\n  data"), "", "error: bad data"),
        (DataError("bad"), "patient 'a'", "error: patient 'a': bad"),
        (MemoryError(), "k=2", "error: k=2: out of memory; give the job more (resources mem_mb)"),
        (KeyError("x"), "", "error: KeyError: 'x' (traceback in the log)"),
    ],
)
def test_failure_lines(error, context, line):
    assert failure_line(error, context) == line


# What a job used


def used(log):
    """The record beside a log."""
    return Usage.read(usage_path(log))


@pytest.mark.parametrize("error", [None, DataError("bad"), KeyError("x"), KeyboardInterrupt()])
def test_every_job_records_what_it_used_also_if_it_fails(tmp_path, error):
    try:
        run_job(tmp_path / "job.log", error)
    except (SystemExit, KeyboardInterrupt):
        assert error is not None
    usage = used(tmp_path / "job.log")
    assert (usage.rule, usage.memory_asked, usage.seconds_asked, usage.attempt) == ("fit", 390, 600, 1)
    assert usage.memory > 0
    assert len((tmp_path / "job.tsv").read_text().splitlines()) == 2


def test_a_job_that_is_killed_leaves_no_record_of_an_earlier_attempt(tmp_path):
    run_job(tmp_path / "job.log")
    with job_log(job(tmp_path / "job.log")):
        assert used(tmp_path / "job.log") is None
    assert used(tmp_path / "job.log") is not None


def test_what_was_requested_is_in_mb_and_seconds(tmp_path):
    with job_log(job(tmp_path / "job.log", mem_mb=1234, runtime=7, tmpdir="/tmp")):
        pass
    usage = used(tmp_path / "job.log")
    assert (usage.memory_asked, usage.seconds_asked) == (1234, 420)


def test_a_job_that_requested_nothing(tmp_path):
    with job_log(job(tmp_path / "job.log", tmpdir="/tmp")):
        pass
    usage = used(tmp_path / "job.log")
    assert (usage.memory_asked, usage.seconds_asked) == (0, 0)


def test_a_record_that_cannot_be_written_is_no_obstacle(tmp_path):
    (tmp_path / "job.tsv").mkdir()
    run_job(tmp_path / "job.log")
    assert used(tmp_path / "job.log") is None


JOB = """
import sys, time, types
sys.path.insert(0, sys.argv[1])
from cohortgmm.pipeline.job import job_log
resources = {"mem_mb": 1000, "runtime": 1}
with job_log(types.SimpleNamespace(rule="fit", log=[sys.argv[2]], wildcards=None, resources=resources)):
    block = bytearray(int(sys.argv[3]) << 20)
    del block
    time.sleep(float(sys.argv[4]))
"""


# Small, as the system's peak of a process begins with that of the one that started it.
WATCH = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]])
_, status, used = os.wait4(child.pid, 0)
print(used.ru_maxrss >> 10)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def run_in_process(path, megabytes, seconds):
    """A job of a process of its own; what it said it used, and what the system says: peak memory in MB, seconds."""
    started = time.monotonic()
    arguments = [JOB, str(SOURCE), str(path), str(megabytes), str(seconds)]
    peak = subprocess.run([sys.executable, "-c", WATCH, *arguments], check=True, capture_output=True, text=True).stdout
    return used(path), int(peak), time.monotonic() - started


def test_peak_memory_and_time_are_those_the_system_counts(tmp_path):
    usage, peak, elapsed = run_in_process(tmp_path / "job.log", 700, 0.6)
    # The kernel adds up what its processors count only now and then.
    assert 700 < usage.memory == pytest.approx(peak, rel=0.05)
    assert 0.6 <= usage.seconds <= elapsed + 0.1
    small, _, _ = run_in_process(tmp_path / "job.log", 1, 0)
    assert small.memory < 100


LARGE_PARENT = """
import subprocess, sys
block = bytearray(300 << 20)
subprocess.run([sys.executable, "-c", *sys.argv[1:]], check=True)
"""


def test_memory_of_the_process_that_started_a_job_does_not_count(tmp_path):
    arguments = [JOB, str(SOURCE), str(tmp_path / "job.log"), "1", "0"]
    subprocess.run([sys.executable, "-c", LARGE_PARENT, *arguments], check=True)
    assert 1 < used(tmp_path / "job.log").memory < 150


def without(monkeypatch, read):
    """Let files of /proc be read by another function."""
    read_text = Path.read_text
    monkeypatch.setattr(
        module.Path,
        "read_text",
        lambda path, *options, **named: read(path) if path.parts[1] == "proc" else read_text(path, *options, **named),
    )


def test_a_system_that_does_not_tell_is_no_obstacle(tmp_path, monkeypatch):
    def missing(path):
        raise FileNotFoundError(2, "No such file or directory", str(path))

    without(monkeypatch, missing)
    run_job(tmp_path / "job.log")
    assert used(tmp_path / "job.log") == Usage("fit", 0, 390, 0.0, 600)


def test_a_system_that_tells_no_peak_is_no_obstacle(tmp_path, monkeypatch):
    without(monkeypatch, lambda path: "Name:\tpython\nVmRSS:\t 4096 kB\n" if path.name == "status" else "1 (python) S")
    run_job(tmp_path / "job.log")
    assert used(tmp_path / "job.log").memory == 0


@pytest.mark.parametrize(
    "usage",
    [
        Usage("fit", 44, 390, 0.2, 600),
        Usage("merge", 0, 0, 0.0, 0),
        Usage("fit", 123456, 200000, 86399.9, 172800),
        Usage("refit", 600, 1600, 9.0, 2400, 3),
    ],
)
def test_usage_is_read_as_it_is_written(tmp_path, usage):
    usage.write(tmp_path / "job.tsv")
    assert Usage.read(tmp_path / "job.tsv") == usage


def test_a_job_records_which_attempt_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv(ATTEMPT_VARIABLE, "2")
    with job_log(job(tmp_path / "job.log", mem_mb=1234, runtime=7)):
        pass
    usage = used(tmp_path / "job.log")
    assert (usage.attempt, usage.first.memory_asked, usage.first.seconds_asked) == (2, 617, 210)


def test_the_first_attempt_requested_less():
    assert Usage("fit", 600, 1600, 9.0, 2400, 3).first == Usage("fit", 600, 400, 9.0, 600, 3)
    assert Usage("fit", 600, 1600, 9.0, 2400).first == Usage("fit", 600, 1600, 9.0, 2400)
