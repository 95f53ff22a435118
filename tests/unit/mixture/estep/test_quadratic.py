"""The log-density as a product of natural parameters and quadratic features, and what it costs in digits."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from cohortgmm.mixture.estep.quadratic import (
    full_parameters,
    moments_about,
    n_quadratic,
    natural_parameters,
    quadratic_features,
    rounding,
)

COVARIANCE_TYPES = ["full", "diag"]


@pytest.mark.parametrize(
    ("n_features", "covariance_type", "expected"),
    [(1, "full", 3), (1, "diag", 3), (3, "full", 10), (3, "diag", 7), (50, "full", 1326), (50, "diag", 101)],
)
def test_number_of_quadratic_features(n_features, covariance_type, expected):
    assert n_quadratic(n_features, covariance_type) == expected
    assert quadratic_features(np.ones((4, n_features)), covariance_type).shape == (expected, 4)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_features_are_one_the_values_and_their_products(covariance_type):
    x = np.array([[2.0, 3.0, 5.0], [-1.0, 0.5, 0.0]])
    squares = {"full": [[4, 6, 10, 9, 15, 25], [1, -0.5, 0, 0.25, 0, 0]], "diag": [[4, 9, 25], [1, 0.25, 0]]}
    expected = np.hstack([np.ones((2, 1)), x, squares[covariance_type]])
    assert np.array_equal(quadratic_features(x, covariance_type), expected.T)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("n_features", [1, 2, 10])
@pytest.mark.parametrize("offset", [0.0, 7.0])
def test_the_product_is_the_joint_log_density(make_mixture, covariance_type, n_features, offset):
    model = make_mixture(4, n_features, covariance_type)
    x, origin = 5 * np.random.default_rng(0).normal(size=(200, n_features)), np.full(n_features, offset)
    joint = natural_parameters(model, origin) @ quadratic_features(x - origin, covariance_type)
    for k, covariance in enumerate(model.full_covariances):
        density = multivariate_normal(model.means[k], covariance).logpdf(x)
        # Condition numbers below 1e3 cost three of sixteen digits, and squares of 20 standard deviations some more.
        np.testing.assert_allclose(joint[k], np.log(model.weights[k]) + density, rtol=1e-10, atol=1e-10)


def test_parameters_from_precisions_are_those_of_the_mixture(make_mixture):
    model = make_mixture(3, 4)
    parameters = full_parameters(model.log_peaks, model.means, np.linalg.inv(model.covariances))
    np.testing.assert_allclose(parameters, natural_parameters(model, np.zeros(4)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("n_features", [1, 2, 10])
def test_moments_from_statistics_are_their_definition(
    make_cells, moments_by_definition, assert_same_moments, covariance_type, n_features
):
    x, rng = make_cells(200, n_features), np.random.default_rng(0)
    resp, means, origin = rng.dirichlet(np.ones(3), size=200), x[:3], x.mean(axis=0)
    statistics = resp.T @ quadratic_features(x - origin, covariance_type).T
    moments = moments_about(means - origin, statistics, covariance_type, -3.0, 200)
    # Sums of squares up to 1e2 times the second moment cost two digits.
    assert_same_moments(moments, moments_by_definition(x, resp, means, covariance_type, -3.0), rtol=1e-12)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("n_features", [1, 12, 40])
def test_rounding_bounds_the_error_of_the_product(make_mixture, covariance_type, n_features):
    """Values of 1e6 standard deviations leave no decimals of a log-density; the bound knows it."""
    for scale in (1.0, 1e3, 1e6):
        for seed in range(5):
            model = make_mixture(4, n_features, covariance_type, seed=seed, spread=scale)
            x = model.sample(400, seed)[0]
            origin = x.mean(axis=0)
            parameters, phi = natural_parameters(model, origin), quadratic_features(x - origin, covariance_type)
            exact = np.stack([(row[:, None] * phi).sum(axis=0) for row in parameters.astype(np.longdouble)])
            bound = rounding(parameters, np.abs(x - origin).max(axis=0), covariance_type)
            assert np.abs(parameters @ phi - exact).max() <= bound
            assert bound < 1e-10 * scale**2 * n_features**2  # and it is no larger than such a bound must be


def test_rounding_grows_with_the_square_of_the_extent_and_admits_overflow(make_mixture):
    parameters = natural_parameters(make_mixture(2, 3), np.zeros(3))
    small, large = (rounding(parameters, np.full(3, extent), "full") for extent in (1e3, 1e6))
    assert large == pytest.approx(1e6 * small, rel=0.1)
    with np.errstate(over="ignore"):
        assert not rounding(parameters, np.full(3, 1e200), "full") <= 1e300
