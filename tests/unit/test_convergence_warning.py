"""Fits that end without converging give one warning per call; in the pipeline, the end of the run reports them."""

import logging
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import cohortgmm
from cohortgmm.cohort.cells import PatientCells
from cohortgmm.cohort.fit_options import fit_options
from cohortgmm.cohort.fitting import fit_candidate
from cohortgmm.config import GmmConfig
from cohortgmm.errors import ConvergenceWarning
from cohortgmm.pipeline.job import job_log

rng = np.random.default_rng(0)
EASY = np.concatenate([rng.normal(size=(40, 2)), rng.normal(20, 1, size=(40, 2))])
HARD = rng.normal(size=(80, 2))
FEW = {"k_comps": 2, "max_iter": 2, "tol": 1e-6, "verbose": False}


def test_a_fit_warns_with_its_limits():
    message = r"^EM did not converge with max_iter=2: raise it, or tol \(1e-06\) if less precision is enough$"
    with pytest.warns(ConvergenceWarning, match=message) as caught:
        fit = cohortgmm.fit_mixture(HARD, 2, max_iter=2, tol=1e-6)
    assert not fit.converged
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert cohortgmm.fit_mixture(EASY, 2).converged  # a warning is an error here


def test_a_cohort_warns_once_with_the_number_of_patients():
    data = {"a": HARD, "b": EASY, "c\n": HARD + 1, "d": HARD + 2, "e": HARD + 3}
    with pytest.warns(ConvergenceWarning) as caught:
        models = cohortgmm.fit_gmm(data, component_sharing="sample_specific", n_jobs=2, **FEW)
    assert set(models) == set(data)
    assert [str(warning.message) for warning in caught] == [
        "EM did not converge for 4 of 5 patients (a, 'c\\n', d, ...): raise max_iter, or tol if less precision is enough"
    ]
    assert caught[0].filename == __file__


def test_a_mixture_of_all_patients_warns_once():
    with pytest.warns(
        ConvergenceWarning, match=r"^EM did not converge for the mixture of all patients: raise max_iter"
    ):
        cohortgmm.fit_gmm({"all patients": HARD, "b": HARD}, component_sharing="global", **FEW)


def test_fits_that_converge_give_no_warning():
    cohortgmm.fit_gmm({"a": EASY, "b": EASY}, component_sharing="sample_specific", **FEW)  # a warning is an error here


def test_the_warning_can_be_turned_off():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        cohortgmm.fit_gmm({"a": HARD, "b": HARD}, component_sharing="sample_specific", **FEW)


def test_a_job_leaves_the_warning_to_its_log_and_the_end_of_the_run(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    job = SimpleNamespace(rule="fit", log=["fit.log"], wildcards=SimpleNamespace(patient="a", k="2"), resources={})
    cells = PatientCells(patient="a", x=HARD, train=np.ones(80, dtype=bool), feature_names=("x", "y"))
    options = fit_options(GmmConfig(k_comps=[2], max_iter=2, tol=1e-6))
    with job_log(job):
        row, _ = fit_candidate(cells, 2, options, seed=0)
        logging.getLogger("cohortgmm").info("done")
    assert not row["converged"]
    text = (tmp_path / "fit.log").read_text()
    assert text.count("converge") == 1
    assert "Warning" not in text + capfd.readouterr().err
