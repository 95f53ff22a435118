"""What a run says when it begins and when it has succeeded."""

import logging
import shlex
from types import SimpleNamespace

import pytest

from cohortgmm import __version__
from cohortgmm.pipeline.messages import AfterSplit, finish_message, start_message, way_message
from cohortgmm.storage.names import COHORT


def job(rule, patient=None, threads=2, **resources):
    wildcards = SimpleNamespace() if patient is None else SimpleNamespace(patient=patient)
    return SimpleNamespace(rule=SimpleNamespace(name=rule), wildcards=wildcards, threads=threads, resources=resources)


def jobs(**counts):
    return [job(rule, runtime=45) for rule, count in counts.items() for _ in range(count)]


def test_a_start_says_jobs_patients_and_core_hours():
    message = start_message("slurm", [*jobs(fit=1200, refit=100), *jobs(all=1)], 100, False)
    assert message.splitlines() == [
        f"cohortgmm {__version__}: 1,300 jobs for 100 patients, executor slurm; time limits of 1,950.0 core-hours in all",
        "  1,200 fit, 100 refit",
    ]


def test_a_start_says_what_is_not_known_yet():
    assert "1 jobs, more once the patients are known, executor local" in start_message(
        "local", jobs(split=1), None, False
    )
    assert "for 7 patients, more once" in start_message("local", jobs(split=1), 7, False)


def test_a_new_embedding_is_announced():
    assert "all are fitted again" in start_message("local", jobs(preprocess=1), 3, True)
    assert "fitted again" not in start_message("local", jobs(preprocess=1), 3, False)
    assert "fitted again" not in start_message("local", jobs(fit=1), 3, True)


def test_the_end_says_how_to_make_the_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert finish_message([], tmp_path) == "Finished. For the report: snakemake --report results/report.html"
    assert finish_message(["a.yaml"], "/elsewhere") == (
        f"Finished. For the report: snakemake --directory {tmp_path} --configfile a.yaml --report results/report.html"
    )


def test_a_start_sums_threads_times_limits():
    planned = [
        job("refit", threads=4, runtime=30),
        job("fit", threads=1, runtime=90, mem_mb=10**6),
        job("all", threads=8, runtime=600),
        job("merge", threads=1),
    ]
    assert start_message("slurm", planned, 1000, True).splitlines() == [
        f"cohortgmm {__version__}: 3 jobs for 1,000 patients, executor slurm; time limits of 3.5 core-hours in all",
        "  1 fit, 1 merge, 1 refit",
    ]


def test_the_patients_are_those_that_have_jobs():
    again = [job("fit", "P1"), job("fit", "P1"), job("refit", "P1")]
    assert "3 jobs for 1 patient, executor" in start_message("slurm", again, 1000, True)
    assert "4 jobs for 2 patients, executor" in start_message("slurm", [*again, job("fit", "P2")], 1000, True)
    assert "1 jobs for 1,000 patients, executor" in start_message("slurm", [job("fit", COHORT)], 1000, True)


def test_a_start_with_nothing_but_the_target_names_no_rule():
    assert start_message("local", jobs(all=1), 2, True).splitlines() == [
        f"cohortgmm {__version__}: 0 jobs for 2 patients, executor local; time limits of 0.0 core-hours in all"
    ]


def test_jobs_that_are_known_all_are_not_said_to_be_more():
    assert "more" not in start_message("local", jobs(fit=1, preprocess=1), 3, False)
    assert "more once the patients are known" in start_message("local", jobs(preprocess=1), None, False)


def test_the_end_names_every_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    assert finish_message(["a.yaml", tmp_path / "b.yaml"], tmp_path / "link") == (
        f"Finished. For the report: snakemake --configfile a.yaml --configfile {tmp_path}/b.yaml "
        "--report results/report.html"
    )


def test_the_command_for_the_report_can_be_pasted_whatever_the_paths(tmp_path, monkeypatch):
    folder = tmp_path / "my cohort"
    folder.mkdir()
    monkeypatch.chdir(folder)
    command = finish_message(["/a b/$c.yaml"], "/elsewhere").partition("report: ")[2]
    assert shlex.split(command) == [
        *("snakemake", "--directory", str(folder), "--configfile", "/a b/$c.yaml", "--report", "results/report.html")
    ]


@pytest.mark.parametrize(
    ("executor", "n_fits", "seconds", "advised"),
    [
        ("slurm", 900, ["0.2", "0.3", "400", ""], True),
        ("slurm", 900, ["70", "0.3", "80"], False),
        ("slurm", 19, ["0.3"], False),
        ("local", 900, ["0.3"], False),
        ("slurm", 900, [], False),
        ("slurm", 900, None, False),
    ],
)
def test_short_fits_are_better_run_in_shards(tmp_path, executor, n_fits, seconds, advised):
    scores = tmp_path / "scores.tsv"
    if seconds is not None:
        scores.write_text("patient\tseconds\n" + "".join(f"P\t{value}\n" for value in seconds))
    message = way_message(executor, n_fits, scores)
    assert bool(message) == advised
    if advised:
        assert message.startswith(f"A fit takes 0.3 s here (median of {scores}), a SLURM job about 6 s more")
        assert "make slurm-shards" in message


def test_after_the_split_the_first_job_of_a_patient_is_noticed_once():
    told = []
    handler = AfterSplit(lambda: told.append(len(told)))
    for event, rule in (
        ("JOB_INFO", "split"),
        ("JOB_FINISHED", "fit"),
        (None, "fit"),
        ("JOB_INFO", "fit"),
        ("JOB_INFO", "select"),
    ):
        record = logging.LogRecord("snakemake", logging.INFO, "", 0, "", None, None)
        record.event, record.rule_name = event and SimpleNamespace(name=event), rule
        handler.handle(record)
        assert len(told) == ((rule == "fit" and event == "JOB_INFO") or rule == "select")
