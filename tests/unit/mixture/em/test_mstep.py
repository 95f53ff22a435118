"""The moments that pass between the two steps of EM, the reference E-step, and the M-step."""

import numpy as np
import pytest

from cohortgmm.errors import SingularCovarianceError
from cohortgmm.mixture.density.evaluate import log_prob
from cohortgmm.mixture.em.mstep import m_step
from cohortgmm.mixture.estep.dense import DenseExpectation
from cohortgmm.mixture.estep.moments import Moments
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.cells import CellData

COVARIANCE_TYPES = ["full", "diag"]


def expect(x, model):
    return DenseExpectation(CellData(x))(model)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("n_features", [1, 2, 10])
def test_expectation_is_its_definition(
    make_mixture, moments_by_definition, assert_same_moments, covariance_type, n_features
):
    model = make_mixture(3, n_features, covariance_type)
    x = 3 * np.random.default_rng(0).normal(size=(500, n_features))
    log_likelihood = model.log_prob(x).sum()
    definition = moments_by_definition(x, model.responsibilities(x), model.means, covariance_type, log_likelihood)
    # Whitening and back costs the condition number, here below 1e3.
    assert_same_moments(expect(x, model), definition, rtol=1e-11)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_moments_of_parts_add_up(make_mixture, make_cells, assert_same_moments, covariance_type):
    model, x = make_mixture(3, 2, covariance_type), make_cells(300, 2)
    whole = expect(x, model)
    rest = whole - expect(x[:100], model)
    assert_same_moments(Moments.sum(expect(part, model) for part in (x[:100], x[100:250], x[250:])), whole, rtol=1e-12)
    assert_same_moments(rest, expect(x[100:], model), rtol=1e-12)
    empty = Moments.zeros(3, 2, covariance_type)
    assert_same_moments(Moments.sum([empty, whole]), whole, rtol=0)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("n_features", [1, 4])
def test_moments_about_other_means_are_those_taken_there(
    make_cells, moments_by_definition, assert_same_moments, covariance_type, n_features
):
    x, rng = make_cells(200, n_features), np.random.default_rng(0)
    resp = rng.dirichlet(np.ones(3), size=200)
    means, shift = x[:3], rng.normal(size=(3, n_features))
    moments = moments_by_definition(x, resp, means, covariance_type, log_likelihood=-7.0)
    before = [array.copy() for array in (moments.nk, moments.first, moments.second)]
    shifted = moments.about(shift)
    expected = moments_by_definition(x, resp, means + shift, covariance_type, log_likelihood=-7.0)
    assert_same_moments(shifted, expected, rtol=1e-12)
    shifted += shifted
    for array, was in zip((moments.nk, moments.first, moments.second), before, strict=True):
        assert np.array_equal(array, was)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("weighted", [True, False])
def test_cells_add_to_the_moments_of_their_component(
    make_cells, moments_by_definition, assert_same_moments, covariance_type, weighted
):
    x, means = make_cells(50, 3), np.arange(6.0).reshape(2, 3)
    resp = np.zeros((50, 2))
    resp[:, 1] = np.random.default_rng(0).random(50) if weighted else 1.0
    moments = Moments.zeros(2, 3, covariance_type)
    moments.nk[:], moments.n = resp.sum(axis=0), 50
    moments.add_cells(1, x - means[1], resp[:, 1] if weighted else None)
    assert_same_moments(moments, moments_by_definition(x, resp, means, covariance_type), rtol=1e-12)
    assert not moments.first[0].any()


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_maximisation_is_the_weighted_mean_and_covariance(make_mixture, make_cells, floor_only, covariance_type):
    model, x = make_mixture(3, 3, covariance_type), make_cells(400, 3)
    updated, floored = m_step(expect(x, model), model, floor_only(3, 1e-9, strict=True))
    resp = model.responsibilities(x)
    np.testing.assert_allclose(updated.weights, resp.mean(axis=0), rtol=1e-12)
    for k in range(3):
        np.testing.assert_allclose(updated.means[k], np.average(x, axis=0, weights=resp[:, k]), rtol=1e-10)
        truth = np.cov(x, rowvar=False, bias=True, aweights=resp[:, k])
        np.testing.assert_allclose(
            updated.full_covariances[k] if covariance_type == "full" else np.diag(updated.covariances[k]),
            truth if covariance_type == "full" else np.diag(np.diag(truth)),
            rtol=1e-9,
            atol=1e-11,
        )
    assert not floored.any()


@pytest.mark.parametrize("suspected", [[False, False, False], [True, True, True], [True, False, False]])
def test_maximisation_does_not_depend_on_what_is_suspected(make_mixture, make_cells, floor_only, suspected):
    model, x = make_mixture(3, 3), make_cells(400, 3)
    moments = expect(x, model)
    expected, _ = m_step(moments, model, floor_only(3, 1e-9))
    updated, floored = m_step(moments, model, floor_only(3, 1e-9), suspected=np.array(suspected))
    for name, array in updated.arrays().items():
        assert np.array_equal(array, getattr(expected, name))
    assert not floored.any()
    np.testing.assert_allclose(log_prob(updated, x), log_prob(expected, x), rtol=1e-11)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_dead_component_loses_its_weight_and_stays_finite(floor_only, covariance_type):
    second = np.array([4.0, 0.0])[:, None] * np.ones((2, 3))
    if covariance_type == "full":
        second = second[:, :, None] * np.eye(3)
    moments = Moments(np.array([4.0, 0.0]), np.zeros((2, 3)), second, -1.0, 4)
    means = np.arange(6.0).reshape(2, 3)
    before = GaussianMixture(
        [0.5, 0.5], means, np.ones((2, 3)) if covariance_type == "diag" else np.stack([np.eye(3)] * 2)
    )
    model, floored = m_step(moments, before, floor_only(2, 1e-3))
    assert model.weights.tolist() == [1.0, 0.0]
    assert np.array_equal(model.means, means)
    np.testing.assert_allclose(model.full_covariances, [np.eye(3), 1e-3 * np.eye(3)], rtol=1e-14)
    assert floored.tolist() == [False, True]
    with pytest.raises(SingularCovarianceError, match="component 1 of 2"):
        m_step(moments, before, floor_only(2, 1e-3, strict=True))


def assert_second_of_three_died(fit):
    assert fit.model.weights[1] == 0
    assert fit.floored.tolist() == [False, True, False]
    assert fit.model.weights.sum() == pytest.approx(1, rel=1e-15)
    assert np.isfinite(fit.history).all()


@pytest.mark.usefixtures("stops_early")
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("n", [200, 213])  # matrix products of some widths touch more than they return
def test_a_component_out_of_reach_dies_and_does_not_come_back(make_cells, start_at_cells, n, covariance_type):
    x = make_cells(n, 2)
    start = start_at_cells(x, 3, covariance_type)
    start.means[1] = 1e6
    fit = fit_mixture(x, 3, covariance_type=covariance_type, initial=start, tol=0, max_iter=5)
    assert_second_of_three_died(fit)


@pytest.mark.usefixtures("stops_early")
@pytest.mark.parametrize("n", [200, 213])
@pytest.mark.usefixtures("screen_everything")
def test_a_component_out_of_reach_dies_where_pairs_are_left_out(make_cells, start_at_cells, n):
    x = make_cells(n, 20)
    start = start_at_cells(x, 3)
    start.means[1] = 1e6
    assert_second_of_three_died(fit_mixture(x, 3, initial=start, tol=0, max_iter=5))
