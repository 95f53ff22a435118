"""Fits of cells that were only partly observed: maximum likelihood, recovery, and what changes no bit."""

import numpy as np
import pytest
from cut_cells import (
    COVARIANCE_TYPES,
    MANY,
    SHARE_ERROR,
    above,
    constantly,
    everywhere,
    seen_of,
    selection_of,
    slope,
    truncated,
    within,
)
from scipy import optimize, stats

from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background

FIT_ERROR = 2e-3


@pytest.fixture
def few_nodes(tune):
    """Fits that need not be accurate to more than a hundredth."""
    tune(most_nodes=1 << 12)


@pytest.fixture
def many_nodes(tune):
    """Fits that are compared with closed forms."""
    tune(fewest_nodes=MANY)


def minimum(negative_log_likelihood, start=(0.0, 0.0)):
    """Mean and standard deviation, from the minimum over mean and logarithm of the standard deviation."""
    found = optimize.minimize(
        negative_log_likelihood, start, method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12, "maxiter": 1000}
    )
    assert found.success
    return found.x[0], np.exp(found.x[1]), -found.fun


# ---- fits ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("many_nodes")
def test_a_normal_cut_off_on_one_side_is_fitted_at_its_maximum_likelihood():
    function, rng = above(-0.5), np.random.default_rng(1)
    x = seen_of(rng.normal(size=(1500, 1)), function)
    mean, scale, log_likelihood = minimum(
        lambda p: -(stats.norm.logpdf(x, p[0], np.exp(p[1])) - stats.norm.logsf(-0.5, p[0], np.exp(p[1]))).mean()
    )
    assert abs(x.mean() - mean) > 0.4  # what a fit without the cut would find
    fit = fit_mixture(x, 1, completeness=function, tol=1e-12)
    assert fit.converged
    assert fit.model.means[0, 0] == pytest.approx(mean, abs=FIT_ERROR)
    assert np.sqrt(fit.model.covariances[0, 0, 0]) == pytest.approx(scale, abs=FIT_ERROR)
    assert fit.log_likelihood == pytest.approx(log_likelihood, abs=SHARE_ERROR[MANY])
    seen = stats.norm.sf(-0.5, mean, scale)
    assert fit.completeness == pytest.approx(seen, abs=FIT_ERROR)
    assert fit.n_unobserved == pytest.approx(len(x) * (1 - seen) / seen, rel=4 * FIT_ERROR)


@pytest.mark.usefixtures("many_nodes")
@pytest.mark.parametrize("noise", [1.0, "own"])
def test_a_normal_behind_noise_cut_off_on_one_side_is_fitted_at_its_maximum_likelihood(noise):
    """With noise of their own, the cells' share Z is a mean over the noise that the cells, seen and unseen, may have."""
    c, rng = -0.5, np.random.default_rng(3)
    everyone = rng.normal(size=(4000, 1))
    if noise == "own":
        variances = rng.choice([0.25, 2.0], size=(4000, 1))
        noise_at = None
    else:
        variances = np.full((4000, 1), noise)
    x = everyone + np.sqrt(variances) * rng.normal(size=(4000, 1))
    chosen = x[:, 0] > c
    x, variances = x[chosen], variances[chosen]
    if noise == "own":
        given_noise, share_of = variances, {v: np.mean(variances == v) for v in (0.25, 2.0)}
    else:
        given_noise, noise_at, share_of = np.array([noise]), None, {noise: 1.0}

    def negative(p):
        scale = np.sqrt(np.exp(2 * p[1]) + variances)
        seen = sum(share * stats.norm.sf(c, p[0], np.sqrt(np.exp(2 * p[1]) + v)) for v, share in share_of.items())
        return -(stats.norm.logpdf(x, p[0], scale) - np.log(seen)).mean()

    mean, scale, log_likelihood = minimum(negative)
    fit = fit_mixture(x, 1, completeness=above(c), noise=given_noise, noise_at=noise_at, tol=1e-11)
    # Noise that is drawn at random has a standard error of 5e-4 in the unseen share of a third, with 2^17 draws.
    error = 1 if noise == "own" else 0.2
    assert fit.log_likelihood == pytest.approx(log_likelihood, abs=3e-3 * error)
    assert fit.model.means[0, 0] == pytest.approx(mean, abs=2e-2 * error)
    assert np.sqrt(fit.model.covariances[0, 0, 0]) == pytest.approx(scale, abs=2e-2 * error)


@pytest.mark.usefixtures("many_nodes")
def test_independent_features_in_a_box_are_fitted_one_by_one():
    lower, upper = np.array([-0.7, -1.0]), np.array([1.2, 1.5])
    function = within(lower, upper)
    x = seen_of(np.random.default_rng(0).normal(size=(3000, 2)), function)
    fit = fit_mixture(x, 1, completeness=function, covariance_type="diag", tol=1e-12, n_init=1)
    seen = 1.0
    for d in range(2):

        def negative(p, d=d):
            inside = np.diff(stats.norm.cdf([lower[d], upper[d]], p[0], np.exp(p[1])))
            return -(stats.norm.logpdf(x[:, d], p[0], np.exp(p[1])) - np.log(inside)).mean()

        mean, scale, _ = minimum(negative)
        seen *= float(np.diff(stats.norm.cdf([lower[d], upper[d]], mean, scale))[0])
        assert fit.model.means[0, d] == pytest.approx(mean, abs=FIT_ERROR)
        assert np.sqrt(fit.model.covariances[0, d]) == pytest.approx(scale, abs=FIT_ERROR)
    assert fit.completeness == pytest.approx(seen, abs=FIT_ERROR)


@pytest.mark.usefixtures("many_nodes")
def test_no_neighbour_of_a_correlated_normal_in_a_box_is_more_likely():
    lower, upper = np.array([-1.0, -1.0]), np.array([1.5, 1.2])
    function, rng = within(lower, upper), np.random.default_rng(2)
    x = seen_of(rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=2500), function)
    fit = fit_mixture(x, 1, completeness=function, tol=1e-12, n_init=1)

    def log_likelihood(mean, covariance):
        normal = stats.multivariate_normal(mean, covariance)
        return normal.logpdf(x).mean() - np.log(normal.cdf(upper, lower_limit=lower))

    mean, covariance = fit.model.means[0], fit.model.covariances[0]
    here = log_likelihood(mean, covariance)
    assert fit.log_likelihood == pytest.approx(here, abs=5e-4)
    for _ in range(40):
        root = np.eye(2) + 0.05 * rng.normal(size=(2, 2))
        there = log_likelihood(mean + 0.05 * rng.normal(size=2), root @ covariance @ root.T)
        assert there <= here + 1e-5


@pytest.mark.usefixtures("many_nodes")
def test_a_slope_is_fitted_at_its_maximum_likelihood():
    x = seen_of(np.random.default_rng(5).normal(size=(2500, 1)), slope)

    def negative(p):
        scale = np.exp(p[1])
        # ∫ (1 − t) p(t) dt from 0 to 1, by parts of the normal distribution.
        low, high = (np.array([0.0, 1.0]) - p[0]) / scale
        ramp = (1 - p[0]) * (stats.norm.cdf(high) - stats.norm.cdf(low)) + scale * (
            stats.norm.pdf(high) - stats.norm.pdf(low)
        )
        seen = stats.norm.cdf(0.0, p[0], scale) + ramp
        return -(stats.norm.logpdf(x, p[0], scale) - np.log(seen)).mean()

    mean, scale, log_likelihood = minimum(negative)
    fit = fit_mixture(x, 1, completeness=slope, tol=1e-12)
    assert fit.model.means[0, 0] == pytest.approx(mean, abs=1e-4)
    assert np.sqrt(fit.model.covariances[0, 0, 0]) == pytest.approx(scale, abs=1e-4)
    assert fit.log_likelihood == pytest.approx(log_likelihood, abs=1e-6)


@pytest.mark.usefixtures("many_nodes")
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_fit_is_as_likely_as_one_that_starts_at_the_truth(covariance_type):
    truth = GaussianMixture(
        np.array([0.6, 0.4]),
        np.array([[0.0, 0.0], [4.0, 1.0]]),
        np.array([[1.0, 0.5], [0.7, 2.0]]) if covariance_type == "diag" else np.array([np.eye(2)] * 2),
    )
    function = above(-0.5)
    x = truth.sample_observed(1000, 3, completeness=function).x
    options = {"covariance_type": covariance_type, "completeness": function}
    fit = fit_mixture(x, 2, **options)
    reference = fit_mixture(x, 2, initial=truth, **options)
    assert fit.log_likelihood >= reference.log_likelihood - 1e-3
    # On the same nodes, more of them, and other ones.
    on_nodes = [
        truncated(x, selection_of(function, seed=123), f.model, MANY << 1)(f.model).log_likelihood / len(x)
        for f in (fit, reference)
    ]
    assert on_nodes[0] >= on_nodes[1] - 1e-3
    assert fit.log_likelihood == pytest.approx(on_nodes[0], abs=1e-4)


@pytest.mark.usefixtures("many_nodes")
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_the_number_of_unobserved_cells_is_near_the_true_one(covariance_type):
    covariances = np.array([[1.0, 1.5], [0.5, 1.0]])
    covariances = covariances if covariance_type == "diag" else covariances[:, :, None] * np.eye(2)
    truth = GaussianMixture(np.array([0.7, 0.3]), np.array([[0.0, 0.0], [5.0, 2.0]]), covariances)
    function = above(-0.3)
    sample = truth.sample_observed(4000, 5, completeness=function)
    fit = fit_mixture(sample.x, 2, covariance_type=covariance_type, completeness=function, n_init=2)
    true = sample.n_drawn - 4000
    assert true > 1000
    # Counting alone has a standard deviation of √(n U) / (1 − U), here 3 %; what the cells tell of the mean and width
    # of the component that is cut off adds about 4 %.
    assert fit.n_unobserved == pytest.approx(true, rel=0.15)
    assert fit.completeness == pytest.approx(4000 / sample.n_drawn, rel=0.04)
    # The number is that of the model.
    scale = np.sqrt(fit.model.full_covariances[:, 0, 0])
    share = fit.model.weights @ stats.norm.cdf(-0.3, fit.model.means[:, 0], scale)
    assert fit.n_unobserved == pytest.approx(4000 * share / (1 - share), rel=1e-3)


def test_a_truncated_mixture_with_noise_and_background_is_found_again():
    truth = GaussianMixture(
        np.array([0.5, 0.3]),
        np.array([[0.0, 0.0], [4.0, 3.0]]),
        np.array([[[1.0, 0.3], [0.3, 0.5]], [[0.5, 0.0], [0.0, 1.5]]]),
        Background([-6.0, -6.0], [9.0, 9.0], 0.2),
    )
    noise, function = np.array([0.2, 0.4]), above(-0.5)
    sample = truth.sample_observed(5000, 1, noise=noise, completeness=function)
    fit = fit_mixture(
        sample.x, 2, completeness=function, noise=noise, background=truth.background.with_amp(0.1), n_init=3
    )
    order = np.argsort(fit.model.means[:, 0])
    # Some four standard errors of 5,000 cells, half of a component's being cut off.
    np.testing.assert_allclose(fit.model.means[order], truth.means, atol=0.2)
    np.testing.assert_allclose(fit.model.covariances[order], truth.covariances, atol=0.25)
    np.testing.assert_allclose(fit.model.weights[order], truth.weights, atol=0.05)
    assert fit.model.background.amp == pytest.approx(0.2, abs=0.04)
    assert fit.n_unobserved == pytest.approx(sample.n_drawn - 5000, rel=0.1)


@pytest.mark.usefixtures("many_nodes")
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("c", [1.0, 0.02])
def test_a_completeness_that_is_the_same_everywhere_tells_nothing(make_cells, covariance_type, c):
    """The fit is that of the cells, and the unseen are as many as the completeness says."""
    x = make_cells(300, 2, n_components=1)
    fit = fit_mixture(x, 1, covariance_type=covariance_type, completeness=constantly(c), tol=1e-12)
    covariance = np.cov(x, rowvar=False, bias=True)
    covariance = np.diag(covariance) if covariance_type == "diag" else covariance
    # What is off in 98 % of unseen cells is enlarged by 50.
    error = {1.0: 1e-9, 0.02: 5e-3}[c]
    np.testing.assert_allclose(fit.model.means[0], x.mean(axis=0), atol=error)
    np.testing.assert_allclose(fit.model.covariances[0], covariance, atol=error)
    matrix = np.diag(covariance) if covariance_type == "diag" else covariance
    plain = stats.multivariate_normal(x.mean(axis=0), matrix)
    # What is seen has the density p Ω / Z = p: the likelihood is given without the constant Ω.
    assert fit.log_likelihood == pytest.approx(plain.logpdf(x).mean() - np.log(c), abs=error)
    assert fit.completeness == pytest.approx(c, rel=1e-3)
    assert fit.n_unobserved == pytest.approx(300 * (1 - c) / c, rel=1e-3, abs=1e-9)


@pytest.mark.usefixtures("few_nodes")
@pytest.mark.parametrize("noise", [None, "own"])
@pytest.mark.parametrize("background", [None, Background([-9.0, -9.0], [9.0, 9.0], 0.1)])
@pytest.mark.parametrize("missing", [False, True])
def test_a_completeness_of_one_everywhere_is_none(start_at_cells, noise, background, missing):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(120, 2)) + 6.0 * rng.integers(2, size=(120, 1))
    start = start_at_cells(x, 2)
    if missing:
        x = np.where(rng.random(x.shape) < 0.2, np.nan, x)
    options = {
        "initial": start,
        "noise": None if noise is None else np.full(x.shape, 0.1),
        "background": background,
        "tol": 1e-9,
    }
    with_it, without = (fit_mixture(x, 2, completeness=f, **options) for f in (everywhere, None))
    # To begin again with new nodes makes another path to the same optimum.
    assert with_it.log_likelihood == pytest.approx(without.log_likelihood, abs=1e-6)
    assert with_it.n_unobserved == 0
    assert with_it.completeness == 1


@pytest.mark.usefixtures("few_nodes")
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_fit_is_the_same_in_every_bit_when_repeated(make_mixture, assert_bit_identical, covariance_type):
    x = seen_of(make_mixture(2, 2, covariance_type, seed=3).sample(300, 0)[0], above(-1.0))
    options = {"covariance_type": covariance_type, "completeness": above(-1.0), "n_init": 2}
    fit = fit_mixture(x, 2, **options)
    assert_bit_identical(fit, fit_mixture(x, 2, **options))
    assert_bit_identical(fit, fit_mixture(x, 2, random_state=np.random.default_rng(0), n_threads=2, **options))
    other = fit_mixture(x, 2, random_state=1, **options)
    # Other nodes, the same likelihood but for their error; the starts agree on data like these.
    assert other.log_likelihood == pytest.approx(fit.log_likelihood, abs=2e-3)
    assert other.log_likelihood != fit.log_likelihood


@pytest.mark.usefixtures("few_nodes")
@pytest.mark.parametrize("noise", [None, np.array([0.1, 0.2])])
def test_the_function_gets_arrays_of_its_own(make_mixture, assert_bit_identical, noise):
    x = seen_of(make_mixture(2, 2).sample(200, 0)[0], above(0.0))
    before = x.copy()

    def greedy(places):
        values = above(0.0)(places)
        places[:] = np.nan
        return values

    options = {"n_init": 1, "noise": noise}
    fit = fit_mixture(x, 2, completeness=greedy, **options)
    assert np.array_equal(x, before)
    assert_bit_identical(fit, fit_mixture(x, 2, completeness=above(0.0), **options))


@pytest.mark.usefixtures("few_nodes")
@pytest.mark.parametrize("dtype", [bool, np.float32, np.int64, list])
def test_completeness_may_be_of_any_numeric_type(dtype, assert_bit_identical):
    x = seen_of(np.random.default_rng(0).normal(size=(200, 1)), above(0.0))

    def typed(places):
        values = above(0.0)(places)
        return values.tolist() if dtype is list else values.astype(dtype)

    fit = fit_mixture(x, 1, completeness=typed, n_init=1)
    assert_bit_identical(fit, fit_mixture(x, 1, completeness=above(0.0), n_init=1))
