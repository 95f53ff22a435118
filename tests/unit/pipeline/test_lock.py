"""A results folder belongs to one run, or to the shards of one division, for as long as their processes live."""

import errno
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from cohortgmm.errors import CohortgmmError
from cohortgmm.pipeline import lock
from cohortgmm.pipeline.lock import Shard, job_at_work, lock_holders, lock_results, wait_for_jobs

SOURCE = Path(__file__).parents[3] / "src"
NODE = os.uname().nodename
HERE = f"process {os.getpid()} on {NODE}"

HOLDER = """
import sys
sys.path.insert(0, sys.argv[1])
from cohortgmm.errors import CohortgmmError
from cohortgmm.pipeline.lock import Shard, lock_results
try:
    lock_results(sys.argv[2], Shard.read(sys.argv[3]) if sys.argv[3] else None)
    print("held", flush=True)
except CohortgmmError as error:
    print(error, flush=True)
sys.stdin.read()
"""


@contextmanager
def another(folder, shard=""):
    """Another process that asks for the lock and stays: what it said and its number. It is killed at the end."""
    command = [sys.executable, "-c", HOLDER, str(SOURCE), str(folder), shard]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip(), process.pid
        finally:
            process.send_signal(signal.SIGKILL)


def release(descriptors):
    for descriptor in descriptors:
        os.close(descriptor)


def refusal(folder, shard=None):
    """Why the lock cannot be had; empty if it can, and is then given back."""
    try:
        release(lock_results(folder, shard))
    except CohortgmmError as error:
        return str(error)
    return ""


def in_use(folder, holder):
    return f"{folder.resolve()} is in use by another run ({holder}): wait for it, or use --directory"


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


# Runs that may touch everything


def test_a_folder_is_locked_for_the_life_of_a_process(results, tmp_path):
    with another(results) as (said, number):
        assert said == "held"
        assert refusal(results) == in_use(results, f"process {number} on {NODE}")
        assert refusal(tmp_path / "other results") == ""
    # The other process was killed.
    held = lock_results(results)
    try:
        assert len(held) == 1
        assert (results / ".lock").read_text() == HERE
        assert refusal(results) == in_use(results, HERE)
        with another(results) as (said, _):
            assert said == in_use(results, HERE)
    finally:
        release(held)
    assert refusal(results) == ""


def test_who_held_it_before_is_forgotten(results):
    results.mkdir()
    (results / ".lock").write_text(f"process 1234567890123 on a-node-with-a-long-name.{NODE}")
    held = lock_results(results)
    assert (results / ".lock").read_text() == HERE
    release(held)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "results").write_text("a file")
    for shard in (None, Shard(1, 2)):
        with pytest.raises(CohortgmmError) as caught:
            lock_results(tmp_path / "results", shard)
        assert str(caught.value) == (f"cannot lock {tmp_path}/results/.lock: File exists; it may be another user's run")


# Shards


def test_shards_of_one_division_work_side_by_side(results):
    with another(results, "1/3") as (first, _), another(results, "3/3") as (third, _):
        assert (first, third) == ("held", "held")
        held = lock_results(results, Shard(2, 3))
        assert len(held) == 2
        release(held)


def test_a_shard_at_work_is_refused_once_more(results):
    with another(results, "1/2") as (_, number):
        assert refusal(results, Shard(1, 2)) == in_use(results, f"process {number} on {NODE}")
        assert refusal(results, Shard(2, 2)) == ""
    assert refusal(results, Shard(1, 2)) == ""


def test_a_shard_that_is_at_work_already_lets_go_of_what_it_had_taken(results):
    with another(results, "1/2"):
        assert refusal(results, Shard(1, 2))
    assert refusal(results) == ""


def test_another_division_is_refused_and_lets_go_of_what_it_had_taken(results):
    with another(results, "1/2") as (_, number):
        for shard in (Shard(1, 3), Shard(2, 3), Shard(1, 1), Shard(2, 12)):
            assert refusal(results, shard) == in_use(results, f"process {number} on {NODE}")
        assert lock_holders(results) == [f"process {number} on {NODE}"]
        assert refusal(results, Shard(2, 2)) == ""
    assert refusal(results) == ""


def test_a_division_whose_number_ends_as_another_does_is_another(results):
    with another(results, "1/12") as (_, number):
        assert refusal(results, Shard(1, 2)) == in_use(results, f"process {number} on {NODE}")


def test_another_process_of_another_division_is_refused(results):
    held = lock_results(results, Shard(1, 2))
    with another(results, "1/3") as (said, _):
        assert said == in_use(results, HERE)
        # It has let go, though it is still there.
        release(held)
        assert refusal(results) == ""


def test_a_run_waits_for_shards_and_shards_wait_for_a_run(results):
    with another(results, "1/2"), another(results, "2/2"):
        assert refusal(results) == in_use(results, "shards of it")
    with another(results) as (said, number):
        assert said == "held"
        assert refusal(results, Shard(1, 2)) == in_use(results, f"process {number} on {NODE}")
    assert refusal(results, Shard(1, 2)) == ""


def test_the_run_before_is_not_named_while_shards_are_at_work(results):
    release(lock_results(results))
    with another(results, "1/1") as (_, number):
        assert refusal(results) == in_use(results, "shards of it")
        assert lock_holders(results) == [f"process {number} on {NODE}"]


def test_files_of_shards_that_are_gone_stand_in_nobodys_way(results):
    with another(results, "1/2"), another(results, "2/2"):
        pass
    assert sorted(path.name for path in results.iterdir()) == [".lock", ".lock.shard-1-of-2", ".lock.shard-2-of-2"]
    assert lock_holders(results) == []
    with another(results, "1/3") as (said, _):
        assert said == "held"
        assert refusal(results, Shard(3, 3)) == ""
    assert refusal(results) == ""


# Who is at work


def test_holders_are_named(results):
    assert lock_holders(results) == []
    assert not results.exists()
    with another(results) as (_, number):
        assert lock_holders(results) == [f"process {number} on {NODE}"]
    assert lock_holders(results) == []
    with another(results, "1/3") as (_, first), another(results, "3/3") as (_, third):
        assert lock_holders(str(results)) == [f"process {number} on {NODE}" for number in (first, third)]


@pytest.mark.parametrize("shard", ["", "1/2"])
def test_looking_disturbs_nobody(results, shard):
    with another(results, shard) as (_, number):
        before = {path.name: path.read_text() for path in results.iterdir()}
        assert len(lock_holders(results)) == 1
        assert {path.name: path.read_text() for path in results.iterdir()} == before
        # It still holds the lock after somebody looked.
        assert refusal(results, Shard.read(shard) if shard else None) == in_use(results, f"process {number} on {NODE}")


def test_one_who_only_looks_holds_nothing(results):
    release(lock_results(results, Shard(1, 2)))
    assert lock_holders(results) == []
    with another(results) as (said, _):
        assert said == "held"


# Jobs of a killed run

JOB = """
import sys
sys.path.insert(0, sys.argv[1])
from cohortgmm.pipeline.lock import job_at_work
with job_at_work(sys.argv[2]):
    print("at work", flush=True)
    sys.stdin.read()
"""


def jobs_at_work(folder):
    try:
        wait_for_jobs(folder, seconds=0.2)
    except CohortgmmError as error:
        return str(error)
    return ""


def test_jobs_at_work_are_waited_for_and_named(results):
    results.mkdir()
    assert jobs_at_work(results) == ""
    command = [sys.executable, "-c", JOB, str(SOURCE), str(results)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "at work\n"
        with job_at_work(results):  # jobs do not mind each other
            assert str(os.getpid()) in jobs_at_work(results)
        assert jobs_at_work(results) == (
            f"{results.resolve()}: jobs of a killed run are still at work; wait for them, or end them with: "
            f"kill {process.pid}"
        )
        process.kill()
    assert jobs_at_work(results) == ""


def test_a_job_of_a_folder_that_is_not_there_works_without(tmp_path):
    with job_at_work(tmp_path / "results"):
        assert not list(tmp_path.iterdir())


# File systems without locks


def test_a_full_disk_is_no_obstacle(results, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    (descriptor,) = lock_results(results)
    assert lock_holders(results) == ["shards of it"]
    os.close(descriptor)


def test_a_file_system_without_locks_is_no_obstacle(results, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    before = set(os.listdir("/proc/self/fd"))
    assert lock_results(results) == []
    assert lock_results(results) == []
    assert lock_results(results, Shard(1, 2)) == []
    assert lock_results(results, Shard(1, 3)) == []
    assert lock_holders(results) == []
    with job_at_work(results):
        assert jobs_at_work(results) == ""
    assert set(os.listdir("/proc/self/fd")) == before


# Texts


@pytest.mark.parametrize(("text", "shard"), [("3/20", Shard(3, 20)), ("1/1", Shard(1, 1)), ("007/07", Shard(7, 7))])
def test_shards_are_read(text, shard):
    assert Shard.read(text) == shard
    assert Shard.read(str(shard)) == shard


@pytest.mark.parametrize(
    "text",
    ["", "3", "/", "3/", "/3", "0/3", "4/3", "-1/3", "1/-3", "1/0", "0/0", "a/b", "1/2/3", "1 / 2", "1.0/2", "²/3"],
)
def test_what_is_no_shard(text):
    expected = f"a shard is written I/N with 1 <= I <= N, such as 3/20, got {text!r}"
    with pytest.raises(CohortgmmError, match=f"^{re.escape(expected)}$"):
        Shard.read(text)
