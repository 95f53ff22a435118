"""A run that is divided among few SLURM jobs: who does what, the scripts, and how they are submitted."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from projects import REPOSITORY
from snakemake.cli import get_argument_parser

from cohortgmm.__main__ import _at_dashes, _parser
from cohortgmm.cohort.tables import PATIENT_COLUMNS, write_table
from cohortgmm.errors import CohortgmmError
from cohortgmm.files import COHORT
from cohortgmm.runs import shards
from cohortgmm.runs.lock import Shard
from cohortgmm.runs.shards import Allocation, run_shard, scripts, shard_of_patients, shard_targets, submit

BASH = shutil.which("bash")

#: Texts that a shell would take apart or replace if they were not quoted.
AWKWARD = ["two words", "a'b", 'a"b', "a$HOME", "`true`", "*", "a;b", "a\\b", "#x", "~", "ü"]

#: A program that says how it was called: its arguments, where it looks for modules and which shard it is.
TELL = """#!/bin/sh
printf '%s\\0' "$@"
printf '\\001%s' "$PYTHONPATH" "${COHORTGMM_SHARD-}"
"""


@pytest.fixture
def python(tmp_path, monkeypatch):
    """A Python that only tells how it was called, in a folder with a space in its name."""
    path = tmp_path / "an environment" / "python"
    path.parent.mkdir()
    path.write_text(TELL)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(path))
    return path


def run_script(text, **variables):
    """Run a batch script as SLURM would; the arguments and the module path that Python was given."""
    environment = {"PATH": "/usr/bin:/bin"} | variables
    said = subprocess.run([BASH, "-s"], input=text, capture_output=True, text=True, check=True, env=environment)
    arguments, path, _ = said.stdout.split("\1")
    return arguments.split("\0")[:-1], path


def directives(text):
    """What a script asks SLURM for."""
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]


# Who does what


@st.composite
def cohorts(draw):
    sizes = draw(st.lists(st.integers(0, 5000), max_size=40))
    return {f"P{i}": size for i, size in enumerate(sizes)}, draw(st.integers(1, 12))


@given(cohorts(), st.randoms(use_true_random=False))
@example(({}, 3), None)
@example(({"P0": 7, "P1": 7, "P2": 7}, 3), None)
@example(({"P0": 7}, 5), None)
def test_shards_are_disjoint_and_are_all_patients_in_about_equal_parts(cohort, random):
    sizes, count = cohort
    parts = [shard_of_patients(sizes.items(), Shard(i, count)) for i in range(1, count + 1)]
    assert sorted(name for part in parts for name in part) == sorted(sizes)
    loads = [sum(sizes[name] for name in part) for part in parts]
    assert max(loads) - min(loads) <= max(sizes.values(), default=0)
    shuffled = list(sizes.items())
    if random is not None:
        random.shuffle(shuffled)
    assert [shard_of_patients(iter(shuffled), Shard(i, count)) for i in range(1, count + 1)] == parts


def test_patients_of_equal_size_are_dealt_evenly():
    parts = [shard_of_patients([(f"P{i:02d}", 100) for i in range(20)], Shard(i, 6)) for i in range(1, 7)]
    assert sorted(map(len, parts)) == [3, 3, 3, 3, 4, 4]


def test_a_large_patient_has_a_shard_for_itself():
    sizes = [("a", 10), ("b", 10), ("c", 10), ("large", 1000)]
    assert [shard_of_patients(sizes, Shard(i, 2)) for i in (1, 2)] == [["large"], ["a", "b", "c"]]


@pytest.fixture
def table(tmp_path):
    rows = [
        {"patient": "a/b", "file": "a=2Fb", "n_cells": 900, "status": "ok"},
        {"patient": "c", "file": "c", "n_cells": 5000, "status": "dropped"},
        {"patient": "d", "file": "d", "n_cells": 500, "status": "ok"},
        {"patient": "e", "file": "e", "n_cells": 300, "status": "ok"},
    ]
    write_table(tmp_path / "patients.tsv", PATIENT_COLUMNS, rows)
    return tmp_path / "patients.tsv"


def test_targets_are_the_mixtures_of_the_kept_patients(table):
    assert shard_targets(Shard(1, 1), "sample_specific", table) == [
        f"results/models/{name}.npz" for name in ("a=2Fb", "d", "e")
    ]
    assert shard_targets(Shard(1, 2), "sample_specific", table) == ["results/models/a=2Fb.npz"]
    assert shard_targets(Shard(2, 2), "sample_specific", str(table)) == ["results/models/d.npz", "results/models/e.npz"]
    assert shard_targets(Shard(4, 4), "sample_specific", table) == []


def test_the_mixture_that_patients_share_is_made_by_the_first_shard(table):
    assert shard_targets(Shard(1, 3), "global", table) == [f"results/models/{COHORT}.npz"]
    assert shard_targets(Shard(2, 3), "global", table) == shard_targets(Shard(3, 3), "global", table) == []


@pytest.mark.parametrize("sharing", ["sample_specific", "global"])
def test_a_shard_needs_the_division_of_the_cohort(tmp_path, sharing):
    with pytest.raises(CohortgmmError) as caught:
        shard_targets(Shard(1, 2), sharing, tmp_path / "patients.tsv")
    path = tmp_path / "patients.tsv"
    assert str(caught.value) == f"{path} is not there: run snakemake {path} first, as `submit` does"


def test_rules_of_single_patients_are_those_that_write_below_their_names():
    """Between the division of the cohort and the tables of all patients: every rule whose output has the wildcard."""
    found = set()
    for name in ("fit", "select", "refit"):
        text = (REPOSITORY / "workflow" / "rules" / f"{name}.smk").read_text()
        for rule, block in re.findall(r"^rule (\w+):\n(.*?)(?=^rule |\Z)", text, flags=re.MULTILINE | re.DOTALL):
            if "{patient}" in block.split("    output:")[1].split("    log:")[0]:
                found.add(rule)
    assert found == set(shards.PATIENT_RULES)


# What a shard runs


def test_a_shard_runs_snakemake_on_its_patients_only(python, tmp_path, capfd):
    """As Snakemake understands it, with options before it that take several values."""
    options = ["--configfile", "a b.yaml", "--executor", "local", "--cores", "4", "--resources", "mem_mb=8000"]
    targets = ["results/models/a=2Fb.npz", "results/models/d.npz"]
    assert run_shard(Shard(2, 3), targets, options, tmp_path / "my flow") == 0
    arguments, _, shard = capfd.readouterr().out.split("\1")
    assert shard == "2/3"
    module, name, *arguments = arguments.split("\0")[:-1]
    assert (module, name) == ("-m", "snakemake")
    read = get_argument_parser().parse_args(arguments)
    assert sorted(read.targets) == targets
    assert set(read.allowed_rules) == {"fit", "select", "refit"}
    assert list(read.configfile) == [Path("a b.yaml")]
    assert str(read.snakefile) == str(tmp_path / "my flow" / "Snakefile")
    assert (read.executor, read.cores) == ("local", 4)


def test_a_shard_ends_as_its_snakemake_does(python, tmp_path):
    python.write_text("#!/bin/sh\nexit 7\n")
    assert run_shard(Shard(2, 3), ["results/models/d.npz"], [], tmp_path) == 7
    assert shards.SHARD_VARIABLE not in os.environ


def test_a_shard_without_patients_runs_nothing(python, tmp_path, capfd):
    python.write_text("#!/bin/sh\nexit 7\n")
    assert run_shard(Shard(5, 5), [], [], tmp_path) == 0
    assert capfd.readouterr() == ("", "shard 5/5 has no patients\n")


# Scripts


def test_scripts_ask_for_what_the_allocation_says(python):
    allocation = Allocation(cpus=16, mem_mb=32_000, minutes=90, options=["--partition=short", "--exclusive"])
    batch = scripts(20, allocation, [], "/flow", "/c.yaml")
    assert list(batch) == ["split", "shards", "finish"]
    for name, text in batch.items():
        lines = text.splitlines()
        assert lines[0] == "#!/bin/bash"
        array = ["--array=1-20"] if name == "shards" else []
        assert directives(text) == [
            f"--job-name=cohortgmm-{name}",
            f"--output=results/logs/slurm/{name}-{'%A_%a' if array else '%j'}.log",
            *("--nodes=1", "--ntasks=1", "--cpus-per-task=16", "--mem=32000", "--time=90"),
            *array,
            *("--partition=short", "--exclusive"),
        ]
        # SLURM reads no further than the first command.
        first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
        assert not [line for line in lines[first:] if line.startswith("#SBATCH")]


def test_without_shards_one_script_does_everything(python):
    batch = scripts(0, Allocation(), ["--keep-going"], "/flow", "/c.yaml")
    assert list(batch) == ["finish"]
    arguments, path = run_script(batch["finish"])
    read = get_argument_parser().parse_args(arguments[2:])
    assert arguments[:2] == ["-m", "snakemake"]
    assert (read.executor, read.cores, read.keep_going) == ("local", 4, True)
    assert read.resources["mem_mb"].value == 8000
    assert not read.targets
    assert list(read.configfile) == [Path("/c.yaml")]
    assert path == "/flow/src"


@pytest.mark.parametrize("word", AWKWARD)
def test_scripts_hand_on_what_they_are_given_whatever_the_shell_makes_of_it(python, tmp_path, word):
    """Run by a real shell, with Python replaced by a program that says how it was called."""
    flow, configfile = tmp_path / f"flow {word}", tmp_path / word / "c.yaml"
    batch = scripts(3, Allocation(2, 4000, 60), ["--config", f"title={word}"], flow, configfile)
    place = ["--snakefile", f"{flow}/Snakefile"]
    options = ["--executor", "local", "--cores", "2", "--resources", "mem_mb=4000", "--config", f"title={word}"]
    whole = ["-m", "snakemake", *place, *options, "--configfile", str(configfile)]
    expected = {
        "split": [*whole, "--", "results/patients.tsv"],
        "shards": ["-m", "cohortgmm", "shard", "2/3", *place, "--configfile", str(configfile), "--", *options],
        "finish": whole,
    }
    for name, text in batch.items():
        subprocess.run([BASH, "-n"], input=text, text=True, check=True)
        assert run_script(text, SLURM_ARRAY_TASK_ID="2") == (expected[name], f"{flow}/src")
        assert run_script(text, SLURM_ARRAY_TASK_ID="2", PYTHONPATH="/x y")[1] == f"{flow}/src:/x y"


def test_only_the_number_of_the_task_is_for_the_shell(python):
    (text,) = scripts(0, Allocation(), ["--config", "$HOME"], "/flow", "/c.yaml").values()
    assert "$HOME" in run_script(text, HOME="/somewhere")[0]


def test_the_command_of_a_shard_is_one_of_ours(python):
    (_, text, _) = scripts(3, Allocation(), ["--keep-going"], "/flow", "/c.yaml").values()
    (_, module, *arguments), _ = run_script(text, SLURM_ARRAY_TASK_ID="3")
    assert module == "cohortgmm"
    own, others = _at_dashes(arguments)
    read = _parser().parse_args(own)
    assert (read.shard, read.snakefile, read.configfile) == ("3/3", Path("/flow/Snakefile"), Path("/c.yaml"))
    assert others == ["--executor", "local", "--cores", "4", "--resources", "mem_mb=8000", "--keep-going"]


def test_a_shard_outside_an_array_stops(python):
    (_, text, _) = scripts(3, Allocation(), [], "/flow", "/c.yaml").values()
    done = subprocess.run([BASH, "-s"], input=text, capture_output=True, text=True, env={}, check=False)
    assert done.returncode != 0
    assert "SLURM_ARRAY_TASK_ID" in done.stderr
    assert done.stdout == ""


# Submitting


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


#: A `sbatch` that gives numbers from 101 on, as SLURM does where there are several clusters.
SBATCH = """
n=100
while read -r line; do n=$((n + 1)); done < '{folder}/calls'
{refusal}
echo "$n;alpha"
"""


@pytest.fixture
def sbatch(programs):
    """Factory: `sbatch`, which may refuse one script; and a `scancel`."""

    def make(refused=""):
        refusal = f"case \"$*\" in *{refused}.sh) echo 'first line' >&2; echo 'sbatch: error: no' >&2; exit 1;; esac"
        programs.make("sbatch", SBATCH.format(folder=programs.folder, refusal=refusal if refused else ""))
        programs.make("scancel")

    return make


BATCH = {"split": "one\n", "shards": "two\n", "finish": "three\n"}


def test_scripts_are_submitted_one_after_the_other(here, programs, sbatch):
    sbatch()
    assert submit(BATCH) == {"split": "101", "shards": "102", "finish": "103"}
    scripts = [f"results/logs/slurm/{name}.sh" for name in BATCH]
    kill = "--kill-on-invalid-dep=yes"
    assert programs.calls == [
        ["sbatch", "--parsable", scripts[0]],
        ["sbatch", "--parsable", "--dependency=afterok:101", kill, scripts[1]],
        # Whether or not a shard fails, but not where the cohort could not be divided.
        ["sbatch", "--parsable", "--dependency=afterok:101,afterany:102", kill, scripts[2]],
    ]
    assert [(here / path).read_text() for path in scripts] == list(BATCH.values())


def test_one_script_waits_for_nobody(here, programs, sbatch):
    sbatch()
    assert submit({"finish": "all\n"}) == {"finish": "101"}
    assert programs.calls == [["sbatch", "--parsable", "results/logs/slurm/finish.sh"]]


@pytest.mark.parametrize(("refused", "cancelled"), [("split", []), ("shards", ["101"]), ("finish", ["101", "102"])])
def test_what_was_submitted_is_cancelled_where_slurm_refuses_the_rest(here, programs, sbatch, refused, cancelled):
    sbatch(refused)
    with pytest.raises(CohortgmmError) as caught:
        submit(BATCH)
    assert str(caught.value) == f"SLURM refused results/logs/slurm/{refused}.sh: sbatch: error: no"
    assert [call for call in programs.calls if call[0] == "scancel"] == ([["scancel", *cancelled]] if cancelled else [])
    assert sum(call[0] == "sbatch" for call in programs.calls) == len(cancelled) + 1


def test_a_refusal_without_a_word_is_one_line(here, programs):
    programs.make("sbatch", "exit 3")
    with pytest.raises(CohortgmmError, match=r"^SLURM refused results/logs/slurm/split\.sh: .*exit status 3\.$"):
        submit(BATCH)


def test_a_machine_without_slurm_is_told_in_one_line(here, programs):
    with pytest.raises(CohortgmmError) as caught:
        submit(BATCH)
    assert str(caught.value) == (
        "SLURM refused results/logs/slurm/split.sh: [Errno 2] No such file or directory: 'sbatch'"
    )
