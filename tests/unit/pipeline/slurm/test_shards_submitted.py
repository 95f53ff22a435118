"""The scripts of a run in few SLURM jobs, and what becomes of their submission."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from snakemake.cli import get_argument_parser

from cohortgmm.__main__ import _at_dashes, _parser
from cohortgmm.errors import CohortgmmError
from cohortgmm.pipeline.slurm.shards import (
    Allocation,
    scripts,
    submit,
)

BASH = shutil.which("bash")

#: Texts that a shell would take apart or replace if they were not quoted.
AWKWARD = ["two words", "a'b", 'a"b', "a$HOME", "`true`", "*", "a;b", "a\\b", "#x", "~", "ü"]


def run_script(text, **variables):
    """Run a batch script as SLURM would; the arguments and the module path that Python was given."""
    environment = {"PATH": "/usr/bin:/bin"} | variables
    said = subprocess.run([BASH, "-s"], input=text, capture_output=True, text=True, check=True, env=environment)
    arguments, path, _ = said.stdout.split("\1")
    return arguments.split("\0")[:-1], path


def directives(text):
    """What a script asks SLURM for."""
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]


def as_sbatch_reads(text):
    """The options that sbatch finds in a script: quotes group, a backslash counts even within them, # is a comment."""
    found = []
    for line in directives(text):
        words = shlex.shlex(line, posix=True, punctuation_chars=False)
        words.whitespace_split, words.commenters, words.escapedquotes = True, "#", "'\""
        found += words
    return found


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
        assert as_sbatch_reads(text) == directives(text)  # nothing of it needs quotes
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
    assert read.latency_wait == 60
    assert not read.targets
    assert list(read.configfile) == [Path("/c.yaml")]
    assert path == "/flow/src"


@pytest.mark.parametrize("word", AWKWARD)
def test_scripts_hand_on_what_they_are_given_whatever_the_shell_makes_of_it(python, tmp_path, word):
    """Run by a real shell, with Python replaced by a program that says how it was called."""
    flow, configfile = tmp_path / f"flow {word}", tmp_path / word / "c.yaml"
    batch = scripts(3, Allocation(2, 4000, 60), ["--config", f"title={word}"], flow, configfile)
    place = ["--snakefile", f"{flow}/Snakefile"]
    local = ["--executor", "local", "--cores", "2", "--resources", "mem_mb=4000", "--latency-wait", "60"]
    options = [*local, "--config", f"title={word}"]
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


@pytest.mark.parametrize("word", [*AWKWARD, "", "a='b", "x #y", "\\\\'"])
def test_values_of_options_come_to_sbatch_as_they_were_given(python, word):
    options = [f"--comment={word}", "-p short", "--exclusive"]
    for text in scripts(2, Allocation(options=options), [], "/flow", "/c.yaml").values():
        assert as_sbatch_reads(text)[-4:] == [f"--comment={word}", "-p", "short", "--exclusive"]


@pytest.mark.parametrize("option", ["", "--comment=a\nrm -r x", "--comment=a\n", "--comment=a\rb"])
def test_an_option_that_is_not_one_line_is_refused(python, option):
    with pytest.raises(CohortgmmError) as caught:
        scripts(2, Allocation(options=[option]), [], "/flow", "/c.yaml")
    assert str(caught.value) == f"an option of sbatch must be one line, got {option!r}"


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
    local = ["--executor", "local", "--cores", "4", "--resources", "mem_mb=8000", "--latency-wait", "60"]
    assert others == [*local, "--keep-going"]


def test_a_latency_of_ones_own_comes_last(python):
    (text,) = scripts(0, Allocation(), ["--latency-wait", "5"], "/flow", "/c.yaml").values()
    assert get_argument_parser().parse_args(run_script(text)[0][2:]).latency_wait == 5


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
    command = programs.calls[len(cancelled)]
    assert str(caught.value) == f"`{' '.join(command)}` failed: first line; sbatch: error: no"
    assert command[-1] == f"results/logs/slurm/{refused}.sh"
    assert [call for call in programs.calls if call[0] == "scancel"] == ([["scancel", *cancelled]] if cancelled else [])
    assert sum(call[0] == "sbatch" for call in programs.calls) == len(cancelled) + 1


def test_what_slurm_would_never_start_is_cancelled(here, programs, sbatch):
    sbatch()
    # The shards, which are the third call.
    programs.make("squeue", "case $* in *--jobs=103*) echo '103 PENDING PartitionTimeLimit';; esac")
    with pytest.raises(CohortgmmError, match=r"would never start results/logs/slurm/shards\.sh \(PartitionTimeLimit\)"):
        submit(BATCH)
    assert [call for call in programs.calls if call[0] == "scancel"] == [["scancel", "101", "103"]]


def test_a_refusal_without_a_word_is_one_line(here, programs):
    programs.make("sbatch", "exit 3")
    with pytest.raises(
        CohortgmmError, match=r"^`sbatch --parsable results/logs/slurm/split\.sh` failed: .*exit status 3\.$"
    ):
        submit(BATCH)


def test_a_machine_without_slurm_is_told_in_one_line(here, programs):
    with pytest.raises(CohortgmmError) as caught:
        submit(BATCH)
    assert str(caught.value) == "there is no sbatch here: run again on a login node"


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("Welcome to the cluster\\n123;alpha\\n", "123"),
        ("123\\nYour quota: 80%%\\n", "123"),
        ("7 jobs are waiting\\n2024-01-01\\n  123;alpha beta \\n\\n12 GB used\\n", "123"),
        ("99\\n123\\r\\n", "123"),
        ("caf\\351\\n123\\n", "123"),
    ],
)
def test_banners_beside_the_number_do_not_count(here, programs, said, number):
    programs.make("sbatch", f"printf '{said}'")
    assert submit({"finish": "all\n"}) == {"finish": number}


@pytest.mark.parametrize(
    ("said", "answer"),
    [("", "nothing"), ("Submitted batch job 12\\n", "'Submitted batch job 12'"), ("1x\\n;2\\n", "';2'")],
)
def test_a_job_without_a_number_is_an_error_and_those_before_are_cancelled(here, programs, sbatch, said, answer):
    sbatch()
    body = (programs.folder / "sbatch").read_text().split("\n", 3)[3]
    programs.make("sbatch", f"case \"$*\" in *shards.sh) printf '{said}'; exit;; esac\n{body}")
    with pytest.raises(CohortgmmError) as caught:
        submit(BATCH)
    assert str(caught.value) == (
        f"sbatch reported no job number for results/logs/slurm/shards.sh, but {answer}: "
        "cancel it with scancel if squeue --me lists it"
    )
    assert [call for call in programs.calls if call[0] == "scancel"] == [["scancel", "101"]]


def test_a_refusal_is_told_where_nothing_can_be_cancelled(here, programs, sbatch):
    sbatch("shards")
    (programs.folder / "scancel").unlink()
    with pytest.raises(CohortgmmError, match=r"shards\.sh` failed: first line; sbatch: error: no$"):
        submit(BATCH)


@pytest.mark.parametrize(
    ("file", "reason"),
    [("results", "Not a directory"), ("results/logs/slurm", "File exists"), ("results/logs/slurm/finish.sh/x", "Is a")],
)
def test_scripts_that_cannot_be_written_are_one_line_and_nothing_is_submitted(here, programs, sbatch, file, reason):
    sbatch()
    (here / file).parent.mkdir(parents=True, exist_ok=True)
    (here / file).touch()
    with pytest.raises(CohortgmmError) as caught:
        submit(BATCH)
    name = "finish" if "finish" in file else "split"
    assert str(caught.value).startswith(f"cannot write results/logs/slurm/{name}.sh: {reason}")
    assert "\n" not in str(caught.value)
    assert programs.calls == []
