"""What results were made with is noted beside them, and status tells those of another configuration."""

import json
import zipfile

import numpy as np
import pytest
from recorded import CONFIG, write_run

from cohortgmm.config import read_config
from cohortgmm.pipeline import made_with
from cohortgmm.pipeline.made_with import Expected, fit_mark
from cohortgmm.pipeline.status import read_status
from cohortgmm.storage.marks import mark_archive, mark_of_archive


def changed(**changes):
    """The configuration with other keys; those of sections are added to them."""
    values = {key: CONFIG.get(key, {}) | value if isinstance(value, dict) else value for key, value in changes.items()}
    return read_config(CONFIG | values)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run of two patients, from the files alone."""
    monkeypatch.chdir(tmp_path)
    config = read_config(CONFIG)
    (tmp_path / "cohort.h5ad").write_text("cohort")
    write_run(tmp_path, config)
    return tmp_path


def status_of(run, config):
    return read_status(
        run / "results", config.gmm.candidates, config.component_sharing, Expected(config, run / "results")
    )


def test_a_finished_run_is_done(run):
    found = status_of(run, read_config(CONFIG))
    assert found.fits == {"P1": ["done", "done"], "P2": ["done", "done"]}
    assert found.models == {"P1", "P2"}
    assert found.merged
    assert "configuration" not in str(found)


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"gmm": {"tol": 0.01}}, []),
        ({"gmm": {"max_iter": 7}}, []),
        ({"gmm": {"covariance_type": "diag"}}, []),
        ({"gmm": {"eps": 0.1}}, []),
        ({"gmm": {"background": {}}}, []),
        ({"gmm": {"k_comps": None}}, []),  # the same k are asked more cells for
        ({"seed": 1}, ["seed"]),
        ({"patient_col": "donor"}, ["patient_col"]),
        ({"use_rep": "X_umap"}, ["use_rep"]),
        ({"gmm": {"train_size": 0.7}}, ["train_size"]),
        ({"gmm": {"missing": True}}, ["missing"]),
        ({"gmm": {"noise": {"obsm": "v"}}}, ["noise"]),
        ({"input": "other.h5ad"}, ["cohort"]),
    ],
)
def test_what_moves_fits_leaves_none_done(run, changes, keys):
    found = status_of(run, changed(**changes))
    states = {state for states in found.fits.values() for state in states}
    assert states <= {"of another configuration", "to do"}
    assert found.models == set()
    assert not found.merged
    text = str(found)
    assert " 0 of " in text.splitlines()[0]
    assert "fits done, 4 of another configuration" in text.splitlines()[0]
    assert text.splitlines()[1] == (
        "0 of 2 final mixtures (2 more are of another configuration); cohort_gmm.h5ad is of another configuration"
    )
    told = f" ({', '.join(keys)})" if keys else ""
    assert f"the configuration has changed since{told}: the next run repeats the jobs that depend on it" in text
    assert "~ of another configuration" in text.splitlines()[-1]


def test_another_input_of_the_same_name_is_told_by_its_size(run):
    (run / "cohort.h5ad").write_text("another cohort")
    assert status_of(run, read_config(CONFIG)).changed == ["cohort"]


@pytest.mark.parametrize(
    ("changes", "models", "merged"),
    [
        ({"label_col": "group"}, {"P1", "P2"}, False),
        ({"min_cells": 5}, {"P1", "P2"}, False),
        ({"on_small_patient": "drop"}, {"P1", "P2"}, False),
        ({"gmm": {"k_selection_metric": "bic"}}, set(), False),  # which chooses 1
        ({"gmm": {"k_selection_metric": "heldout_nll"}}, set(), False),
        ({"gmm": {"refit": "full"}}, set(), False),
        ({"gmm": {"gmm_key": "other"}}, {"P1", "P2"}, False),
        ({"gmm": {"verbose": False}}, {"P1", "P2"}, True),
        ({"qc": {"umap": False}}, {"P1", "P2"}, True),
    ],
)
def test_what_moves_no_fit_leaves_the_fits_done(run, changes, models, merged):
    found = status_of(run, changed(**changes))
    assert found.fits == {"P1": ["done", "done"], "P2": ["done", "done"]}
    assert found.models == models
    assert found.merged == merged


def test_other_k_are_to_do_and_the_rest_done(run):
    found = status_of(run, changed(gmm={"k_comps": [1, 2, 3]}))
    assert found.fits == {"P1": ["done", "done", "to do"], "P2": ["done", "done", "to do"]}
    assert found.models == set()
    assert status_of(run, changed(gmm={"k_comps": [2]})).fits["P1"] != ["done"]  # one k is fitted to all cells


def test_other_cells_of_a_patient_concern_that_patient(run):
    np.savez(run / "results" / "patients" / "P2.npz", x=np.ones((9, 2)))
    found = status_of(run, read_config(CONFIG))
    assert found.fits == {"P1": ["done"] * 2, "P2": ["of another configuration"] * 2}
    assert found.models == {"P1"}
    assert not found.merged


@pytest.mark.parametrize("content", ["", "{", '{"k": 1}', "[]", "null", "1", "\x00\x01"])
def test_damaged_scores_are_not_done(run, content):
    path = run / "results" / "fits" / "P1" / "k2.json"
    path.write_text(content)
    found = status_of(run, read_config(CONFIG))
    assert found.fits == {"P1": ["done", "damaged"], "P2": ["done", "done"]}
    assert found.models == {"P2"}
    (line,) = [line for line in str(found).splitlines() if "holds no scores" in line]
    assert line.startswith(f"{path} holds no scores: ")
    assert line.endswith("; remove it and run again")


def test_fits_that_do_not_say_what_they_were_made_with_are_not_done(run):
    path = run / "results" / "fits" / "P1" / "k2.json"
    values = json.loads(path.read_text())
    del values["made_with"]
    path.write_text(json.dumps(values))
    assert status_of(run, read_config(CONFIG)).fits["P1"] == ["done", "of another configuration"]


def test_described_files_count_by_content(tmp_path):
    np.savez(tmp_path / "cells.npz", x=np.ones(3))
    (tmp_path / "seen.py").write_text("a = 1")
    first = fit_mark(tmp_path / "cells.npz", [str(tmp_path / "seen.py")], seed=1)
    assert fit_mark(tmp_path / "cells.npz", [str(tmp_path / "seen.py")], seed=1) == first
    assert len(first) == 16
    assert fit_mark(tmp_path / "cells.npz", [str(tmp_path / "seen.py")], seed=2) != first
    (tmp_path / "seen.py").write_text("a = 12")
    assert fit_mark(tmp_path / "cells.npz", [str(tmp_path / "seen.py")], seed=1) != first


def test_a_mark_changes_nothing_that_numpy_reads(tmp_path):
    path = tmp_path / "m.npz"
    np.savez(path, x=np.arange(3))
    assert mark_of_archive(path) == ""
    mark_archive(path, "0123456789abcdef")
    assert mark_of_archive(path) == "0123456789abcdef"
    with np.load(path) as archive:
        assert archive.files == ["x"]
        np.testing.assert_array_equal(archive["x"], np.arange(3))
    content = path.read_bytes()
    np.savez(path, x=np.arange(3))
    mark_archive(path, "0123456789abcdef")
    assert path.read_bytes() == content  # no time is in it
    assert zipfile.is_zipfile(path)
    path.write_text("no archive")
    assert mark_of_archive(path) == ""
    assert mark_of_archive(tmp_path / "none.npz") == ""


@pytest.mark.parametrize("content", ["", "[]", "{", "\x00"])
def test_a_damaged_note_is_none(tmp_path, content):
    made_with.write_values(tmp_path, "split", {"seed": 1})
    assert made_with.read_values(tmp_path, "split") == {"seed": 1}
    (tmp_path / ".made_with" / "split.json").write_text(content)
    assert made_with.read_values(tmp_path, "split") is None
    assert made_with.differing(None, {"seed": 1}) == []
