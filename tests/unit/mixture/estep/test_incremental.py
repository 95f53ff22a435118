"""E-steps that leave settled cells alone: what they stand for, and that they bound the likelihood from below."""

import numpy as np
import pytest
from scipy.special import logsumexp

from cohortgmm.mixture.density.evaluate import log_prob, responsibilities
from cohortgmm.mixture.em.mstep import m_step
from cohortgmm.mixture.estep.dense import DenseExpectation
from cohortgmm.mixture.estep.incremental import (
    IncrementalExpectation,
    ListedExpectation,
    Unsettled,
    expected_log_density,
)
from cohortgmm.mixture.estep.moments import Moments
from cohortgmm.mixture.estep.quadratic import QuadraticExpectation
from cohortgmm.mixture.estep.screened import ScreenedExpectation
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.cells import CellData

# Shares of 1e-12 of a component are left alone between exact steps: with some 100 nats each, 1e-10 of a log-likelihood.
RTOL = 1e-9


@pytest.fixture(params=["quadratic", "listed"])
def way(tune, request):
    """How unsettled cells are evaluated."""
    tune(few_unsettled_products=np.inf if request.param == "quadratic" else 0)
    return {"quadratic": QuadraticExpectation, "listed": ListedExpectation}[request.param]


@pytest.fixture
def problem(make_mixture, start_at_cells, floor_only):
    """Cells of six components that overlap in part, and a mixture on its way to them."""
    x = make_mixture(6, 20, spread=1.0, seed=2).sample(1500, 0)[0]
    cells = CellData(x)
    model = start_at_cells(x, 6, seed=1)
    for _ in range(8):
        model, _ = m_step(DenseExpectation(cells)(model), model, floor_only(6, 1e-6, strict=True))
    settled = responsibilities(model, x).max(axis=1) >= 1 - 1e-3
    assert 0.05 < 1 - settled.mean() < 0.6, "or there is nothing to leave alone, or too little"
    return cells, model


def begin(cells, model):
    return ScreenedExpectation(cells, model.n_components).begin(model)


def test_a_run_begins_with_nothing_remembered(problem, way):
    cells, model = problem
    expectation = ScreenedExpectation(cells, 6)
    first, second = expectation.begin(model), expectation.begin(model)
    first(model)
    assert first(model).is_bound
    assert isinstance(second, IncrementalExpectation)
    assert not second(model).is_bound
    assert isinstance(first._unsettled, way)


def test_the_bound_is_below_the_likelihood_and_never_falls_along_em(problem, way, floor_only):
    cells, model = problem
    expect, previous, bounds = begin(cells, model), -np.inf, []
    for _ in range(50):
        moments = expect(model)
        exact = DenseExpectation(cells)(model).log_likelihood
        rounding = RTOL * abs(exact)
        if moments.is_bound:
            assert moments.log_likelihood <= exact + rounding
        else:
            assert moments.log_likelihood == pytest.approx(exact, abs=rounding)
        assert moments.log_likelihood >= previous - rounding
        bounds.append(moments.is_bound)
        previous = moments.log_likelihood
        model, _ = m_step(moments, model, floor_only(6, 1e-6, strict=True))
    runs = "".join("b" if bound else "e" for bound in bounds)
    assert runs == "e" + "b" + "e" + "bb" + "e" + 4 * "b" + "e" + 8 * "b" + "e" + 16 * "b" + "e" + 13 * "b"


def test_the_bound_falls_behind_the_likelihood_of_a_mixture_that_moves(problem, way):
    """Or the tests above would also pass with steps that are never partial."""
    cells, model = problem
    expect = begin(cells, model)
    expect(model)
    moved = GaussianMixture(model.weights[::-1], model.means[::-1], model.covariances[::-1])
    assert expect(moved).log_likelihood < DenseExpectation(cells)(moved).log_likelihood - len(cells)


def test_the_bound_is_the_likelihood_of_the_mixture_of_the_exact_step(problem, way, assert_same_moments):
    cells, model = problem
    expect = begin(cells, model)
    exact = expect(model)
    again = expect(model)
    assert (exact.is_bound, again.is_bound) == (False, True)
    assert_same_moments(again, exact, rtol=RTOL)


def test_exact_is_exact_in_the_middle_of_an_interval(problem, way, floor_only, assert_same_moments):
    cells, model = problem
    expect = begin(cells, model)
    for _ in range(3):
        moments = expect(model)
        model, _ = m_step(moments, model, floor_only(6, 1e-6, strict=True))
    expect.refresh()
    moments = expect(model)
    assert not moments.is_bound
    assert_same_moments(moments, DenseExpectation(cells)(model), rtol=RTOL)
    assert expect(model).is_bound


def test_moments_are_those_of_the_responsibilities_they_stand_for(
    problem, way, floor_only, moments_by_definition, assert_same_moments
):
    cells, model = problem
    expect = begin(cells, model)
    resp = responsibilities(model, cells.x)
    settled = resp.max(axis=1) >= 1 - 1e-3
    listed = resp > 1e-12
    model, _ = m_step(expect(model), model, floor_only(6, 1e-6, strict=True))
    for _ in range(2):
        moments = expect(model)
        if not moments.is_bound:
            resp = responsibilities(model, cells.x)
            settled = resp.max(axis=1) >= 1 - 1e-3
            listed = resp > 1e-12
        else:
            joint = model.joint_log_prob(cells.x - model.means[:, None, :]).T
            if way is ListedExpectation:
                joint = np.where(settled[:, None] | listed, joint, -np.inf)
            fresh = np.exp(joint - logsumexp(joint, axis=1)[:, None])
            resp = np.where(settled[:, None], resp, fresh)
            left_alone = resp[settled] * (joint[settled] - np.log(np.maximum(resp[settled], 1e-300)))
            log_likelihood = left_alone.sum() + logsumexp(joint[~settled], axis=1).sum()
            expected = moments_by_definition(cells.x, resp, model.means, log_likelihood=log_likelihood)
            assert_same_moments(moments, expected, rtol=RTOL)
        model, _ = m_step(moments, model, floor_only(6, 1e-6, strict=True))


@pytest.mark.parametrize(("spread", "share"), [(0.2, (0.6, 1.0)), (20.0, (0.0, 0.0))], ids=["too many", "none"])
def test_every_step_is_exact_with_unsettled_cells_too_many_or_none(make_mixture, way, spread, share):
    model = make_mixture(6, 20, spread=spread)
    cells = CellData(model.sample(800, 0)[0])
    unsettled = np.mean(responsibilities(model, cells.x).max(axis=1) < 1 - 1e-3)
    assert share[0] <= unsettled <= share[1]
    expect = begin(cells, model)
    for _ in range(5):
        moments = expect(model)
        assert not moments.is_bound
        assert moments.log_likelihood == pytest.approx(DenseExpectation(cells)(model).log_likelihood, rel=RTOL)


def test_every_step_is_exact_where_rounding_is_too_large(tune, problem, way):
    cells, model = problem
    tune(incremental_rounding=0.0)
    expect = begin(cells, model)
    assert not any(expect(model).is_bound for _ in range(4))


def test_every_step_is_exact_where_unsettled_cells_take_too_much_memory(tune, problem):
    cells, model = problem
    tune(unsettled_bytes=8 * 20)
    expect = begin(cells, model)
    assert not any(expect(model).is_bound for _ in range(4))


def test_cells_that_become_settled_end_the_partial_steps(make_mixture, way):
    close, apart = make_mixture(6, 20, spread=1.0, seed=2), make_mixture(6, 20, spread=20.0, seed=2)
    cells = CellData(apart.sample(800, 0)[0])
    vague = GaussianMixture(close.weights, apart.means, 1000 * close.covariances)
    expect = begin(cells, vague)
    expect(vague)
    assert expect(vague).is_bound, "the broad mixture must leave some cells unsettled"
    expect.refresh()
    expect(vague)
    expect.refresh()
    expect(apart)  # with two incremental steps to come
    assert not any(expect(apart).is_bound for _ in range(3))


def test_a_component_that_dies_leaves_the_bound_finite(make_mixture, way, floor_only):
    """Its share of 1e-14 in settled cells is nothing, though its density has become zero."""
    two = make_mixture(2, 6, spread=1.0)
    cells = CellData(two.sample(400, 0)[0])
    again = [0, 1, 0]
    model = GaussianMixture([*two.weights, 1e-14], two.means[again], two.covariances[again])
    expect = begin(cells, model)
    moments = expect(model)
    assert 0 < moments.nk[2] < 1e-10
    dead, _ = m_step(moments, model, floor_only(3, 1e-6))
    assert dead.weights[2] == 0
    moments = expect(dead)
    assert moments.is_bound
    exact = DenseExpectation(cells)(dead).log_likelihood
    assert exact - len(cells) < moments.log_likelihood <= exact * (1 - RTOL)


def test_unsettled_cells_are_those_of_which_a_thousandth_belongs_elsewhere():
    resp = np.array([[1.0, 0.9995, 0.9985, 0.5], [0.0, 0.0005, 0.0015 - 1e-13, 0.5 - 1e-11], [0.0, 0.0, 1e-13, 1e-11]])
    unsettled = Unsettled.find(slice(100, 104), resp)
    assert unsettled.rows.tolist() == [102, 103]
    assert unsettled.listed.tolist() == [[True, True], [True, True], [False, True]]


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.usefixtures("small_tiles")
def test_listed_and_quadratic_evaluation_agree(make_mixture, assert_same_moments, n_threads):
    model = make_mixture(5, 10, spread=1.2)
    x = model.sample(700, 0)[0]
    cells = CellData(x, n_threads)
    everyone = ListedExpectation(cells, np.ones((5, 700), dtype=bool))(model)
    assert_same_moments(everyone, DenseExpectation(cells)(model), rtol=RTOL)
    listed = responsibilities(model, x).T > 1e-12
    assert 0.2 < listed.mean() < 0.9, "some are listed and some are not"
    few = ListedExpectation(cells, listed)(model)
    assert_same_moments(few, QuadraticExpectation(cells, "full")(model), rtol=RTOL)


def test_only_listed_components_are_evaluated(make_mixture, moments_by_definition, assert_same_moments):
    model = make_mixture(3, 4, spread=0.5)
    x = model.sample(100, 0)[0]
    listed = np.random.default_rng(0).random((3, 100)) < 0.5
    listed[0] |= ~listed.any(axis=0)
    joint = np.where(listed, model.joint_log_prob(x - model.means[:, None, :]), -np.inf)
    total = logsumexp(joint, axis=0)
    expected = moments_by_definition(x, np.exp(joint - total).T, model.means, log_likelihood=total.sum())
    assert_same_moments(ListedExpectation(CellData(x), listed)(model), expected, rtol=1e-11)


@pytest.mark.parametrize("n_features", [1, 5, 20])
def test_expected_log_density_is_the_sum_over_cells_and_components(make_mixture, moments_by_definition, n_features):
    model = make_mixture(4, n_features)
    x = 3 * np.random.default_rng(0).normal(size=(300, n_features))
    resp = np.random.default_rng(1).dirichlet(np.ones(4), size=300)
    joint = model.joint_log_prob(x - model.means[:, None, :]).T
    value, rounding = expected_log_density(moments_by_definition(x, resp, model.means), model)
    assert value == pytest.approx((resp * joint).sum(), rel=1e-12)
    assert rounding < 1e-12 * abs(value)


def test_expected_log_density_knows_what_collinear_features_take_from_it(moments_by_definition):
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0]
    covariance = (basis * np.repeat([1e-4, 1e6], 6)) @ basis.T
    model = GaussianMixture([1.0], np.zeros((1, 12)), 0.5 * (covariance + covariance.T)[None])
    x = model.sample(500, 0)[0]
    value, rounding = expected_log_density(moments_by_definition(x, np.ones((500, 1)), model.means), model)
    error = abs(value - log_prob(model, x).sum())
    # How much it loses depends on the machine's BLAS: 1e-6 to 1e-3 nats; the sum of the cells' densities loses none.
    assert 1e-8 < error < 10 * rounding, "an estimate, not a bound"


def test_components_without_weight_have_no_part_in_the_expected_log_density(make_mixture):
    model = make_mixture(2, 3)
    padded = GaussianMixture(
        np.append(model.weights, 0.0),
        np.vstack([model.means, [[0, 0, 0]]]),
        np.vstack([model.covariances, [np.eye(3)]]),
    )
    x = model.sample(50, 0)[0]
    moments, alone = DenseExpectation(CellData(x))(padded), DenseExpectation(CellData(x))(model)
    moments.nk[2] = 1e-13  # a difference of moments rounds
    expected = expected_log_density(alone, model)[0]
    assert expected_log_density(moments, padded)[0] == pytest.approx(expected, rel=1e-12)
    assert expected_log_density(Moments.zeros(3, 3, "full"), padded) == (0, 0)
