"""Factors, whitening and the floor under the spectrum."""

import numpy as np
import pytest

from cohortgmm.errors import SingularCovarianceError
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.numerics.gaussian import covariance_floor, factorize, floor_covariances, whiten
from cohortgmm.mixture.observations.measurements import Measurements

# Matrices here have condition numbers below 1e3, so results keep 1e-16 × 1e3 of relative precision and some room.
RTOL = 1e-11


def random_covariances(n_components, n_features, *, smallest=0.5, seed=0):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(n_components, n_features, n_features)))[0]
    values = smallest * (1.0 + np.arange(n_features)) + rng.uniform(0, 0.1, size=(n_components, n_features))
    return (basis * values[:, None, :]) @ basis.transpose(0, 2, 1)


def assert_factors_of(factors, covariances, rtol=RTOL):
    """Square roots of the covariances and of their inverses, and their determinants."""
    assert factors.is_diagonal == (covariances.ndim == 2)
    if factors.is_diagonal:
        root, inverse = factors.root**2, factors.whitener**2
        expected, log_det = 1 / covariances, np.log(covariances).sum(axis=1)
    else:
        root = factors.root @ factors.root.transpose(0, 2, 1)
        inverse = factors.whitener @ factors.whitener.transpose(0, 2, 1)
        expected, log_det = np.linalg.inv(covariances), np.linalg.slogdet(covariances)[1]
    for k in range(len(covariances)):
        np.testing.assert_allclose(root[k], covariances[k], rtol=rtol, atol=rtol * np.abs(covariances[k]).max())
        np.testing.assert_allclose(inverse[k], expected[k], rtol=rtol, atol=rtol * np.abs(expected[k]).max())
    np.testing.assert_allclose(2 * factors.half_log_det, log_det, rtol=rtol, atol=rtol)


# 24 is inverted at once, larger ones by halves.
@pytest.mark.parametrize("n_features", [1, 2, 10, 24, 25, 60])
def test_factors_of_full_covariances_rebuild_them_and_their_inverses(n_features):
    covariances = random_covariances(3, n_features)
    assert_factors_of(factorize(covariances), covariances)


def test_factors_of_variances_agree_with_those_of_diagonal_matrices():
    variances = np.random.default_rng(0).uniform(0.1, 5, size=(4, 3))
    diagonal, full = factorize(variances), factorize(variances[:, :, None] * np.eye(3))
    assert diagonal.is_diagonal
    for name in ("root", "whitener"):
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


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
@pytest.mark.parametrize("n_features", [1, 2, 10, 30])
def test_whitened_deviations_have_the_mahalanobis_distance_as_their_length(covariance_type, n_features):
    deviation = 4 * np.random.default_rng(1).normal(size=(3, 50, n_features))
    full = random_covariances(3, n_features)
    covariances = full if covariance_type == "full" else np.diagonal(full, axis1=1, axis2=2)
    full = full if covariance_type == "full" else covariances[:, :, None] * np.eye(n_features)
    white = whiten(deviation, factorize(covariances))
    distances = np.einsum("knd,kde,kne->kn", deviation, np.linalg.inv(full), deviation)
    np.testing.assert_allclose((white**2).sum(axis=-1), distances, rtol=RTOL)


def test_densities_keep_their_digits_far_from_the_origin():
    means = np.array([[1e8, -1e8]])
    x = means + np.array([[1.0, 2.0]])  # both exact in doubles, so the answer is that of the shifted problem
    model = GaussianMixture([1.0], means, np.eye(2)[None])
    np.testing.assert_allclose(model.joint_log_prob(x - means[:, None]), [[-2.5 - np.log(2 * np.pi)]], rtol=1e-15)
    np.testing.assert_allclose(model.log_prob(x), [-2.5 - np.log(2 * np.pi)], rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_covariance_floor_is_eps_or_for_robust_one_percent_of_the_mean_variance(dtype):
    x = (np.random.default_rng(0).normal(size=(100, 3)) * [1, 2, 3]).astype(dtype)
    variances = Measurements(x).variances
    assert covariance_floor(variances, 1e-4, "guarded") == 1e-4
    assert covariance_floor(variances, 1e-4, "strict") == 1e-4
    expected = 0.01 * x.astype(np.float64).var(axis=0).mean()
    assert covariance_floor(variances, 1e-4, "robust") == pytest.approx(expected, rel=1e-12)
    assert covariance_floor(variances, 10.0, "robust") == 10.0


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
    result, factors, floored = floor_covariances(covariances, floor, strict=False)
    assert floored.tolist() == [False, True, False]
    assert_factors_of(factors, result, rtol=1e-9)  # condition numbers up to 1e3, and their inverses
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
    result, factors, floored = floor_covariances(covariances, 1e-4, strict=True)
    assert np.array_equal(result, covariances)
    assert_factors_of(factors, covariances)
    assert not floored.any()


def test_floor_leaves_its_argument_alone():
    covariances = mixed_covariances(3, 1e-2, "full")
    before = covariances.copy()
    floor_covariances(covariances, 1e-2, strict=False, suspected=np.array([True, True, False]))
    assert np.array_equal(covariances, before)


@pytest.mark.parametrize("smallest", [0.0, 1.0], ids=["singular", "above eps"])
def test_floor_is_at_least_what_double_precision_resolves_of_the_largest_eigenvalue(smallest):
    covariances = np.diag([1e15, smallest])[None]
    result, factors, floored = floor_covariances(covariances, 1e-4, strict=False)
    assert floored.tolist() == [True]
    assert factors.half_log_det[0] == pytest.approx(0.5 * np.log(1e17), rel=1e-12)
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


SUSPICIONS = {
    "none": [False] * 5,
    "all": [True] * 5,
    "right": [False, True, False, False, True],
    "wrong": [True, False, True, True, False],
    "too many": [True, True, False, False, True],
    "too few": [False, True, False, False, False],
}


def five_covariances(n_features, floor, covariance_type):
    """The second and the last are below the floor, the fourth is only just above it."""
    covariances = random_covariances(5, n_features, smallest=10 * floor)
    values, vectors = np.linalg.eigh(covariances)
    values[1, 0], values[3, 0], values[4] = -floor / 2, 1.001 * floor, 0.0
    covariances = (vectors * values[:, None, :]) @ vectors.transpose(0, 2, 1)
    covariances = 0.5 * (covariances + covariances.transpose(0, 2, 1))
    if covariance_type == "full":
        return covariances
    return values


@pytest.mark.parametrize("name", list(SUSPICIONS))
@pytest.mark.parametrize("covariance_type", ["full", "diag"])
@pytest.mark.parametrize("n_features", [1, 2, 10, 30])
def test_suspicions_right_or_wrong_change_nothing(name, covariance_type, n_features):
    floor = 1e-2
    covariances = five_covariances(n_features, floor, covariance_type)
    expected, _, expected_floored = floor_covariances(covariances, floor, strict=False)
    suspected = np.array(SUSPICIONS[name])
    result, factors, floored = floor_covariances(covariances, floor, strict=False, suspected=suspected)
    assert floored.tolist() == expected_floored.tolist() == [False, True, False, False, True]
    assert np.array_equal(result, expected)
    assert_factors_of(factors, result, rtol=1e-9)  # condition numbers up to 1e3, and their inverses


@pytest.mark.parametrize("name", list(SUSPICIONS))
@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_strict_names_the_same_component_whatever_is_suspected(name, covariance_type):
    covariances = five_covariances(4, 1e-2, covariance_type)
    with pytest.raises(SingularCovarianceError, match="component 1 of 5") as caught:
        floor_covariances(covariances, 1e-2, strict=True, suspected=np.array(SUSPICIONS[name]))
    assert caught.value.eigenvalue == pytest.approx(eigenvalues(covariances)[1].min(), rel=1e-9)


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_strict_lets_unfounded_suspicions_pass(covariance_type):
    covariances = random_covariances(3, 4) if covariance_type == "full" else np.ones((3, 4))
    result, factors, floored = floor_covariances(covariances, 1e-2, strict=True, suspected=np.ones(3, dtype=bool))
    assert np.array_equal(result, covariances)
    assert not floored.any()
    assert_factors_of(factors, covariances)
