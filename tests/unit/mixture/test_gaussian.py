"""Factors, log-densities and the floor under the spectrum."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from cohortgmm.errors import SingularCovarianceError
from cohortgmm.mixture.gaussian import covariance_floor, factorize, floor_covariances, log_gaussian, whiten

# Matrices here have condition numbers below 1e3, so results keep 1e-16 × 1e3 of relative precision and some room.
RTOL = 1e-11


def random_covariances(n_components, n_features, *, smallest=0.5, seed=0):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(n_components, n_features, n_features)))[0]
    values = smallest * (1.0 + np.arange(n_features)) + rng.uniform(0, 0.1, size=(n_components, n_features))
    return (basis * values[:, None, :]) @ basis.transpose(0, 2, 1)


@pytest.mark.parametrize("n_features", [1, 2, 10])
def test_factors_of_full_covariances_rebuild_them_and_their_inverses(n_features):
    covariances = random_covariances(3, n_features)
    factors = factorize(covariances)
    assert not factors.is_diagonal
    np.testing.assert_allclose(factors.lower @ factors.lower.transpose(0, 2, 1), covariances, rtol=RTOL, atol=1e-14)
    inverse = factors.whitener @ factors.whitener.transpose(0, 2, 1)
    np.testing.assert_allclose(inverse, np.linalg.inv(covariances), rtol=RTOL, atol=1e-13)
    np.testing.assert_allclose(2 * factors.half_log_det, np.linalg.slogdet(covariances)[1], rtol=RTOL, atol=1e-13)


def test_factors_of_variances_agree_with_those_of_diagonal_matrices():
    variances = np.random.default_rng(0).uniform(0.1, 5, size=(4, 3))
    diagonal, full = factorize(variances), factorize(variances[:, :, None] * np.eye(3))
    assert diagonal.is_diagonal
    for name in ("lower", "whitener"):
        np.testing.assert_allclose(
            getattr(diagonal, name), np.diagonal(getattr(full, name), axis1=1, axis2=2), rtol=RTOL
        )
    np.testing.assert_allclose(diagonal.half_log_det, full.half_log_det, rtol=RTOL)


@pytest.mark.parametrize(
    "covariances",
    [np.array([[1.0, 0.0]]), np.array([[1.0, -1.0]]), np.array([[1.0, np.nan]]), np.array([[[1.0, 2.0], [2.0, 1.0]]])],
    ids=["zero variance", "negative variance", "nan variance", "indefinite"],
)
def test_factorize_refuses_what_is_not_positive_definite(covariances):
    with pytest.raises(np.linalg.LinAlgError, match="positive"):
        factorize(covariances)


@pytest.mark.parametrize("n_features", [1, 2, 10])
def test_log_gaussian_is_scipys_logpdf(n_features):
    rng = np.random.default_rng(1)
    x, means = 4 * rng.normal(size=(50, n_features)), rng.normal(size=(3, n_features))
    covariances = random_covariances(3, n_features)
    factors = factorize(covariances)
    ours = log_gaussian(whiten(x, means, factors), factors)
    theirs = [multivariate_normal(m, c).logpdf(x) for m, c in zip(means, covariances, strict=True)]
    np.testing.assert_allclose(ours, theirs, rtol=RTOL)


def test_log_gaussian_keeps_its_digits_far_from_the_origin():
    means = np.array([[1e8, -1e8]])
    x = means + np.array([[1.0, 2.0]])  # both exact in doubles, so the answer is that of the shifted problem
    factors = factorize(np.eye(2)[None])
    np.testing.assert_allclose(
        log_gaussian(whiten(x, means, factors), factors), [[-2.5 - np.log(2 * np.pi)]], rtol=1e-15
    )


def test_covariance_floor_is_eps_or_for_robust_one_percent_of_the_mean_variance():
    x = np.random.default_rng(0).normal(size=(100, 3)) * [1, 2, 3]
    assert covariance_floor(x, 1e-4, "guarded") == 1e-4
    assert covariance_floor(x, 1e-4, "strict") == 1e-4
    assert covariance_floor(x, 1e-4, "robust") == pytest.approx(0.01 * x.var(axis=0).mean(), rel=1e-12)
    assert covariance_floor(x, 10.0, "robust") == 10.0


def mixed_covariances(n_features, floor, covariance_type):
    """Three covariances: the first and last clear of the floor, the second with its smallest eigenvalue at −floor/2."""
    covariances = random_covariances(3, n_features, smallest=10 * floor)
    values, vectors = np.linalg.eigh(covariances[1])
    values[0] = -floor / 2
    covariances[1] = (vectors * values) @ vectors.T
    if covariance_type == "full":
        return covariances
    variances = np.diagonal(covariances, axis1=1, axis2=2).copy()
    variances[1, 0] = floor / 3
    return variances


def eigenvalues(covariances):
    return covariances if covariances.ndim == 2 else np.linalg.eigvalsh(covariances)


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
@pytest.mark.parametrize("n_features", [1, 2, 10])
def test_floor_raises_eigenvalues_below_it_and_touches_nothing_else(covariance_type, n_features):
    floor = 1e-2
    covariances = mixed_covariances(n_features, floor, covariance_type)
    result, floored = floor_covariances(covariances, floor, strict=False)
    assert floored.tolist() == [False, True, False]
    assert eigenvalues(result).min() >= floor * (1 - 1e-12)  # rebuilding from the eigenvectors rounds
    assert np.array_equal(result[[0, 2]], covariances[[0, 2]])
    if covariance_type == "full":
        assert np.array_equal(result[1], result[1].T)
        kept = np.sort(np.maximum(np.linalg.eigvalsh(covariances[1]), floor))
        np.testing.assert_allclose(np.linalg.eigvalsh(result[1]), kept, rtol=1e-10)


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_floor_returns_covariances_above_it_as_they_were(covariance_type):
    covariances = random_covariances(3, 4)
    if covariance_type == "diag":
        covariances = np.diagonal(covariances, axis1=1, axis2=2)
    result, floored = floor_covariances(covariances, 1e-4, strict=True)
    assert np.array_equal(result, covariances)
    assert not floored.any()


def test_floor_leaves_its_argument_alone():
    covariances = mixed_covariances(3, 1e-2, "full")
    before = covariances.copy()
    floor_covariances(covariances, 1e-2, strict=False)
    assert np.array_equal(covariances, before)


@pytest.mark.parametrize("smallest", [0.0, 1.0], ids=["singular", "above eps"])
def test_floor_is_at_least_what_double_precision_resolves_of_the_largest_eigenvalue(smallest):
    covariances = np.diag([1e15, smallest])[None]
    result, floored = floor_covariances(covariances, 1e-4, strict=False)
    assert floored.tolist() == [True]
    np.testing.assert_allclose(np.diag(result[0]), [1e15, 100.0], rtol=1e-12)


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0])
def test_clamping_is_the_constrained_maximum_of_the_expected_log_likelihood(covariance_type, scale):
    floor, n_features = 0.05, 4
    scatter = np.diag([0.0, 0.01, 0.3, 2.0])
    if covariance_type == "full":
        basis = np.linalg.qr(np.random.default_rng(0).normal(size=(n_features, n_features)))[0]
        scatter = basis @ scatter @ basis.T

    def expected_log_likelihood(covariance):
        return -0.5 * (np.linalg.slogdet(covariance)[1] + np.trace(np.linalg.solve(covariance, scatter)))

    argument = scatter if covariance_type == "full" else np.diag(scatter)
    best = floor_covariances(argument[None], floor, strict=False)[0][0]
    best = best if covariance_type == "full" else np.diag(best)
    rng = np.random.default_rng(1)
    for _ in range(200):
        step = rng.normal(size=(n_features, n_features))
        step = scale * (step + step.T if covariance_type == "full" else np.diag(np.diag(step)))
        values, vectors = np.linalg.eigh(best + step)
        feasible = (vectors * np.maximum(values, floor)) @ vectors.T
        assert expected_log_likelihood(best) >= expected_log_likelihood(feasible) - 1e-12  # rounding of slogdet


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_strict_names_the_component_and_its_eigenvalue(covariance_type):
    covariances = mixed_covariances(3, 1e-2, covariance_type)
    with pytest.raises(SingularCovarianceError, match=r"component 1 of 3 .*singularity_handling") as caught:
        floor_covariances(covariances, 1e-2, strict=True)
    assert caught.value.component == 1
    assert caught.value.eigenvalue == pytest.approx(eigenvalues(covariances)[1].min(), rel=1e-9)
