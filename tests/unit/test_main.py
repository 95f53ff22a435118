"""The commands beside Snakemake: what they find, what they print, how they fail."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
import yaml
from projects import REPOSITORY, make_cohort

import cohortgmm
from cohortgmm.__main__ import main
from cohortgmm.cohort.tables import PATIENT_COLUMNS, SCORE_COLUMNS, write_score, write_table
from cohortgmm.config import read_config
from cohortgmm.pipeline import lock, requests
from cohortgmm.pipeline.made_with import Expected
from cohortgmm.pipeline.slurm import orphans, shards

BASH = shutil.which("bash")
CONFIG = {"input": "cohort.h5ad", "patient_col": "patient", "gmm": {"k_comps": [2, 3]}}


#: The scores of a fit.
SCORES = {name: kind(1) for name, kind in SCORE_COLUMNS.items()} | {"patient": "P1", "k": 2, "status": "ok"}


def configure(folder, name="config/config.yaml", **changes):
    """A project's configuration, with the file that it names."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(CONFIG | changes))
    (folder / "cohort.h5ad").touch()
    return path


def divide(folder, *patients):
    """A results folder after the division of the cohort."""
    rows = [{"patient": name, "file": name, "n_cells": 100, "status": "ok"} for name in patients]
    write_table(folder / "results" / "patients.tsv", PATIENT_COLUMNS, rows)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The current folder: a configuration in its place, and a cohort divided into two patients."""
    folder = tmp_path / "project"
    configure(folder)
    divide(folder, "P1", "P2")
    fits = folder / "results" / "fits" / "P1"
    fits.mkdir(parents=True)
    monkeypatch.chdir(folder)
    write_score(fits / "k2.json", SCORES, Expected(read_config(CONFIG)).fit("P1"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")  # whatever a test comes to, it does not submit to a real SLURM
    return folder


@pytest.fixture
def fails(capsys):
    """Factory: the one line that a command with these arguments fails with."""

    def run(*arguments):
        assert main(arguments) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err.removeprefix("error: ").rstrip("\n")

    return run


def first_line(capsys, *arguments):
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()[0]


# Arguments


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: command"),
        (["start"], "invalid choice: 'start'"),
        (["status", "--shards", "3"], "unrecognized arguments: --shards 3"),
        (["submit", "--shards", "many"], "argument --shards: invalid int value: 'many'"),
        (["shard"], "the following arguments are required: I/N"),
        (["shard", "--", "1/2"], "the following arguments are required: I/N"),
    ],
)
def test_arguments_that_cannot_be_read(capsys, arguments, said):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err.splitlines()[-1]
    assert "Traceback" not in err


def test_the_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"{cohortgmm.__version__}\n"


@pytest.mark.parametrize("arguments", [["--shards", "-1"], ["--cpus", "0"], ["--minutes", "0"]])
def test_numbers_that_make_no_sense(project, fails, arguments):
    expected = "--shards must be 0 or more; --cpus, --minutes and --mem-mb 1 or more"
    assert fails("submit", "--print", *arguments) == expected


@pytest.mark.parametrize("memory", ["-5", "0"])
def test_memory_that_makes_no_sense(project, fails, memory):
    assert "--mem-mb" in fails("submit", "--print", "--mem-mb", memory)


@pytest.mark.parametrize("text", ["3", "0/3", "4/3", "a/b"])
def test_what_is_no_shard(project, fails, text):
    assert fails("shard", text) == f"a shard is written I/N with 1 <= I <= N, such as 3/20, got {text!r}"


# What is found where


def test_places_that_are_not_there_are_named(project, fails, tmp_path):
    for command in (["status"], ["submit", "--print"], ["shard", "1/2"]):
        assert fails(*command, "--snakefile", "no/Snakefile") == (
            "no Snakefile: no/Snakefile does not exist; name it with --snakefile"
        )
        assert fails(*command, "--configfile", "c.yaml") == f"no such configuration: {project}/c.yaml"
        assert fails(*command, "--directory", "nowhere") == "no such directory: nowhere"
    assert Path.cwd() == project


def test_the_configuration_is_the_one_of_the_current_folder(project, capsys):
    assert first_line(capsys, "status") == "2 patients × 2 k: 1 of 4 fits done, 3 to do"
    configure(project, "other.yaml", gmm={"k_comps": [2, 3, 4]})
    assert first_line(capsys, "status", "--configfile", "other.yaml") == "2 patients × 3 k: 1 of 6 fits done, 5 to do"
    absolute = str(project / "other.yaml")
    assert first_line(capsys, "status", "--configfile", absolute) == "2 patients × 3 k: 1 of 6 fits done, 5 to do"


def test_results_may_be_elsewhere(project, capsys, monkeypatch):
    """A configuration that is named is looked for where the command is given, and its files beside the results."""
    monkeypatch.chdir(project.parent)
    here = configure(project.parent, "here.yaml", gmm={"k_comps": [2]})
    (project.parent / "cohort.h5ad").unlink()
    said = first_line(capsys, "status", "--directory", "project", "--configfile", here.name)
    assert said == "2 patients × 1 k: 1 of 2 fits done, 1 to do"


def test_the_configuration_beside_the_results_is_the_one_that_snakemake_takes(project, capsys, monkeypatch):
    """`snakemake --directory DIR` reads DIR/config/config.yaml."""
    monkeypatch.chdir(project.parent)
    configure(project.parent, gmm={"k_comps": [2, 3, 4, 5, 6]})
    assert first_line(capsys, "status", "--directory", "project") == "2 patients × 2 k: 1 of 4 fits done, 3 to do"


def test_a_snakefile_that_is_named_brings_its_configuration(project, capsys, tmp_path):
    flow = tmp_path / "flow"
    configure(flow, gmm={"k_comps": 7})
    (flow / "Snakefile").touch()
    (project / "config" / "config.yaml").unlink()
    said = first_line(capsys, "status", "--snakefile", str(flow / "Snakefile"))
    assert said == "2 patients × 1 k: 0 of 2 fits done, 2 to do"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gmm: {k_comps: [2, 3\n", r"config\.yaml is no YAML: while parsing .*"),
        ("a: b: c\n", r"config\.yaml is no YAML: mapping values are not allowed here .*"),
        ("inptu: x\n", r"config\.yaml: 3 problems\n(.*\n)*  inptu: unknown key; did you mean input\?\n"),
        ("", r"config\.yaml: 2 problems\n  input: is required\n  patient_col: is required\n"),
    ],
)
def test_mistakes_in_the_configuration_are_told(project, capsys, text, said):
    (project / "config" / "config.yaml").write_text(text)
    for command in (["status"], ["submit", "--print"], ["shard", "1/2"]):
        assert main(command) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert re.search(said, err)
        assert "Traceback" not in err


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"- input\n- patient_col\n", b"just text\n"])
def test_a_configuration_that_is_something_else_is_told(project, fails, content):
    (project / "config" / "config.yaml").write_bytes(content)
    assert "config.yaml" in fails("status")


# status


def test_a_run_that_has_not_begun(project, fails):
    shutil.rmtree(project / "results")
    expected = "results/patients.tsv does not exist: the cohort has not been divided into patients yet"
    assert fails("status") == expected
    assert not (project / "results").exists()


def test_a_reader_that_has_seen_enough_is_no_error(project):
    """As in `python -m cohortgmm status | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "cohortgmm", "status"],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY / "src")},
            stdout=closed,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_status_as_it_is_called(project):
    """In a process of its own, with the package of this workflow."""
    log = project / "results" / "logs" / "fit" / "P2" / "k3.log"
    log.parent.mkdir(parents=True)
    log.write_text("used 40 MB of 500, 1.0 s of 600\nerror: patient 'P2', k=3: no luck\n")
    done = subprocess.run(
        [sys.executable, "-m", "cohortgmm", "status"],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "src"), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "2 patients × 2 k: 1 of 4 fits done, 1 failed, 2 to do",
        "0 of 2 final mixtures; cohort_gmm.h5ad is not there yet",
        "at work: nobody",
        "",
        "patient   2   3  model",
        "P1        +   .  .",
        "P2        .   !  .",
        "",
        "+ done, ! failed, r running, x stopped, . to do",
        "",
        "patient 'P2', k=3: no luck",
    ]


def test_shared_components_are_one_row(project, capsys):
    configure(project, gmm={"k_comps": [2, 3], "component_sharing": "global"})
    assert first_line(capsys, "status") == "1 patients × 2 k: 0 of 2 fits done, 2 to do"


# submit


def test_scripts_are_printed_and_nothing_is_submitted(project, capsys, monkeypatch):
    monkeypatch.setattr(shards, "submit", lambda batch: pytest.fail("submitted"))
    options = ["--shards", "3", "--cpus", "8", "--minutes", "30", "--partition", "short", "--sbatch=--nice=5"]
    assert main(["submit", "--print", *options, "--account", "lab", "--", "--keep-going", "-n"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    scripts = ["#!/bin/bash" + text for text in out.split("#!/bin/bash")[1:]]
    assert len(scripts) == 3
    for name, text in zip(("split", "shards", "finish"), scripts, strict=True):
        subprocess.run([BASH, "-n"], input=text, text=True, check=True)
        asked = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
        assert f"--job-name=cohortgmm-{name}" in asked
        assert {"--cpus-per-task=8", "--mem=16000", "--time=30"} < set(asked)
        assert asked[-3:] == ["--partition=short", "--account=lab", "--nice=5"]
        assert ("--array=1-3" in asked) == (name == "shards")
        command = text.splitlines()[-1] or text.splitlines()[-2]
        assert command.startswith(f"exec {sys.executable} -m ")
        assert "--cores 8 --resources mem_mb=16000 --latency-wait 60 --keep-going -n" in command
        assert f"--configfile {project}/config/config.yaml" in command
        assert f"--snakefile {REPOSITORY}/Snakefile" in command
    assert not (project / "results" / "logs").exists()


def test_memory_may_be_given(project, capsys):
    assert main(["submit", "--print", "--mem-mb", "1234"]) == 0
    out = capsys.readouterr().out
    assert "#SBATCH --mem=1234\n" in out
    assert "--resources mem_mb=1234 " in out
    assert out.count("#!/bin/bash") == 1


@pytest.fixture
def large(project):
    """MB that the preprocessing of a cohort with 1,000,000 × 1,000 counts asks for, of which the file holds none."""
    make_cohort().write_h5ad("cohort.h5ad")
    with h5py.File("cohort.h5ad", "a") as file:
        del file["X"]
        file.create_dataset("X", (1_000_000, 1_000), "f4", chunks=(1000, 1000))
    request = requests.REQUESTS["preprocess"]
    least = requests.SNAKEMAKE_MB + request.memory + 4_000 * request.memory_per_mb
    _, asked = shards.largest_request(cohortgmm.config.read_config(CONFIG))
    assert least <= asked < least + 10
    return asked


def test_a_job_has_the_memory_that_its_largest_rule_asks_for(large, capsys):
    assert main(["submit", "--print", "--shards", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    split, shard, finish = (
        re.findall(r"--mem=(\d+)$|mem_mb=(\d+) ", text, re.MULTILINE) for text in out.split("#!")[1:]
    )
    assert split == finish == [(str(large), ""), ("", str(large))]
    assert shard == [("8000", ""), ("", "8000")]  # which reads no more than its patients
    assert main(["submit", "--print", "--cpus", "16"]) == 0
    assert "#SBATCH --mem=32000\n" in capsys.readouterr().out


def test_memory_that_is_less_than_a_rule_asks_for_is_told(large, capsys):
    assert main(["submit", "--print", "--mem-mb", str(large - 1)]) == 0
    out, err = capsys.readouterr()
    assert f"#SBATCH --mem={large - 1}\n" in out
    assert err == (f"warning: preprocess requests {large} MB and may run out of memory: give --mem-mb {large}\n")
    assert main(["submit", "--print", "--mem-mb", str(large)]) == 0
    assert capsys.readouterr().err == ""


def test_an_input_that_is_not_there_is_told(project, fails):
    (project / "cohort.h5ad").unlink()
    expected = f"{project}/config/config.yaml: input: no such file: cohort.h5ad (looked in {project})"
    assert fails("submit", "--print") == fails("submit") == expected


def test_an_option_of_sbatch_with_several_lines_is_refused(project, fails):
    said = fails("submit", "--partition", "a\nb")
    assert said == "an option of sbatch must be one line, got '--partition=a\\nb'"
    assert not (project / "results" / "logs").exists()


def test_how_to_write_an_option_of_sbatch(capsys):
    with pytest.raises(SystemExit):
        main(["submit", "--help"])
    (written,) = re.findall(r"another option of sbatch: (\S+)", " ".join(capsys.readouterr().out.split()))
    assert cohortgmm.__main__._parser().parse_args(["submit", written]).sbatch == ["--nice=100"]


def test_a_folder_with_a_space_in_its_name_is_quoted(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "my cohort"
    configure(folder)
    monkeypatch.chdir(tmp_path)
    assert main(["submit", "--print", "--directory", "my cohort", "--configfile", "my cohort/config/config.yaml"]) == 0
    assert f"--configfile '{folder}/config/config.yaml'" in capsys.readouterr().out


def test_what_was_submitted_is_told(project, capsys, monkeypatch):
    programs = project / "bin"
    programs.mkdir()
    count = "n=40\nwhile read -r line; do n=$((n + 1)); done < calls"
    (programs / "sbatch").write_text(f'#!/bin/sh\necho "$*" >> calls\n{count}\necho $n\n')
    (programs / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    assert main(["submit", "--shards", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "submitted split as SLURM job 41, shards as SLURM job 42, finish as SLURM job 43",
        "scripts and output: results/logs/slurm; progress: python -m cohortgmm status",
    ]
    assert sorted(path.name for path in (project / "results" / "logs" / "slurm").iterdir()) == [
        "finish.sh",
        "shards.sh",
        "split.sh",
    ]


@pytest.fixture
def queue(project, monkeypatch):
    """SLURM with two jobs that a run which was killed has left behind; all calls are kept in a file."""
    programs = project / "bin"
    programs.mkdir()
    (programs / "queue").write_text("17\n18\n")
    code = "from cohortgmm.pipeline.lock import lock_holders; print(*(who[:7] for who in lock_holders('results')))"
    bodies = {
        "squeue": "while read -r job; do echo $job; done < bin/queue",
        "scancel": ": > bin/queue",
        "sbatch": "echo 41",
    }
    for name, body in bodies.items():
        (programs / name).write_text(f'#!/bin/sh\necho {name} $({sys.executable} -c "{code}") >> bin/calls\n{body}\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "src"))
    orphans.remember_run("results", "a-run")
    return programs


def test_jobs_that_a_killed_run_has_left_are_cancelled_first(queue, capsys):
    """Under the lock, which those that are submitted find open."""
    assert main(["submit"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[:2] == [
        "Cancelled 2 jobs that a killed run had left in SLURM's queue.",
        "submitted finish as SLURM job 41",
    ]
    calls = (queue / "calls").read_text().splitlines()
    assert calls == ["squeue process", "scancel process", "squeue process", "sbatch", "squeue"]  # would it ever start?
    assert main(["submit"]) == 0
    assert "Cancelled" not in capsys.readouterr().out
    assert (queue / "calls").read_text().splitlines() == [*calls, "sbatch", "squeue"]


def test_printing_cancels_nothing(queue, capsys):
    assert main(["submit", "--print"]) == 0
    assert not (queue / "calls").exists()


@pytest.mark.parametrize("shard", [None, lock.Shard(1, 2)])
def test_nothing_is_submitted_beside_another_run(queue, project, fails, shard):
    held = lock.lock_results("results", shard)
    said = fails("submit")
    for descriptor in held:
        os.close(descriptor)
    assert said.startswith(f"{project}/results is in use by another run (")
    assert not (queue / "calls").exists()


def test_a_queue_that_does_not_answer_leaves_the_results_open(queue, fails):
    (queue / "squeue").write_text("#!/bin/sh\necho no controller >&2\nexit 1\n")
    assert fails("submit").endswith("no controller")
    assert lock.lock_holders("results") == []


def test_results_that_are_no_folder(project, fails):
    shutil.rmtree(project / "results")
    (project / "results").touch()
    assert fails("submit") == (
        f"results cannot be written: {project}/results is not a folder; choose another with --directory"
    )


def test_submitting_without_slurm_is_one_line(project, fails):
    assert fails("submit") == "there is no sbatch here: run again on a login node"


# shard


def test_a_shard_runs_its_own_patients(project, monkeypatch):
    ran = []
    monkeypatch.setattr(shards, "run_shard", lambda *arguments: ran.append(arguments) or 5)
    assert main(["shard", "2/2", "--", "--cores", "4"]) == 5
    ((shard, targets, options, flow),) = ran
    assert (str(shard), targets) == ("2/2", ["results/models/P2.npz"])
    assert options == ["--configfile", str(project / "config" / "config.yaml"), "--cores", "4"]
    assert flow == REPOSITORY


def test_a_shard_before_the_cohort_is_divided(project, fails):
    (project / "results" / "patients.tsv").unlink()
    assert fails("shard", "1/2") == (
        "results/patients.tsv does not exist: run snakemake results/patients.tsv first, as `submit` does"
    )
