"""Every way to make an E-step gives the same moments."""

import numpy as np
import pytest

from cohortgmm.mixture.estep.dense import DenseExpectation
from cohortgmm.mixture.estep.quadratic import QuadraticExpectation
from cohortgmm.mixture.estep.screened import ScreenedExpectation
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.numerics.posterior import responsibilities
from cohortgmm.mixture.observations.cells import CellData

COVARIANCE_TYPES = ["full", "diag"]

# Condition numbers below 1e3 and 600 cells leave eleven digits of the moments; what is left out is below the sixteenth.
RTOL = 1e-9


def overlapping(make_mixture, *shape):
    model = make_mixture(*shape, spread=0.5)
    return model, model.sample(600, 1)[0]


def separated(make_mixture, *shape):
    model = make_mixture(*shape, spread=8.0)
    return model, model.sample(600, 1)[0]


def far_from_the_origin(make_mixture, *shape):
    model = make_mixture(*shape, spread=2.0)
    shift = 1e4 * np.arange(1.0, model.n_features + 1)
    return GaussianMixture(model.weights, model.means + shift, model.covariances), model.sample(600, 1)[0] + shift


def with_a_weight_of_zero(make_mixture, *shape):
    model, x = overlapping(make_mixture, *shape)
    weights = np.where(np.arange(model.n_components) == 1, 0.0, model.weights)
    return GaussianMixture(weights / weights.sum(), model.means, model.covariances), x


def with_a_tiny_covariance(make_mixture, *shape):
    model = make_mixture(*shape, spread=2.0)
    covariances = model.covariances.copy()
    covariances[0] *= 1e-8
    model = GaussianMixture(model.weights, model.means, covariances)
    return model, model.sample(600, 1)[0]


def with_an_outlier(make_mixture, *shape):
    model, x = overlapping(make_mixture, *shape)
    x[7] = 1e8
    return model, x


def for_another_model(make_mixture, *shape):
    model, _ = overlapping(make_mixture, *shape)
    return model, 20 * np.random.default_rng(5).normal(size=(600, model.n_features))


PROBLEMS = [
    overlapping,
    separated,
    far_from_the_origin,
    with_a_weight_of_zero,
    with_a_tiny_covariance,
    with_an_outlier,
    for_another_model,
]
SHAPES = [(k, d) for k in (2, 5, 12) for d in (2, 6, 20, 40)]


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize(("n_components", "n_features"), SHAPES)
def test_quadratic_and_screened_are_the_dense_e_step(
    make_mixture, assert_same_moments, problem, n_components, n_features
):
    model, x = problem(make_mixture, n_components, n_features)
    cells = CellData(x)
    dense = DenseExpectation(cells)(model)
    assert_same_moments(QuadraticExpectation(cells, "full")(model), dense, rtol=RTOL)
    assert_same_moments(ScreenedExpectation(cells, n_components)(model), dense, rtol=RTOL)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize(("n_components", "n_features"), SHAPES)
def test_quadratic_is_the_dense_e_step_for_diagonal_covariances(
    make_mixture, assert_same_moments, problem, n_components, n_features
):
    model, x = problem(make_mixture, n_components, n_features, "diag")
    cells = CellData(x)
    dense = DenseExpectation(cells)(model)
    assert_same_moments(QuadraticExpectation(cells, "diag")(model), dense, rtol=RTOL)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.usefixtures("small_tiles")
def test_moments_of_several_tiles_are_those_of_one(monkeypatch, make_mixture, assert_same_moments, problem, n_threads):
    model, x = problem(make_mixture, 5, 20)
    with monkeypatch.context() as undone:
        undone.undo()
        whole = DenseExpectation(CellData(x))(model)
    cells = CellData(x, n_threads)
    ways = (DenseExpectation(cells), QuadraticExpectation(cells, "full"), ScreenedExpectation(cells, 5))
    for way in ways:
        assert_same_moments(way(model), whole, rtol=RTOL)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_second_e_step_does_not_depend_on_the_first(make_mixture, assert_same_moments, problem):
    """What was remembered of the first mixture is wrong for the second, whose components come in another order."""
    model, x = problem(make_mixture, 5, 20)
    cells = CellData(x)
    others = [
        GaussianMixture(model.weights[::-1], model.means[::-1], model.covariances[::-1]),
        make_mixture(5, 20, seed=9, spread=4.0),
        model,
    ]
    for way in (QuadraticExpectation(cells, "full"), ScreenedExpectation(cells, 5)):
        way(model)
        for other in others:
            assert_same_moments(way(other), DenseExpectation(cells)(other), rtol=RTOL)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_features_that_are_not_kept_give_the_same_bits(tune, make_mixture, covariance_type):
    model, x = overlapping(make_mixture, 3, 4, covariance_type)
    kept = QuadraticExpectation(CellData(x), covariance_type)
    tune(quadratic_bytes=0)
    made_anew = QuadraticExpectation(CellData(x), covariance_type)
    for _ in range(2):
        left, right = kept(model), made_anew(model)
        assert np.array_equal(left.second, right.second)
        assert left.log_likelihood == right.log_likelihood


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize(
    ("problem", "digits_are_lost"),
    [
        (overlapping, False),
        (separated, False),
        (far_from_the_origin, False),
        (with_a_weight_of_zero, False),
        (with_a_tiny_covariance, True),
        (with_an_outlier, True),
    ],
)
def test_whitening_is_used_where_quadratic_features_would_lose_digits(
    monkeypatch, make_mixture, problem, digits_are_lost, covariance_type
):
    model, x = problem(make_mixture, 3, 4, covariance_type)
    expected = DenseExpectation(CellData(x))(model)
    called = []

    def dense(self, model):
        called.append(model)
        return expected

    monkeypatch.setattr(DenseExpectation, "__call__", dense)
    moments = QuadraticExpectation(CellData(x), covariance_type)(model)
    assert (moments is expected) == bool(called) == digits_are_lost


def test_values_that_overflow_are_not_trusted_to_quadratic_features(make_mixture, monkeypatch):
    monkeypatch.setattr("cohortgmm.mixture.observations.cells.LARGEST", np.inf)  # which are refused before
    model = make_mixture(2, 2)
    x = np.vstack([model.sample(50, 0)[0], [[1e160, 1e160]]])
    with np.errstate(all="ignore"):
        assert np.isnan(QuadraticExpectation(CellData(x), "full")(model).log_likelihood) == np.isnan(
            DenseExpectation(CellData(x))(model).log_likelihood
        )


def test_responsibilities_of_densities_that_underflow():
    joint = np.array([[-1e6, -np.inf, 0.0], [-1e6 - np.log(3), -2.0, -800.0]])
    resp, log_likelihood = responsibilities(joint)
    np.testing.assert_allclose(resp, [[0.75, 0.0, 1.0], [0.25, 1.0, 0.0]], atol=1e-10)
    assert log_likelihood == pytest.approx(-1e6 + np.log(4 / 3) - 2.0, rel=1e-12)
