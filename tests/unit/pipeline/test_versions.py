"""A run says if another version of cohortgmm made the results, and what runs again."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from cohortgmm import __version__
from cohortgmm.pipeline.made_with import write_values
from cohortgmm.pipeline.versions import VERSION_FILE, note_version, version_message, version_of


@pytest.fixture
def results(tmp_path):
    """What 0.1.0 leaves behind."""
    folder = tmp_path / "results"
    (folder / "fits" / "P1").mkdir(parents=True)
    for name in ("patients.tsv", "scores.tsv", "cohort_gmm.h5ad", "fits/P1/k2.npz", "fits/P1/k3.npz"):
        (folder / name).write_text("")
    write_values(folder, "split", {"seed": 0})
    return folder


def job(rule, *output):
    return SimpleNamespace(rule=SimpleNamespace(name=rule), output=list(map(str, output)))


def test_results_without_a_version_are_of_the_first(results):
    assert version_of(results) == "0.1.0"


def test_a_folder_without_results_has_no_version(tmp_path):
    write_values(tmp_path, "preprocess", {"seed": 0})
    assert version_of(tmp_path) is None
    assert version_message(tmp_path, [job("split", tmp_path / "patients.tsv")]) is None


def test_a_noted_version_is_read(results):
    note_version(results)
    assert version_of(results) == __version__
    assert version_message(results, [job("fit", results / "fits" / "P1" / "k2.npz")]) is None


def test_results_of_another_version_are_said_with_what_runs_again(results):
    fits = [job("fit", results / "fits" / "P1" / f"k{k}.npz") for k in (2, 3, 4)]
    assert version_message(results, [*fits, job("merge", results / "cohort_gmm.h5ad"), job("all")]) == (
        f"{results}/ holds results of cohortgmm 0.1.0, and this is cohortgmm {__version__}. "
        "Jobs whose code or input has changed run again: 2 fit, 1 merge."
    )


def test_jobs_behind_the_split_are_not_known_yet(results):
    assert version_message(results, [job("split", results / "patients.tsv")]).endswith(
        " run again: 1 split; the fits that have to run again are known after the split."
    )


def test_a_later_version_is_said_too_and_that_nothing_runs_again(results):
    note_version(results)
    (results / VERSION_FILE).write_text("9.1\n")
    assert version_message(results, [job("fit", results / "fits" / "P1" / "k9.npz")]) == (
        f"{results}/ holds results of cohortgmm 9.1, and this is cohortgmm {__version__}. "
        "Nothing in them has to be made again."
    )


def test_the_version_is_known_without_loading_numpy():
    code = "import sys, cohortgmm.pipeline.versions; print('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"
