"""What the Snakefile asks: files of the configuration, fingerprints, parts, the lock, the summary of failures."""

import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from cohortgmm import workflow as helpers
from cohortgmm.cohort.tables import PATIENT_COLUMNS, write_table
from cohortgmm.errors import CohortgmmError, ConfigError
from cohortgmm.files import COHORT

SOURCE = Path(__file__).parents[2] / "src"
CONFIG = {"input": "data/cohort.h5ad", "patient_col": "patient"}


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A working directory, which is the current one, and a workflow's folder."""
    for name in ("work", "flow"):
        (tmp_path / name / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    return types.SimpleNamespace(work=tmp_path / "work", flow=tmp_path / "flow")


def test_files_are_found_in_the_working_directory_first(places):
    (places.flow / "data" / "cohort.h5ad").touch()
    (places.flow / "sheet.tsv").touch()
    found = helpers.load_config(CONFIG | {"patients": "sheet.tsv"}, "c.yaml", places.flow)
    assert found.input == str(places.flow / "data" / "cohort.h5ad")
    assert found.patients == str(places.flow / "sheet.tsv")
    (places.work / "data" / "cohort.h5ad").touch()
    found = helpers.load_config(CONFIG | {"patients": "sheet.tsv"}, "c.yaml", places.flow)
    assert found.input == "data/cohort.h5ad"
    assert found.patients == str(places.flow / "sheet.tsv")


def test_an_absolute_path_is_taken_as_it_is(places):
    (places.work / "x.h5ad").touch()
    config = CONFIG | {"input": str(places.work / "x.h5ad")}
    assert helpers.load_config(config, "c.yaml", places.flow).input == str(places.work / "x.h5ad")
    assert helpers.load_config(config, "c.yaml", places.flow).patients is None


def test_all_missing_files_are_named_at_once(places):
    (places.work / "data" / "cohort.h5ad").mkdir()  # a folder is no file
    with pytest.raises(ConfigError) as caught:
        helpers.load_config(CONFIG | {"patients": "sheet.tsv"}, "c.yaml", places.flow)
    assert str(caught.value).splitlines() == [
        f"c.yaml: input: no such file: data/cohort.h5ad (looked in {places.work})",
        f"c.yaml: patients: no such file: sheet.tsv (looked in {places.work})",
    ]


def test_a_bad_key_comes_before_a_missing_file(places):
    with pytest.raises(ConfigError, match=r"^c\.yaml: inptu: unknown key; did you mean input\?$"):
        helpers.load_config(CONFIG | {"inptu": 1}, "c.yaml", places.flow)


CODE = """
import os

def f(a):
    if a:
        b = "text"
        a = b
    return a
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Factory: the fingerprint of a module of this text."""
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "fingerprinted_module.py"

    def fingerprint(text):
        path.write_text(text)
        return helpers.fingerprint("fingerprinted_module")

    fingerprint.path = path
    return fingerprint


def test_a_fingerprint_is_blind_to_what_is_no_code(module):
    first = module(CODE)
    assert len(first) == 16
    assert int(first, 16) >= 0
    os.utime(module.path, (0, 0))
    assert helpers.fingerprint("fingerprinted_module") == first
    for remark in (
        "# about the module\n" + CODE,
        CODE + "\n\n# the end\n",
        CODE.replace("if a:", "if a:  # why\n\n        # how"),
        CODE.replace("\n    ", "\n  ").replace("\n      ", "\n    "),
        CODE.rstrip("\n"),
        CODE.replace("import os\n", "import os\n\n\n"),
        CODE.replace("def f(a)", "def f(\n    a\n)"),
    ):
        assert module(remark) == first


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"text"', '"texts"'),
        ("return a", "return b"),
        ("import os", "import io"),
        ("f(a)", "f(a=1)"),
        ("        a = b\n", "    a = b\n"),  # out of the block: the same words, another meaning
        ('b = "text"\n        a = b', 'b = "text"; a = b; c = a'),
    ],
)
def test_a_fingerprint_sees_code(module, old, new):
    assert CODE.count(old) == 1
    assert module(CODE.replace(old, new)) != module(CODE)


def test_a_fingerprint_of_a_package_covers_its_modules(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "fingerprinted_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("x = 1\n")
    seen = [helpers.fingerprint("fingerprinted_package")]
    (package / "a.py").write_text("x = 2\n")
    seen.append(helpers.fingerprint("fingerprinted_package"))
    (package / "b.py").write_text("")
    seen.append(helpers.fingerprint("fingerprinted_package"))
    (package / "b.py").rename(package / "c.py")
    seen.append(helpers.fingerprint("fingerprinted_package"))
    seen.append(helpers.fingerprint("fingerprinted_package.a"))
    assert len(set(seen)) == 5


def test_parts_are_the_kept_patients_or_the_cohort(tmp_path):
    rows = [
        {"patient": "a/b", "file": "a=2Fb", "status": "ok"},
        {"patient": "c", "file": "c", "status": "dropped"},
        {"patient": "NA", "file": "NA", "status": "ok"},
    ]
    write_table(tmp_path / "patients.tsv", PATIENT_COLUMNS, rows)
    assert helpers.part_names("sample_specific", tmp_path / "patients.tsv") == ["a=2Fb", "NA"]
    assert helpers.part_names("global", tmp_path / "patients.tsv") == [COHORT]
    assert helpers.sheet_part_names("sample_specific", ["a/b", "NA"]) == ["a=2Fb", "NA"]
    assert helpers.sheet_part_names("global", ["a/b", "NA"]) == [COHORT]


def test_names_as_the_report_shows_them():
    assert helpers.patient_name(COHORT) == "all patients"
    assert helpers.patient_name("=5Fcohort") == "_cohort"
    assert helpers.patient_name("a=2Fb") == "a/b"


def test_resources_grow_with_the_input_and_the_attempt(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(bytes(3_000_000))
    amount = helpers.scaled(1000, 6.5)
    assert amount(None, [str(file)], 1) == 1019
    assert amount(None, [str(file), str(file)], 1) == 1039
    assert amount(None, [str(file)], 3) == 4078
    assert amount(None, [str(tmp_path / "not made yet")], 1) == 1000
    assert helpers.scaled(15)(None, [str(file)], 2) == 30


def test_a_results_folder_that_can_be_used(tmp_path, monkeypatch):
    helpers.check_results_folder(tmp_path)
    helpers.check_results_folder(tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    helpers.check_results_folder("results")
    assert not (tmp_path / "results").exists()


def test_a_results_folder_that_cannot_be_used(tmp_path, monkeypatch):
    file = tmp_path / "results"
    file.write_text("")
    with pytest.raises(CohortgmmError) as caught:
        helpers.check_results_folder(file)
    assert str(caught.value) == f"results cannot be written: {file} is not a folder; choose another with --directory"
    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == tmp_path and mode == os.W_OK))
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(CohortgmmError, match=f"results cannot be written: {tmp_path} is not writable"):
            helpers.check_results_folder(folder)


HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from cohortgmm.workflow import lock_results
lock_results(sys.argv[2])
print("held", flush=True)
time.sleep(60)
"""


def test_a_folder_is_locked_for_the_life_of_a_process(tmp_path):
    results = tmp_path / "results"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(SOURCE), str(results)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(CohortgmmError) as caught:
            helpers.lock_results(results)
        assert str(caught.value) == (
            f"{results.resolve()} is in use by another run (process {holder.pid} on {os.uname().nodename}): "
            "wait for it, or use --directory"
        )
        other = helpers.lock_results(tmp_path / "other results")
        os.close(other)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    descriptor = helpers.lock_results(results)
    try:
        assert descriptor >= 0
        assert (results / ".lock").read_text() == f"process {os.getpid()} on {os.uname().nodename}"
        with pytest.raises(CohortgmmError, match=f"process {os.getpid()} on"):
            helpers.lock_results(results)
    finally:
        os.close(descriptor)


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(helpers.fcntl, "flock", no_locks)
    assert helpers.lock_results(tmp_path) == -1


def test_failures_of_this_run_are_listed(tmp_path):
    def log(name, text, age=0.0):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (now - age, now - age))

    now = time.time()
    log("fit/P2/k1.log", "INFO a\nerror: patient 'P2', k=1: no luck\n\n")
    log("fit/P1/k1.log", "error: first\nINFO went on\n")
    log("fit/P1/k2.log", "error: of the run before\n", age=100)
    log("merge.log", "Traceback\nerror: KeyError: 'x' (traceback in the log)\n")
    log("empty.log", "")
    log("notes.txt", "error: no log\n")
    assert helpers.failures(tmp_path, now - 50) == [
        f"patient 'P2', k=1: no luck  [{tmp_path}/fit/P2/k1.log]",
        f"KeyError: 'x' (traceback in the log)  [{tmp_path}/merge.log]",
    ]
    assert helpers.failures(tmp_path / "nothing", 0) == []
