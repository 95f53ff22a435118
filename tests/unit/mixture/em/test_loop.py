"""The loop of EM: what it returns, when it ends, when it begins again, and which of several starts it keeps."""

from dataclasses import replace

import numpy as np
import pytest
from cut_cells import above

from cohortgmm.errors import DivergedError, FitError
from cohortgmm.mixture.density.evaluate import log_prob
from cohortgmm.mixture.em import loop as run
from cohortgmm.mixture.em.mstep import m_step
from cohortgmm.mixture.estep.base import Expectation
from cohortgmm.mixture.estep.choose import choose_estep
from cohortgmm.mixture.estep.dense import DenseExpectation
from cohortgmm.mixture.estep.truncated import TruncatedExpectation
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.measurements import Measurements

COVARIANCE_TYPES = ["full", "diag"]

NO_FLOOR = 1e-9


def em_by_hand(x, model, limits, n_iter):
    """Mean log-likelihoods and mixtures of plain EM, step after step."""
    expect = DenseExpectation(Measurements(x).whole)
    models = [model]
    for _ in range(n_iter):
        models.append(m_step(expect(models[-1]), models[-1], limits)[0])
    return np.array([log_prob(m, x).mean() for m in models]), models


# ---- what is returned ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("max_iter", [1, 2, 7, 200])
def test_a_plain_run_is_em_step_after_step(make_cells, start_at_cells, em_of, floor_only, covariance_type, max_iter):
    x = make_cells(200, 2)
    start = start_at_cells(x, 3, covariance_type)
    fit = em_of(x, 3, max_iter=max_iter, tol=1e-5).run(start)
    history, models = em_by_hand(x, start, floor_only(3, NO_FLOOR), max_iter)
    ends = np.flatnonzero(np.diff(history) < 1e-5)
    n_iter = int(ends[0]) + 1 if len(ends) else max_iter
    assert fit.n_iter == n_iter
    assert fit.converged == (len(ends) > 0)
    np.testing.assert_allclose(fit.history, history[: n_iter + 1], rtol=1e-12)
    np.testing.assert_allclose(fit.model.means, models[n_iter].means, rtol=1e-9)
    np.testing.assert_allclose(fit.model.covariances, models[n_iter].covariances, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("noise", [None, np.array([0.3, 0.2])])
@pytest.mark.parametrize("max_iter", [1, 2, 3, 4, 100])
def test_the_mixture_is_that_of_the_last_likelihood(make_cells, start_at_cells, em_of, accelerated, noise, max_iter):
    x = make_cells(150, 2)
    expectation = choose_estep(Measurements(x, noise), 2, "full")
    fit = em_of(x, expectation=expectation, max_iter=max_iter, accelerated=accelerated).run(start_at_cells(x, 2))
    assert fit.log_likelihood == fit.history[-1]
    assert fit.log_likelihood == pytest.approx(log_prob(fit.model, x, noise).mean(), rel=1e-12)
    assert len(fit.history) == fit.n_iter + 1 <= max_iter + 1
    assert np.diff(fit.history).min() >= -1e-13
    assert (fit.moments.n, fit.moments.n_unobserved) == (150, 0)
    assert isinstance(fit.log_likelihood, float)
    assert isinstance(fit.converged, bool)


def test_a_run_goes_on_from_an_earlier_one(make_cells, start_at_cells, em_of):
    """Their iterations are one history."""
    x = make_cells(150, 2)
    run_em = em_of(x, max_iter=40, tol=1e-9)
    whole = run_em.run(start_at_cells(x, 2))
    first = replace(run_em, max_iter=5).run(start_at_cells(x, 2))
    assert not first.converged
    both = run_em.run(first.model, first)
    assert both.n_iter == whole.n_iter == len(both.history) - 1
    np.testing.assert_allclose(both.history, whole.history, rtol=1e-13)
    assert np.array_equal(both.history[:5], first.history[:5])


def test_the_floor_is_reported_of_the_mixture_that_is_returned(em_of):
    x = np.random.default_rng(0).normal(size=(100, 2)) * [1.0, 1e-3]
    start = GaussianMixture(np.ones(1), np.zeros((1, 2)), np.eye(2)[None])
    for accelerated in (False, True):
        fit = em_of(x, 1, floor=1e-2, accelerated=accelerated).run(start)
        assert fit.floored.tolist() == [True]
        assert np.linalg.eigvalsh(fit.model.covariances[0])[0] == pytest.approx(1e-2, rel=1e-9)
        fit = em_of(x, 1, floor=1e-9, accelerated=accelerated).run(start)
        assert fit.floored.tolist() == [False]


@pytest.mark.usefixtures("stops_early")
@pytest.mark.parametrize("max_iter", [1, 20])
@pytest.mark.parametrize("options", [{"noise": np.array([0.3, 0.2])}, {"n_init": 1}, {"completeness": above(-50.0)}])
def test_no_more_iterations_are_made_than_allowed(make_cells, max_iter, options):
    """The short runs of EM that compare starts are among them."""
    fit = fit_mixture(make_cells(100, 2), 2, max_iter=max_iter, tol=0, **options)
    assert fit.n_iter <= max_iter
    assert len(fit.history) == fit.n_iter + 1


@pytest.mark.parametrize("accelerated", [False, True])
def test_a_likelihood_that_is_not_finite_is_an_error(make_cells, start_at_cells, em_of, accelerated):
    x = make_cells(50, 2)

    class Broken(DenseExpectation):
        n_calls = 0

        def __call__(self, model):
            self.n_calls += 1
            moments = super().__call__(model)
            moments.log_likelihood = np.nan if self.n_calls > 3 else moments.log_likelihood
            return moments

    run_em = em_of(x, expectation=Broken(Measurements(x).whole), accelerated=accelerated, tol=0)
    with pytest.raises(FitError, match=r"the log-likelihood became nan after [123] iterations; rescale the data"):
        run_em.run(start_at_cells(x, 2))


# ---- bounds --------------------------------------------------------------------------------------------------------


def test_a_bound_is_made_exact_before_a_run_ends(make_cells, start_at_cells, em_of):
    """And in the last iteration that is allowed."""
    x = make_cells(150, 2)

    class Bounded(DenseExpectation):
        asked = ()

        refreshed = True  # as it begins

        def refresh(self):
            self.refreshed = True

        def __call__(self, model):
            self.asked += (self.refreshed,)
            moments = super().__call__(model)
            is_exact, self.refreshed = self.refreshed, False
            if not is_exact:
                moments.log_likelihood -= 1.0
                moments.is_bound = True
            return moments

    for max_iter, tol in ((4, 0.0), (500, 1e-7)):
        expectation = Bounded(Measurements(x).whole)
        fit = em_of(x, expectation=expectation, max_iter=max_iter, tol=tol).run(start_at_cells(x, 2))
        assert expectation.asked[0]
        assert expectation.asked[-1]
        assert fit.log_likelihood == pytest.approx(log_prob(fit.model, x).mean(), rel=1e-12)
        assert fit.converged == (max_iter == 500)


# ---- beginning again -----------------------------------------------------------------------------------------------


def test_nodes_are_made_again_until_they_are_those_of_the_result(truncated, start_at_cells, em_of):
    x, expectation = truncated
    origins = []

    class Spy(TruncatedExpectation):
        def begin(self, model):
            origins.append(model)
            return super().begin(model)

    spy = Spy(expectation.inner[0], expectation._selection, 1 << 12)
    for accelerated in (False, True):
        origins.clear()
        fit = em_of(x, expectation=spy, max_iter=500, tol=1e-5, accelerated=accelerated).run(start_at_cells(x, 2))
        assert fit.converged
        assert len(origins) > 1
        again = expectation.begin(origins[-1])
        # The result is near to where the last nodes were made, so that the likelihood on nodes of its own is the same.
        assert again.is_settled(fit.model)
        own = expectation.begin(fit.model)(fit.model)
        assert fit.log_likelihood == pytest.approx(own.log_likelihood / len(x), abs=2e-3)
        assert fit.moments.n == len(x)
        assert fit.moments.n_unobserved == pytest.approx(own.n_unobserved, rel=0.02)


@pytest.mark.parametrize("accelerated", [False, True])
def test_every_iteration_is_made_within_the_reach_of_its_nodes(truncated, start_at_cells, em_of, accelerated):
    x, expectation = truncated
    evaluated = []

    class Spy(TruncatedExpectation):
        def begin(self, model):
            begun = super().begin(model)
            return Spy(begun.inner[0], begun._selection, self._n_nodes, begun.nodes)

        def __call__(self, model):
            evaluated.append(self.nodes.distance(model))
            return super().__call__(model)

    spy = Spy(expectation.inner[0], expectation._selection, 1 << 12)
    em_of(x, expectation=spy, max_iter=200, accelerated=accelerated).run(start_at_cells(x, 2))
    assert max(evaluated) <= 0.05
    assert max(evaluated) > 0.01
    assert evaluated.count(0.0) > 1


class Restless(Expectation):
    """An E-step that holds nowhere but where it begins, its likelihoods being given one after the other."""

    def __init__(self, cells, values):
        super().__init__(cells)
        self.values, self.begun = values, []

    def begin(self, model):
        self.begun.append(model)
        return self

    def covers(self, model):
        return model is self.begun[-1]

    def is_settled(self, model):
        return self.covers(model)

    def __call__(self, model):
        moments = DenseExpectation(self.cells)(model)
        moments.log_likelihood = self.values[min(len(self.begun), len(self.values)) - 1] * len(self.cells)
        return moments


def test_a_run_that_begins_again_in_vain_ends_with_the_best_of_its_beginnings(make_cells, start_at_cells, em_of):
    x = make_cells(100, 2)
    expectation = Restless(Measurements(x).whole, [-9.0, -7.0, -5.0, -5.5, -5.4, -5.6, -5.3, -5.2, -5.1])
    fit = em_of(x, expectation=expectation, max_iter=100, tol=1e-3).run(start_at_cells(x, 2))
    assert fit.log_likelihood == fit.history[-1] == -5.0
    assert fit.model is expectation.begun[2]
    assert fit.n_iter < 20


def test_a_run_that_begins_again_with_success_goes_on(make_cells, start_at_cells, em_of):
    x = make_cells(100, 2)
    expectation = Restless(Measurements(x).whole, -9.0 + 0.01 * np.arange(100))
    fit = em_of(x, expectation=expectation, max_iter=30, tol=1e-3).run(start_at_cells(x, 2))
    assert fit.n_iter == 30
    assert not fit.converged
    np.testing.assert_allclose(fit.history, -9.0 + 0.01 * np.arange(31))


def test_a_leap_into_divergence_is_not_taken(monkeypatch, make_cells, start_at_cells, em_of):
    x, taken = make_cells(100, 2), []

    class Abyss(DenseExpectation):
        def __call__(self, model):
            if model.means.max() > 1e5:
                raise DivergedError("too far")
            return super().__call__(model)

    class Leaps(run.Squarem):
        def extrapolate(self, model):
            super().extrapolate(model)
            return GaussianMixture(model.weights, model.means + 1e6, model.covariances)

        def judge(self, model):
            taken.append(model)

    monkeypatch.setattr(run, "Squarem", Leaps)
    start = start_at_cells(x, 2)
    expectation = Abyss(Measurements(x).whole)
    fit = em_of(x, expectation=expectation, accelerated=True, max_iter=10, tol=0).run(start)
    assert taken == [None] * 9
    np.testing.assert_allclose(fit.history, em_of(x, max_iter=10, tol=0).run(start).history, rtol=1e-13)


def test_a_leap_beyond_the_reach_of_the_nodes_is_not_taken(monkeypatch, make_cells, start_at_cells, em_of):
    x, taken = make_cells(100, 2), []

    class Near(DenseExpectation):
        def covers(self, model):
            return model.means.max() < 1e5

        def __call__(self, model):
            assert self.covers(model)
            return super().__call__(model)

    class Leaps(run.Squarem):
        def extrapolate(self, model):
            super().extrapolate(model)
            return GaussianMixture(model.weights, model.means + 1e6, model.covariances)

        def judge(self, model):
            taken.append(model)

    monkeypatch.setattr(run, "Squarem", Leaps)
    em_of(x, expectation=Near(Measurements(x).whole), accelerated=True, max_iter=5, tol=0).run(start_at_cells(x, 2))
    assert taken == [None] * 4


def test_an_accelerated_run_does_not_end_between_two_leaps(monkeypatch, make_cells, start_at_cells, em_of):
    """A small gain of EM alone says nothing about what a leap would bring."""
    x, tried = make_cells(150, 2), []

    class Counted(run.Squarem):
        def extrapolate(self, model):
            found = super().extrapolate(model)
            tried.append(self.has_extrapolated)
            return found

    monkeypatch.setattr(run, "Squarem", Counted)
    fit = em_of(x, accelerated=True, tol=1e10, max_iter=50).run(start_at_cells(x, 2))
    assert fit.converged
    assert fit.n_iter == 2
    assert tried == [False, True]
