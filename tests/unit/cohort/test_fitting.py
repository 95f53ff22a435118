"""Scores recomputed with scipy, candidates that are left out, refits, and seeds of their own."""

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from cohortgmm.cohort.cells import PatientCells
from cohortgmm.cohort.fit_options import fit_options
from cohortgmm.cohort.fitting import final_fit, fit_candidate, missing_cells, write_fit
from cohortgmm.cohort.patient_result import read_results
from cohortgmm.cohort.tables import SCORE_COLUMNS
from cohortgmm.config.gmm import GmmConfig
from cohortgmm.errors import DataError, SingularCovarianceError
from cohortgmm.mixture.fit import fit_mixture


def options(**changes):
    return fit_options(GmmConfig(**changes))


def log_density(model, x):
    """Of the mixture, by scipy."""
    covariances = model.covariances if model.covariance_type == "full" else [np.diag(v) for v in model.covariances]
    joint = [
        np.log(w) + multivariate_normal(m, s).logpdf(x)
        for w, m, s in zip(model.weights, model.means, covariances, strict=True)
    ]
    return logsumexp(joint, axis=0)


@pytest.mark.parametrize(("kind", "parameters"), [("full", 3 * 3 + 3 * 6 + 2), ("diag", 3 * 3 + 3 * 3 + 2)])
def test_scores_are_what_their_formulas_say(make_part, kind, parameters):
    part = make_part(n=80, n_features=3, n_train=50)
    row, fit = fit_candidate(part, 3, options(covariance_type=kind), seed=0)
    x = part.x.astype(float)
    total = log_density(fit.model, x[:50]).sum()
    heldout = -log_density(fit.model, x[50:]).mean()
    assert tuple(row) == tuple(SCORE_COLUMNS)
    close = {
        "log_likelihood": total,
        "aic": -2 * total + 2 * parameters,
        "bic": -2 * total + parameters * math.log(50),
        "train_nll": -total / 50,
        "heldout_nll": heldout,
        "nll_gap": heldout + total / 50,
    }
    assert {name: row[name] for name in close} == pytest.approx(close, rel=1e-9)
    assert (row["patient"], row["k"], row["n_train"], row["n_val"]) == ("P1", 3, 50, 30)
    assert (row["status"], row["reason"], row["n_floored"]) == ("ok", "", 0)
    assert row["n_iter"] == fit.n_iter >= 1
    assert row["converged"] is True
    assert 0 < row["seconds"] < 60


def test_without_held_out_cells_there_is_no_held_out_score(make_part):
    row, _ = fit_candidate(make_part(n_train=60), 2, options(), seed=0)
    assert row["n_val"] == 0
    assert math.isnan(row["heldout_nll"])
    assert math.isnan(row["nll_gap"])
    assert math.isfinite(row["aic"])


@pytest.mark.usefixtures("stops_early")
def test_an_unfinished_fit_is_marked(make_part):
    row, fit = fit_candidate(make_part(), 2, options(max_iter=1, tol=0), seed=0)
    assert (row["n_iter"], row["converged"], fit.converged) == (1, False, False)


def test_components_at_the_floor_are_counted(make_part):
    part = make_part()
    flat = PatientCells("P1", np.ones_like(part.x), part.train)
    row, _ = fit_candidate(flat, 1, options(), seed=0)
    assert row["n_floored"] == 1
    with pytest.raises(SingularCovarianceError, match="component 0 of 1 has a singular covariance"):
        fit_candidate(flat, 1, options(singularity_handling="strict"), seed=0)


@pytest.mark.parametrize(
    ("n_train", "d", "k", "kind", "default", "needed"),
    [
        (9, 2, 5, "full", False, 2),  # asked for: two cells per component
        (10, 2, 5, "full", False, None),
        (1, 2, 1, "full", False, 2),
        (2, 50, 1, "full", True, None),  # a single component of the default range is as one asked for
        (19, 2, 2, "full", True, 10),
        (20, 2, 2, "full", True, None),
        (41, 20, 2, "full", True, 21),  # more than the rank of a covariance
        (42, 20, 2, "full", True, None),
        (20, 20, 2, "diag", True, None),
        (19, 20, 2, "diag", True, 10),
    ],
)
def test_candidates_that_have_too_few_cells(n_train, d, k, kind, default, needed):
    reason = f"{n_train} training cells are fewer than {needed} per component" if needed else ""
    assert missing_cells(n_train, d, k, kind, default_range=default) == reason


def test_cells_without_features_carry_no_component(make_part):
    part = make_part()
    x = part.x.copy()
    x[3:30] = np.nan
    part = replace(part, x=x)
    row, fit = fit_candidate(part, 2, options(missing=True), seed=0)
    assert fit is None
    assert row["reason"] == "3 training cells with features, of 30, are fewer than 2 per component"
    assert row["n_train"] == 30
    assert fit_candidate(part, 1, options(missing=True), seed=0)[0]["status"] == "ok"
    everything = replace(part, x=np.full_like(x, np.nan))
    row, fit = fit_candidate(everything, 1, options(missing=True), seed=0)
    assert row["reason"] == "0 training cells with features, of 30, are fewer than 2 per component"


def test_a_candidate_with_too_few_cells_is_left_out(make_part, caplog):
    part = make_part(n_train=30)
    with caplog.at_level(logging.INFO):
        row, fit = fit_candidate(part, 4, options(), seed=0, default_range=True)
    assert fit is None
    assert tuple(row) == tuple(SCORE_COLUMNS)
    assert (row["status"], row["reason"]) == ("skipped", "30 training cells are fewer than 10 per component")
    assert (row["n_iter"], row["converged"], row["n_floored"]) == (0, False, 0)
    assert all(
        math.isnan(row[name]) for name in ("log_likelihood", "aic", "bic", "train_nll", "heldout_nll", "seconds")
    )
    assert "patient P1, k=4: skipped, 30 training cells" in caplog.text
    assert fit_candidate(part, 4, options(), seed=0)[1] is not None  # asked for explicitly
    assert fit_candidate(part, 3, options(), seed=0, default_range=True)[1] is not None


def test_a_refit_uses_all_cells(make_part):
    part = make_part(n=60, n_train=20)
    _, selected = fit_candidate(part, 1, options(), seed=0)
    x = part.x.astype(float)
    np.testing.assert_allclose(selected.model.means[0], x[:20].mean(axis=0), rtol=1e-10)
    assert same(final_fit(part, 1, selected, "none", options(), seed=0), selected)
    final = final_fit(part, 1, selected, "full", options(), seed=0)
    np.testing.assert_allclose(final.model.means[0], x.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(final.model.covariances[0], np.cov(x.T, bias=True), rtol=1e-9)


def test_a_fit_of_all_cells_is_not_repeated(make_part):
    part = make_part(n_train=60)
    _, selected = fit_candidate(part, 2, options(), seed=0)
    assert final_fit(part, 2, selected, "full", options(), seed=0) is selected


@pytest.mark.usefixtures("stops_early")
def test_a_fit_depends_on_seed_patient_and_k_only(make_part):
    def means(patient="P1", seed=0, max_iter=1):
        part = make_part("P1", n=60)
        part = PatientCells(patient, part.x, part.train)
        chosen = options(init="random", max_iter=max_iter, tol=0)
        return fit_candidate(part, 3, chosen, seed=seed)[1].model.means

    first = means()
    np.random.default_rng(0).random(10)  # no generator is shared
    np.testing.assert_array_equal(means(), first)
    assert not np.array_equal(means(patient="P2"), first)
    assert not np.array_equal(means(seed=1), first)


def test_fits_are_written_and_loaded(make_part, tmp_path):
    parts = [make_part(patient) for patient in ("P1", "P2")]
    fits = [fit_candidate(part, 2, options(), seed=0)[1] for part in parts]
    paths = [tmp_path / f"{part.patient}.npz" for part in parts]
    parts_saved = []
    for path, fit in zip(paths, fits, strict=True):
        write_fit(path, fit)
        parts_saved.append(tmp_path / f"{path.stem}_cells.npz")
    for part, path in zip(parts, parts_saved, strict=True):
        part.save(path)
    loaded = {result.name: result for result in read_results(parts_saved, paths, "full")}
    assert list(loaded) == ["P1", "P2"]
    for part, result in zip(parts, loaded.values(), strict=True):
        assert (result.n_cells, result.n_fit, result.scores) == (len(part.x), len(part.x), ())
    for fit, again in zip(fits, (result.fit for result in loaded.values()), strict=True):
        np.testing.assert_array_equal(again.model.covariances, fit.model.covariances)
        assert (again.n_iter, again.converged, again.log_likelihood) == (fit.n_iter, fit.converged, fit.log_likelihood)
    with pytest.raises(ValueError, match="shorter"):
        read_results(parts_saved, paths[:1], "full")


def test_the_file_of_a_skipped_candidate_holds_no_mixture(tmp_path):
    write_fit(tmp_path / "k9.npz", None)
    with pytest.raises(DataError, match="holds no mixture"):
        type(fit_mixture(np.eye(3), 1)).load(tmp_path / "k9.npz")


def same(one, other):
    """Whether two fits are the same bit by bit."""
    numbers = ("log_likelihood", "n_iter", "converged", "n_unobserved", "completeness", "n_empty")
    ours, theirs = one.model.arrays(), other.model.arrays()
    return ours.keys() == theirs.keys() and all(
        np.array_equal(a, b)
        for a, b in (
            *((ours[name], theirs[name]) for name in ours),
            *((getattr(one, name), getattr(other, name)) for name in (*numbers, "history", "floored")),
        )
    )
