"""File names of patients are reversible, and an output is there whole or not at all."""

import errno
import os
import re
import shutil
import subprocess
import types
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cohortgmm.errors import CohortgmmError, DataError, OutputError
from cohortgmm.storage.atomic import atomic_path
from cohortgmm.storage.names import COHORT, describe, escape_id, patient_name, unescape_id

SAFE = re.compile(r"[A-Za-z0-9=][A-Za-z0-9._=-]*")
ids = st.text(min_size=1, max_size=16)


@given(ids)
@example("=2F")
@example("_cohort")
@example("...")
@example("患者 1/2")
@example("a\nb\0")
def test_an_escaped_id_is_safe_and_reversible(patient):
    name = escape_id(patient)
    assert SAFE.fullmatch(name)
    assert name != COHORT
    assert unescape_id(name) == patient


@given(ids, ids)
def test_different_ids_have_different_names(one, other):
    assert (escape_id(one) == escape_id(other)) == (one == other)


@pytest.mark.parametrize(
    ("patient", "name"),
    [
        ("P1", "P1"),
        ("a.b_c-d", "a.b_c-d"),
        ("_cohort", "=5Fcohort"),
        (".hidden", "=2Ehidden"),
        ("-x", "=2Dx"),
        ("a/b c", "a=2Fb=20c"),
        ("a=2Fb", "a=3D2Fb"),
        ("ü", "=C3=BC"),
    ],
)
def test_how_ids_are_escaped(patient, name):
    assert escape_id(patient) == name


def test_an_empty_id_is_refused():
    with pytest.raises(DataError, match="an empty patient id: give every cell a patient"):
        escape_id("")


def test_200_characters_are_the_most():
    longest = "".join(map(str, range(92)))[:172] + "abcdefghijklmnopqrstuvwxyz.."
    assert len(longest) == 200
    assert escape_id(longest) == longest
    with pytest.raises(DataError, match=r"patient id 'x{40}'\.\.\. needs 201 characters as a file name, 200 at most"):
        escape_id("x" * 40 + longest[:161])
    assert len(escape_id("éà" * 16 + "ê")) == 198  # six characters each
    with pytest.raises(DataError, match="needs 204 characters"):
        escape_id("éà" * 17)


def test_names_as_messages_and_the_report_show_them():
    assert patient_name(COHORT) == "all patients"
    assert patient_name("=5Fcohort") == "_cohort"
    assert patient_name("a=2Fb") == "a/b"


def test_a_job_is_described_by_patient_and_k():
    assert describe(types.SimpleNamespace(patient="a=2Fb", k="3")) == "patient 'a/b', k=3"
    assert describe(types.SimpleNamespace(patient=COHORT)) == "all patients"
    assert describe(types.SimpleNamespace()) == ""


def test_a_file_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "new" / "folder" / "table.tsv"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == ".tsv"
        temporary.write_text("content")
        assert not target.exists()
    assert target.read_text() == "content"
    assert os.listdir(target.parent) == ["table.tsv"]


def write_half(target):
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        raise KeyError("stop")


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(KeyError, match="stop"):
        write_half(tmp_path / "table.tsv")
    assert os.listdir(tmp_path) == []


def test_a_failure_leaves_the_existing_file(tmp_path):
    (tmp_path / "table.tsv").write_text("before")
    with pytest.raises(KeyError, match="stop"):
        write_half(tmp_path / "table.tsv")
    assert os.listdir(tmp_path) == ["table.tsv"]
    assert (tmp_path / "table.tsv").read_text() == "before"


def test_an_existing_file_is_replaced(tmp_path):
    (tmp_path / "table.tsv").write_text("before")
    with atomic_path(tmp_path / "table.tsv") as temporary:
        temporary.write_text("after")
    assert (tmp_path / "table.tsv").read_text() == "after"


@pytest.mark.parametrize(
    ("keep", "content", "kept"), [(True, "same", True), (True, "else", False), (False, "same", False)]
)
def test_the_same_content_keeps_its_time_where_asked(tmp_path, keep, content, kept):
    target = tmp_path / "array.npz"
    target.write_text("same")
    os.utime(target, ns=(10**18, 10**18))
    with atomic_path(target, keep_if_same=keep) as temporary:
        temporary.write_text(content)
    assert target.read_text() == content
    assert (target.stat().st_mtime_ns == 10**18) == kept
    assert os.listdir(tmp_path) == ["array.npz"]


@pytest.mark.parametrize(
    ("code", "reason"), [(errno.ENOSPC, "No space left on device"), (errno.EACCES, "Permission denied")]
)
@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
def test_an_error_of_the_output_names_path_and_reason(tmp_path, code, reason, named):
    target = tmp_path / "out" / "array.npz"
    expected = f"cannot write {target}: {reason}; free space, or choose another folder with --directory"

    def write():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise OSError(code, os.strerror(code), *([str(temporary)] if named else []))

    with pytest.raises(OutputError) as caught:
        write()
    assert str(caught.value) == expected
    assert isinstance(caught.value, CohortgmmError)
    assert os.listdir(target.parent) == []


def test_an_error_without_a_number_is_named_by_its_first_line(tmp_path):
    with (
        pytest.raises(OutputError, match=r"cannot write .*x\.h5ad: Unable to write; free space"),
        atomic_path(tmp_path / "x.h5ad"),
    ):
        raise OSError("Unable to write\nerrno = 28")


def test_a_copy_that_fills_the_disk_is_an_error_of_the_output(tmp_path):
    """shutil.copyfile names the source first and the target second."""
    with pytest.raises(OutputError, match="No space left on device"), atomic_path(tmp_path / "x.h5ad") as temporary:
        raise OSError(errno.ENOSPC, "No space left on device", "/elsewhere/in.h5ad", None, str(temporary))


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "results").write_text("a file")
    with (
        pytest.raises(OutputError, match=r"cannot write .*results/x\.tsv: File exists"),
        atomic_path(tmp_path / "results" / "x.tsv"),
    ):
        raise AssertionError("not reached")
    with (
        pytest.raises(OutputError, match=r"cannot write .*results/fits/P1/x\.tsv: Not a directory"),
        atomic_path(tmp_path / "results" / "fits" / "P1" / "x.tsv"),
    ):
        raise AssertionError("not reached")
    assert (tmp_path / "results").read_text() == "a file"


def test_a_folder_that_cannot_be_made_far_above_is_named(tmp_path, monkeypatch):
    """The system names the folder it refused, which need not be the file's own."""
    mkdir = os.mkdir

    def refuse(path, *arguments, **options):
        if str(path) == str(tmp_path / "locked"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(os, "mkdir", refuse)
    target = tmp_path / "locked" / "deep" / "x.tsv"
    with pytest.raises(OutputError, match=f"cannot write {target}: Permission denied"), atomic_path(target):
        raise AssertionError("not reached")


def test_a_rename_that_fails_is_an_error_of_the_output(tmp_path):
    target = tmp_path / "x.tsv"
    target.mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*x\.tsv: Is a directory"), atomic_path(target) as temporary:
        temporary.write_text("content")
    assert os.listdir(tmp_path) == ["x.tsv"]


@pytest.mark.parametrize("name", ["input.h5ad", "results_of_others/input.h5ad", "results/input.h5ad"])
def test_an_error_about_another_file_stays_what_it_is(tmp_path, name):
    other = tmp_path / name
    with pytest.raises(FileNotFoundError) as caught, atomic_path(tmp_path / "results" / "x.tsv"):
        other.read_text()
    assert caught.value.filename == str(other)
    assert not isinstance(caught.value, OutputError)
    assert os.listdir(tmp_path / "results") == []


def test_an_error_of_a_relative_output_and_of_another_relative_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError), atomic_path("x.tsv"):
        Path("../nothing_here").read_text()
    with pytest.raises(OutputError, match=r"cannot write x\.tsv: Permission denied"), atomic_path("x.tsv") as temporary:
        raise PermissionError(errno.EACCES, "Permission denied", str(temporary))


def test_an_error_of_cohortgmm_stays_what_it_is(tmp_path):
    with pytest.raises(OutputError, match=r"^inner$"), atomic_path(tmp_path / "x.tsv"):
        raise OutputError("inner")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=True)
    source = tmp_path / "source"
    source.write_bytes(b"x" * 200_000)
    try:
        (small / "array.npz").write_text("before")
        with (
            pytest.raises(OutputError, match=r"array\.npz: No space left on device"),
            atomic_path(small / "array.npz") as temporary,
        ):
            temporary.write_bytes(b"x" * 200_000)
        with (
            pytest.raises(OutputError, match=r"array\.npz: No space left on device"),
            atomic_path(small / "array.npz") as temporary,
        ):
            shutil.copyfile(source, temporary)
        assert os.listdir(small) == ["array.npz"]
        assert (small / "array.npz").read_text() == "before"
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("patient", ["P1" + " " * 22, "x" * 20, "ab" * 25])
def test_padding_that_snakemake_would_take_for_an_endless_recursion_is_refused(patient):
    with pytest.raises(DataError, match="ends in a pattern repeated 20 times or more"):
        escape_id(patient)
    assert escape_id(patient.strip()[:19]) == patient.strip()[:19]


def test_temporary_files_of_killed_processes_are_removed(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    with atomic_path(tmp_path / "x.npz") as temporary:
        temporary.touch()
        here = temporary.name.partition("-")[0]
    elsewhere = ".00000000" if here != ".00000000" else ".11111111"
    gone = [tmp_path / name for name in (f"{here}-{dead.pid}.x.npz", f"{elsewhere}-1.x.npz")]
    kept = (f"{here}-{os.getppid()}.x.npz", ".notes.x.npz", f"{here}-{dead.pid}.y.npz", f"{elsewhere}-{dead.pid}.x.npz")
    others = [tmp_path / name for name in kept]
    for path in [*gone, *others]:
        path.touch()
    os.utime(gone[1], (1e9, 1e9))  # whose process cannot be looked at
    with atomic_path(tmp_path / "x.npz") as temporary:
        temporary.write_text("new")
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "x.npz"])


def test_a_file_system_without_locks_is_told(tmp_path):
    """As h5py says it, with and without a number."""
    said = "Unable to synchronously create file (unable to lock file, errno = 37, error message = 'No locks available')"
    for error in (OSError(37, said), OSError(said), BlockingIOError(11, said)):
        with pytest.raises(OutputError) as caught, atomic_path(tmp_path / "x.h5ad"):
            raise error
        assert str(caught.value) == (
            f"cannot write {tmp_path / 'x.h5ad'}: it cannot be locked here; set the environment variable "
            "HDF5_USE_FILE_LOCKING=FALSE, or choose another folder with --directory"
        )
