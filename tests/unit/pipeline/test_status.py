"""What has come of a run, from its files."""

import os
import re
from pathlib import Path

import pytest

from cohortgmm.cohort.tables import PATIENT_COLUMNS, write_table
from cohortgmm.errors import CohortgmmError
from cohortgmm.pipeline import status
from cohortgmm.pipeline.failures import Failure, write_failures
from cohortgmm.pipeline.lock import Shard, lock_results
from cohortgmm.pipeline.status import read_status

RULES = Path(__file__).parents[3] / "workflow" / "rules"

#: When the last run ended, in seconds.
ENDED = 1e9


def write(results, patients, dropped=()):
    rows = [
        dict.fromkeys(PATIENT_COLUMNS, "")
        | {"patient": name, "file": name, "status": "dropped" if name in dropped else "ok"}
        for name in patients
    ]
    write_table(results / "patients.tsv", PATIENT_COLUMNS, rows)


def touch(path, text="", time=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if time is not None:
        os.utime(path, (time, time))


def failure(rule, patient="", k="", reason="it was killed"):
    return Failure(
        rule,
        patient,
        str(k),
        " ".join(filter(None, [rule, patient, str(k)])) + f": {reason}",
        "a.log",
        "12",
        "OUT_OF_MEMORY",
    )


def fail(results, *failures):
    """What a run that ended has left."""
    write_failures(str(results), failures)
    os.utime(results / "failed.tsv", (ENDED, ENDED))


@pytest.fixture
def at_work(tmp_path):
    """Function that lets a run be at work since a time."""
    held = []

    def begin(time, shard=None):
        held.extend(lock_results(tmp_path, shard))
        os.utime(tmp_path / (f".lock.shard-{shard.index}-of-{shard.count}" if shard else ".lock"), (time, time))

    yield begin
    for descriptor in held:
        os.close(descriptor)


def test_a_run_that_has_not_split_the_cohort(tmp_path):
    with pytest.raises(CohortgmmError, match=r"patients\.tsv does not exist"):
        read_status(tmp_path, [1], "sample_specific")


@pytest.mark.parametrize(("holders", "state"), [([], "stopped"), (["process 7 on node"], "running")])
def test_every_fit_has_a_state(tmp_path, monkeypatch, holders, state):
    monkeypatch.setattr(status, "lock_holders", lambda results: holders)
    write(tmp_path, ["P1", "P=202", "P3"], dropped=["P3"])
    touch(tmp_path / "fits" / "P1" / "k2.json")
    touch(tmp_path / "fits" / "P1" / "k10.json")
    touch(tmp_path / "fits" / "P1" / "k99.json")  # of another configuration
    touch(tmp_path / "fits" / "P=202" / "k2.json")
    touch(tmp_path / "logs" / "fit" / "P=202" / "k2.log", "error: of an earlier attempt\n")
    touch(tmp_path / "logs" / "fit" / "P=202" / "k3.log", "error: patient 'P 2', k=3: no luck\n")
    touch(tmp_path / "logs" / "fit" / "P=202" / "k10.log", "INFO going on\n")
    touch(tmp_path / "models" / "P1.npz")
    touch(tmp_path / "models" / "old.npz")
    found = read_status(tmp_path, [2, 3, 10], "sample_specific")
    assert found.fits == {"P1": ["done", "to do", "done"], "P=202": ["done", "failed", state]}
    sign = status.SIGNS[state]
    assert str(found).splitlines() == [
        f"2 patients × 3 k: 3 of 6 fits done, 1 failed, 1 {state}, 1 to do",
        "1 of 2 final mixtures; cohort_gmm.h5ad is not there yet",
        f"at work: {holders[0] if holders else 'nobody'}",
        "",
        "patient   2   3  10  model",
        "P1        +   .   +  +",
        f"P 2       +   !   {sign}  .",
        "",
        "+ done, ! failed, r running, x stopped, . to do",
        "",
        "patient 'P 2', k=3: no luck",
    ]


def test_of_many_patients_only_the_unfinished_are_drawn(tmp_path):
    names = [f"P{i:03d}" for i in range(120)]
    write(tmp_path, names)
    for name in names[:100]:
        touch(tmp_path / "fits" / name / "k1.json")
        touch(tmp_path / "models" / f"{name}.npz")
    text = str(read_status(tmp_path, [1], "sample_specific"))
    assert "120 patients × 1 k: 100 of 120 fits done, 20 to do" in text
    drawn = [line.split()[0] for line in text.splitlines() if line.startswith("P")]
    assert drawn == names[100:]
    text = str(read_status(tmp_path, [1, 2], "sample_specific"))
    assert "more that are not finished" not in text
    for name in names[:100]:
        (tmp_path / "models" / f"{name}.npz").unlink()
    assert "... and 70 more that are not finished" in str(read_status(tmp_path, [1], "sample_specific"))


def test_a_finished_run(tmp_path):
    write(tmp_path, ["P1"])
    touch(tmp_path / "fits" / "P1" / "k1.json")
    touch(tmp_path / "models" / "P1.npz")
    touch(tmp_path / "cohort_gmm.h5ad")
    text = str(read_status(tmp_path, [1], "sample_specific"))
    assert text.startswith("1 patients × 1 k: 1 of 1 fits done\n1 of 1 final mixtures; cohort_gmm.h5ad is there\n")


def test_shared_components_are_one_row(tmp_path):
    write(tmp_path, ["P1", "P2"])
    touch(tmp_path / "fits" / "_cohort" / "k1.json")
    found = read_status(tmp_path, [1, 2], "global")
    assert found.fits == {"_cohort": ["done", "to do"]}
    assert "all patients   +   ." in str(found)


def grid(text):
    """Names of the patients in the grid."""
    lines = text.splitlines()
    head = next((i for i, line in enumerate(lines) if line.startswith("patient ")), None)
    return [] if head is None else [line.split()[0] for line in lines[head + 1 : lines.index("", head)]]


def test_the_message_of_a_run_that_has_not_split_the_cohort_says_what_is_missing(tmp_path):
    with pytest.raises(CohortgmmError) as caught:
        read_status(str(tmp_path / "results"), [1], "sample_specific")
    assert str(caught.value) == (
        f"{tmp_path}/results/patients.tsv does not exist: the cohort has not been divided into patients yet"
    )
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("n", [1, 49, 50])
def test_few_patients_are_all_drawn(tmp_path, n):
    names = [f"P{i:03d}" for i in range(n)]
    write(tmp_path, names)
    touch(tmp_path / "models" / "P000.npz")
    assert grid(str(read_status(tmp_path, [1], "sample_specific"))) == names


def test_of_51_patients_those_that_are_finished_are_not_drawn(tmp_path):
    names = [f"P{i:03d}" for i in range(51)]
    write(tmp_path, names)
    for i, left in ((50, 50), (49, 49)):
        touch(tmp_path / "models" / f"{names[i]}.npz")
        text = str(read_status(tmp_path, [1], "sample_specific"))
        assert grid(text) == names[:left]
        assert "more that are" not in text
    for name in names:
        touch(tmp_path / "models" / f"{name}.npz")
    text = str(read_status(tmp_path, [1], "sample_specific"))
    assert grid(text) == []
    assert text.splitlines()[1:] == [
        "51 of 51 final mixtures; cohort_gmm.h5ad is not there yet",
        "at work: nobody",
    ]


def test_the_51st_that_is_not_finished_is_counted(tmp_path):
    names = [f"P{i:03d}" for i in range(1234)]
    write(tmp_path, names)
    text = str(read_status(tmp_path, [1, 2], "sample_specific"))
    assert text.startswith("1,234 patients × 2 k: 0 of 2,468 fits done, 2,468 to do\n")
    assert text.splitlines()[55:57] == ["... and 1,184 more that are not finished", ""]


def test_who_is_at_work_is_told_from_the_lock(tmp_path):
    write(tmp_path, ["P1"])
    touch(tmp_path / "logs" / "fit" / "P1" / "k1.log", "INFO going on\n")
    assert read_status(tmp_path, [1], "sample_specific").fits == {"P1": ["stopped"]}
    for shard, state in ((None, "running"), (Shard(2, 3), "running")):
        held = lock_results(tmp_path, shard)
        found = read_status(tmp_path, [1], "sample_specific")
        assert found.fits == {"P1": [state]}
        assert f"\nat work: process {os.getpid()} on {os.uname().nodename}\n" in str(found)
        for descriptor in held:
            os.close(descriptor)
    assert "\nat work: nobody\n" in str(read_status(tmp_path, [1], "sample_specific"))


def test_every_shard_at_work_has_a_line(tmp_path, monkeypatch):
    write(tmp_path, ["P1"])
    monkeypatch.setattr(status, "lock_holders", lambda results: ["process 7 on a", "process 8 on b"])
    lines = str(read_status(tmp_path, [1], "sample_specific")).splitlines()
    assert lines[2:4] == ["at work: process 7 on a", "at work: process 8 on b"]


def test_a_fit_that_failed_is_failed_whoever_is_at_work(tmp_path, monkeypatch):
    monkeypatch.setattr(status, "lock_holders", lambda results: ["process 7 on a"])
    write(tmp_path, ["P1", "P2"])
    for name, k in (("P1", 2), ("P2", 1)):
        touch(tmp_path / "logs" / "fit" / name / f"k{k}.log", f"used 1 MB of 2, 3.0 s of 4\nerror: {name}, k={k}: no\n")
    found = read_status(tmp_path, [1, 2], "sample_specific")
    assert found.fits == {"P1": ["to do", "failed"], "P2": ["failed", "to do"]}
    assert found.errors == {("P1", 2): "P1, k=2: no", ("P2", 1): "P2, k=1: no"}
    assert str(found).splitlines()[-3:] == ["", "P1, k=2: no", "P2, k=1: no"]


def test_other_files_are_no_results(tmp_path):
    write(tmp_path, ["P1"])
    for name in (".123.k1.json", "k1.npz", "k1.json.tmp", "kx.json", "k.json", "1.jsonk"):
        touch(tmp_path / "fits" / "P1" / name)
    for name in (".123.P1.npz", "P2.npz", "P1.json"):
        touch(tmp_path / "models" / name)
    (tmp_path / "cohort_gmm.h5ad").mkdir()
    found = read_status(tmp_path, [1], "sample_specific")
    assert (found.fits, found.models, found.merged) == ({"P1": ["to do"]}, set(), False)


def test_columns_are_in_line(tmp_path):
    write(tmp_path, ["P1", "a=20much=20longer=20name", "=C3=BC"])
    touch(tmp_path / "fits" / "P1" / "k100.json")
    lines = str(read_status(tmp_path, range(98, 103), "sample_specific")).splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("patient"))
    drawn = lines[head + 1 : head + 4]
    assert [line.split("  ")[0].strip() for line in drawn] == ["P1", "a much longer name", "ü"]
    for k, at in ((k, lines[head].rindex(str(k)) + len(str(k)) - 1) for k in range(98, 103)):
        assert [line[at] for line in drawn] == ["+" if k == 100 else ".", ".", "."]
    assert {line[lines[head].index("model")] for line in drawn} == {"."}


def test_looking_changes_nothing(tmp_path):
    write(tmp_path, ["P1"])
    before = sorted(tmp_path.rglob("*"))
    str(read_status(tmp_path, [1], "sample_specific"))
    assert sorted(tmp_path.rglob("*")) == before


# What went wrong in the last run


def test_fits_that_left_no_error_are_failed(tmp_path):
    """Out of memory with a log that just ends, and refused, without a log."""
    write(tmp_path, ["P1"])
    touch(tmp_path / "logs" / "fit" / "P1" / "k1.log", "INFO going on\n", ENDED - 5)
    touch(tmp_path / "logs" / "fit" / "P1" / "k4.log", "INFO going on\n", ENDED - 5)
    touch(tmp_path / "fits" / "P1" / "k3.json")
    failures = [failure("fit", "P1", k) for k in (1, 2, 3)]
    fail(tmp_path, *failures, failure("fit", "P1", 99), failure("fit", "gone", 1))
    found = read_status(tmp_path, [1, 2, 3, 4, 5], "sample_specific")
    assert found.fits == {"P1": ["failed", "failed", "done", "stopped", "to do"]}
    assert found.errors == {("P1", k): str(failures[k - 1]) for k in (1, 2)}
    assert str(found).splitlines()[-2:] == [str(failures[0]), str(failures[1])]
    assert "gone" not in str(found)


def test_a_fit_that_is_tried_again_is_running(tmp_path, at_work):
    write(tmp_path, ["P1"])
    fail(tmp_path, *(failure("fit", "P1", k) for k in (1, 2, 3, 4)))
    touch(tmp_path / "logs" / "fit" / "P1" / "k1.log", "INFO going on\n", ENDED - 5)
    touch(tmp_path / "logs" / "fit" / "P1" / "k2.log", "INFO going on\n", ENDED + 5)
    touch(tmp_path / "logs" / "fit" / "P1" / "k3.log", "error: P1, k=3: another reason\n", ENDED + 5)
    at_work(ENDED + 1)
    found = read_status(tmp_path, [1, 2, 3, 4], "sample_specific")
    assert found.fits == {"P1": ["failed", "running", "failed", "failed"]}
    assert found.errors["P1", 3] == "P1, k=3: another reason"
    assert set(found.errors) == {("P1", 1), ("P1", 3), ("P1", 4)}


def test_a_fit_that_failed_is_no_other_whatever_its_log_when_nobody_is_at_work(tmp_path):
    write(tmp_path, ["P1"])
    fail(tmp_path, failure("fit", "P1", 1))
    touch(tmp_path / "logs" / "fit" / "P1" / "k1.log", "INFO going on\n", ENDED + 5)
    assert read_status(tmp_path, [1], "sample_specific").fits == {"P1": ["failed"]}


def test_no_error_is_shown_twice(tmp_path):
    write(tmp_path, ["P1", "P2"])
    touch(tmp_path / "logs" / "fit" / "P1" / "k1.log", "error: fit P1 1: no luck\n", ENDED - 5)
    for k in (1, 2):
        touch(tmp_path / "logs" / "fit" / "P2" / f"k{k}.log", "error: no such file\n", ENDED - 5)
    fail(tmp_path, failure("fit", "P1", 1, "no luck"))
    text = str(read_status(tmp_path, [1, 2], "sample_specific"))
    assert text.splitlines()[-2:] == ["fit P1 1: no luck  [a.log, SLURM job 12 OUT_OF_MEMORY]", "no such file"]
    assert (text.count("no luck"), text.count("no such file")) == (1, 1)


def test_jobs_that_are_no_fits_come_first(tmp_path):
    write(tmp_path, ["P1"])
    failures = [failure("select", "P1"), failure("merge"), failure("qc_overview"), failure("something")]
    fail(tmp_path, *failures, failure("fit", "P1", 1), failure("refit", "gone"))
    found = read_status(tmp_path, [1], "sample_specific")
    assert found.other_errors == [str(each) for each in failures]
    assert str(found).splitlines()[-6:] == ["", *map(str, failures), str(failure("fit", "P1", 1))]


def outputs():
    """What every rule but `fit` declares first to last, from the workflow, where it is below the results."""
    found = {}
    for path in RULES.glob("*.smk"):
        text = re.sub(r"rule:\n +name:\n +f\"(.*)\"\n", r"rule \1:\n", path.read_text())
        for rule, block in re.findall(r"^ *(?:rule|checkpoint) (\S+):\n(.*?)^ +log:", text, re.MULTILINE | re.DOTALL):
            named = re.sub(r"\bSCORES\b", '"results/scores.tsv"', block.split("output:")[1])
            named = re.sub(r"\bTABLE\b", '"results/patients.tsv"', named)
            found[rule] = re.findall(r'"results/([^"]+)"', named)
    del found["fit"]
    return found


@pytest.mark.parametrize(("rule", "files"), outputs().items())
def test_what_is_done_since_is_no_error(tmp_path, rule, files):
    rule, path = rule.format(figure="criteria"), tmp_path / files[-1].format(figure="criteria", patient="P1")
    write(tmp_path, ["P1"])
    touch(tmp_path / "patients.tsv", (tmp_path / "patients.tsv").read_text(), ENDED - 1)
    fail(tmp_path, failure(rule, "P1" if "{patient}" in files[-1] else ""))
    content = path.read_text() if path.exists() else ""
    for time, n_errors in ((ENDED - 1, 1), (ENDED + 1, 0)):
        touch(path, content, time)
        assert len(read_status(tmp_path, [1], "sample_specific").other_errors) == n_errors


@pytest.mark.parametrize("n", [20, 21, 2000])
def test_many_errors_are_not_all_shown(tmp_path, n):
    write(tmp_path, ["P1"])
    fail(tmp_path, *(failure("fit", "P1", k) for k in range(1, n + 1)))
    text = str(read_status(tmp_path, range(1, n + 1), "sample_specific"))
    shown = [str(failure("fit", "P1", k)) for k in range(1, 21)]
    more = [f"... and {n - 20:,} more in results/failed.tsv or results/logs"] if n > 20 else []
    assert text.splitlines()[text.splitlines().index(shown[0]) - 1 :] == ["", *shown, *more]


# Logs of the run before


@pytest.mark.parametrize(
    ("age", "state"), [(-60, "running"), (0, "running"), (5, "running"), (60, "to do"), (86400, "to do")]
)
def test_a_log_that_is_older_than_the_run_at_work_is_of_another(tmp_path, at_work, age, state):
    write(tmp_path, ["P1"])
    touch(tmp_path / "logs" / "fit" / "P1" / "k1.log", "INFO going on\n", ENDED - age)
    assert read_status(tmp_path, [1], "sample_specific").fits == {"P1": ["stopped"]}
    at_work(ENDED)
    assert read_status(tmp_path, [1], "sample_specific").fits == {"P1": [state]}


def test_of_shards_the_first_at_work_counts(tmp_path, at_work):
    write(tmp_path, ["P1"])
    for k, time in ((1, -3000), (2, -1000), (3, 1000)):
        touch(tmp_path / "logs" / "fit" / "P1" / f"k{k}.log", "INFO going on\n", ENDED + time)
    touch(tmp_path / ".lock.shard-1-of-3", "process 1 on a", ENDED - 5000)  # it has ended
    at_work(ENDED - 2000, Shard(2, 3))
    at_work(ENDED, Shard(3, 3))
    assert read_status(tmp_path, [1, 2, 3], "sample_specific").fits == {"P1": ["to do", "running", "running"]}


# Why a cohort is not divided


def why(results):
    with pytest.raises(CohortgmmError) as caught:
        read_status(results, [1], "sample_specific")
    plain = f"{results}/patients.tsv does not exist: the cohort has not been divided into patients yet"
    assert str(caught.value).startswith(plain)
    return str(caught.value).removeprefix(plain)


@pytest.mark.parametrize("rule", ["check_input", "preprocess", "split"])
def test_a_cohort_that_could_not_be_divided_has_a_reason(tmp_path, rule):
    touch(tmp_path / "logs" / f"{rule}.log", "INFO a\nerror: no column 'x'\n", ENDED - 5)
    assert why(tmp_path) == ", because of an error: no column 'x'"
    fail(tmp_path, failure("qc_cells"), failure(rule))
    assert why(tmp_path) == f", because of an error: {failure(rule)}"


def test_errors_that_were_overcome_are_no_reason(tmp_path):
    fail(tmp_path, failure("check_input"))
    touch(tmp_path / "preprocessed" / "input.checked", time=ENDED + 1)
    touch(tmp_path / "logs" / "check_input.log", "error: no column 'x'\n", ENDED - 5)
    touch(tmp_path / "logs" / "preprocess.log", "INFO going on\n", ENDED + 5)
    assert why(tmp_path) == ""


def test_errors_of_the_run_before_are_no_reason_for_the_run_at_work(tmp_path, at_work):
    fail(tmp_path, failure("split"))
    touch(tmp_path / "logs" / "split.log", "error: no column 'x'\n", ENDED - 5)
    at_work(ENDED + 100)
    assert why(tmp_path) == ""
    touch(tmp_path / "logs" / "preprocess.log", "error: no counts\n", ENDED + 200)
    assert why(tmp_path) == ", because of an error: no counts"
