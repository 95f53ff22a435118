"""A job says everything in its log, and one line on the terminal where it fails."""

import logging
import sys

import pytest

from cohortgmm.errors import DataError, FitError
from cohortgmm.log import ERROR_PREFIX, LEVEL_VARIABLE, failure_line, job_log


@pytest.fixture(autouse=True)
def _root_level(monkeypatch):
    monkeypatch.delenv(LEVEL_VARIABLE, raising=False)
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


def run_job(path, error=None, context=""):
    with job_log(path, context):
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
    assert path.read_text().splitlines() == ["on stdout", "on stderr", "INFO a note", "WARNING a warning"]
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
        run_job(tmp_path / "job.log", FitError("no\n  luck"), "patient 'P1', k=3")
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
