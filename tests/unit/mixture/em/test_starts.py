"""Several starts of a fit, of which the best goes on, and the moves that free it from a poor optimum."""

from dataclasses import replace

import numpy as np
import pytest

from cohortgmm.errors import CohortgmmError, DataError, DivergedError, SingularCovarianceError
from cohortgmm.mixture import fit as em
from cohortgmm.mixture.em.loop import EM
from cohortgmm.mixture.em.split_merge import moves, split_and_merge
from cohortgmm.mixture.estep.choose import choose_estep
from cohortgmm.mixture.estep.truncated import TruncatedExpectation
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background
from cohortgmm.mixture.observations.measurements import Measurements

NO_FLOOR = 1e-9


# ---- trials --------------------------------------------------------------------------------------------------------


def test_a_trial_is_a_short_run_with_few_nodes(truncated, em_of):
    x, expectation = truncated
    run_em = em_of(
        x,
        expectation=TruncatedExpectation(expectation.inner[0], expectation._selection, 1 << 16),
        max_iter=1000,
        tol=1e-9,
        accelerated=True,
    )
    trial = run_em.trial()
    assert (trial.max_iter, trial.tol, trial.accelerated) == (50, 1e-4, True)
    assert trial.constraints is run_em.constraints
    start = GaussianMixture(np.array([0.5, 0.5]), x[:2], np.array([np.eye(2)] * 2))
    assert len(trial.expectation.begin(start).nodes.points) < len(run_em.expectation.begin(start).nodes.points) / 8
    shorter = replace(run_em, max_iter=7, tol=0.1).trial()
    assert (shorter.max_iter, shorter.tol) == (7, 0.1)
    plain = em_of(x, max_iter=1000)
    assert plain.trial().expectation is plain.expectation


@pytest.fixture
def starts(monkeypatch):
    """Fits begin with these mixtures one after the other."""

    def set_starts(*models):
        left = iter(models)
        for name in em.STARTS:  # several starts may be of several kinds
            monkeypatch.setitem(em.STARTS, name, lambda *arguments: next(left))

    return set_starts


def two_blobs():
    rng = np.random.default_rng(0)
    return rng.normal(size=(200, 1)) + np.repeat([[-5.0], [5.0]], 100, axis=0)


GOOD = GaussianMixture(np.array([0.5, 0.5]), np.array([[-4.0], [4.0]]), np.ones((2, 1, 1)))

#: Both components on one side: EM leaves them there, the other side being claimed by one of them.
SYMMETRIC = GaussianMixture(np.array([0.5, 0.5]), np.array([[0.0], [0.0]]), np.full((2, 1, 1), 26.0))


@pytest.mark.parametrize("order", [(GOOD, SYMMETRIC), (SYMMETRIC, GOOD), (SYMMETRIC, GOOD, SYMMETRIC)])
@pytest.mark.parametrize("noise", [None, np.array([0.2])])
def test_the_best_of_several_starts_is_kept(starts, order, noise):
    starts(*order)
    fit = fit_mixture(two_blobs(), 2, n_init=len(order), noise=noise)
    np.testing.assert_allclose(np.sort(fit.model.means[:, 0]), [-5, 5], atol=0.4)
    starts(*[SYMMETRIC] * len(order))
    worse = fit_mixture(two_blobs(), 2, n_init=len(order), noise=noise)
    assert worse.log_likelihood < fit.log_likelihood - 0.3


def test_one_component_beside_a_background_has_several_optima():
    """It may be on either of two clumps, the other one being background: a bad start is not the only one."""
    rng = np.random.default_rng(0)
    clumps = (0.3 * rng.normal(size=(60, 2)) + 5, 0.5 * rng.normal(size=(90, 2)))
    x = np.vstack([*clumps, rng.uniform(-8, 12, size=(50, 2))])
    background = Background([-8.0, -8.0], [12.0, 12.0], 0.2)
    fits = [fit_mixture(x, 1, init="random", random_state=seed, background=background) for seed in range(6)]
    best = max(fit.log_likelihood for fit in fits)
    for fit in fits:
        assert fit.log_likelihood == pytest.approx(best, abs=1e-3)


def test_only_the_best_trial_goes_on(monkeypatch, starts):
    runs, original_run = [], EM.run

    def spy(self, start, before=None):
        fit = original_run(self, start, before)
        runs.append((self.max_iter, start, fit))
        return fit

    monkeypatch.setattr(EM, "run", spy)
    starts(SYMMETRIC, GOOD, SYMMETRIC)
    fit = fit_mixture(two_blobs(), 2, n_init=3, noise=np.array([0.2]), max_iter=500)
    assert [max_iter <= 50 for max_iter, _, _ in runs] == [True, True, True, False]
    best = runs[1][2]
    assert runs[3][1] is best.model
    assert fit.log_likelihood >= best.log_likelihood
    assert np.array_equal(fit.history[: best.n_iter], best.history[:-1])


def test_if_the_best_trial_fails_in_the_end_the_next_goes_on(monkeypatch, starts):
    original_run = EM.run

    def fails_for_good(self, start, before=None):
        if before is not None and np.ptp(before.model.means) > 5:
            raise DivergedError("too far")
        return original_run(self, start, before)

    monkeypatch.setattr(EM, "run", fails_for_good)
    starts(GOOD, SYMMETRIC)
    fit = fit_mixture(two_blobs(), 2, n_init=2, noise=np.array([0.2]))
    np.testing.assert_allclose(fit.model.means[:, 0], 0, atol=0.5)
    starts(GOOD, GOOD)
    with pytest.raises(DivergedError, match="too far"):
        fit_mixture(two_blobs(), 2, n_init=2, noise=np.array([0.2]))


def test_an_error_in_the_data_is_not_taken_for_a_bad_start(starts):
    starts(GOOD, GOOD)
    with pytest.raises(DataError, match="completeness function failed"):
        fit_mixture(two_blobs(), 2, n_init=2, completeness=lambda x: 1 / 0)


# ---- moves ---------------------------------------------------------------------------------------------------------


def three_blobs():
    rng = np.random.default_rng(0)
    return rng.normal(size=(300, 2)) * 0.5 + np.repeat([[0.0, 0.0], [8.0, 0.0], [9.5, 0.0]], 100, axis=0)


#: Two components share one blob, the third has two of them.
STUCK = GaussianMixture(
    np.array([1, 1, 4]) / 6,
    np.array([[0.0, 0.4], [0.0, -0.4], [8.75, 0.0]]),
    np.array([0.1 * np.eye(2), 0.1 * np.eye(2), np.eye(2)]),
)


@pytest.mark.parametrize("noise", [None, np.array([0.05, 0.05]), "own"])
def test_a_move_frees_a_fit_that_is_stuck(em_of, noise):
    x = three_blobs()
    noise = np.full(x.shape, 0.05) if isinstance(noise, str) else noise
    cells = Measurements(x, noise)
    run_em = em_of(x, 3, expectation=choose_estep(cells, 3, "full"), max_iter=200, accelerated=noise is not None)
    stuck = run_em.run(STUCK)
    assert split_and_merge(run_em, cells, stuck, 0) is stuck
    moved = split_and_merge(run_em, cells, stuck, 1)
    assert moved.log_likelihood > stuck.log_likelihood + 0.04
    np.testing.assert_allclose(np.sort(moved.model.means[:, 0]), [0, 8, 9.5], atol=0.3)
    again = split_and_merge(run_em, cells, moved, 5)
    assert again.log_likelihood >= moved.log_likelihood


@pytest.mark.parametrize("error", [SingularCovarianceError(0, 3, 0.0, 1e-4), DivergedError("too far")])
def test_a_move_that_fails_is_left_out(monkeypatch, em_of, error):
    x = three_blobs()
    run_em, cells = em_of(x, 3), Measurements(x)
    stuck = run_em.run(STUCK)
    tried, original_run = [], EM.run

    def fails_first(self, start, before=None):
        tried.append(start)
        if len(tried) == 1:
            raise error
        return original_run(self, start, before)

    monkeypatch.setattr(EM, "run", fails_first)
    moved = split_and_merge(run_em, cells, stuck, 1)
    assert len(tried) > 1
    assert moved.log_likelihood >= stuck.log_likelihood
    assert len(list(moves(cells, stuck.model))) >= len(tried)


def test_rounds_end_when_no_move_helps(monkeypatch, em_of):
    x = three_blobs()
    run_em, cells = em_of(x, 3), Measurements(x)
    fit, tried = run_em.run(STUCK), []

    def leads_nowhere(self, start, before=None):
        tried.append(start)
        return fit  # as likely is not more likely

    monkeypatch.setattr(EM, "run", leads_nowhere)
    assert split_and_merge(run_em, cells, fit, 100) is fit
    assert len(tried) == len(list(moves(cells, fit.model))) > 1


def test_two_components_are_not_moved(em_of):
    x = three_blobs()
    run_em, cells = em_of(x, 2), Measurements(x)
    fit = run_em.run(GaussianMixture(np.array([0.5, 0.5]), x[[0, 250]], np.array([np.eye(2)] * 2)))
    assert split_and_merge(run_em, cells, fit, 3) is fit


def test_errors_of_all_starts_are_one_error():
    x = np.zeros((50, 2))
    for options in ({}, {"noise": np.zeros(2)}, {"n_init": 3}):
        with pytest.raises(CohortgmmError, match="component"):
            fit_mixture(x, 2, singularity_handling="strict", **options)
