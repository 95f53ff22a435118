"""The uniform background: its density through noise and gaps, and its amplitude in EM."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measured import background_log_density, make_gaps, make_noise, posterior_by_definition
from scipy.stats import norm, uniform

from cohortgmm.errors import ConfigError
from cohortgmm.mixture.em.constraints import Constraints, Frozen
from cohortgmm.mixture.em.mstep import m_step
from cohortgmm.mixture.estep.choose import choose_estep
from cohortgmm.mixture.estep.moments import Moments
from cohortgmm.mixture.observations.background import Background
from cohortgmm.mixture.observations.measurements import Measurements

BOX = Background([-1.0, 2.0], [3.0, 2.5])


def test_it_is_uniform_within_its_box():
    x = np.random.default_rng(0).uniform(-2, 4, size=(500, 2))
    expected = uniform(-1, 4).logpdf(x[:, 0]) + uniform(2, 0.5).logpdf(x[:, 1])
    assert 10 < np.isfinite(expected).sum() < 490
    found = BOX.log_density(x)
    assert np.array_equal(np.isfinite(found), np.isfinite(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_its_edges_belong_to_it():
    corners = np.array([[-1.0, 2.0], [3.0, 2.5], [-1.0, 2.5], [3.0, 2.0]])
    assert (BOX.log_density(corners) == -np.log(4.0) - np.log(0.5)).all()
    outside = np.nextafter(corners, corners + np.array([[-1, 0], [1, 0], [0, 1], [0, -1]]))
    assert (BOX.log_density(outside) == -np.inf).all()
    assert (BOX.log_density(corners, variances=np.zeros(2)) == BOX.log_density(corners)).all()
    assert (BOX.log_density(outside, variances=np.zeros(2)) == -np.inf).all()


@pytest.mark.parametrize("scale", [0.05, 0.5, 5.0])
def test_noise_blurs_its_edges(scale):
    """The convolution of a box with a normal density, in closed form."""
    box = Background([-1.0], [3.0])
    x = np.linspace(-1 - 6 * scale, 3 + 6 * scale, 200)[:, None]
    found = np.exp(box.log_density(x, variances=np.array([scale**2])))
    expected = (norm.cdf((3 - x[:, 0]) / scale) - norm.cdf((-1 - x[:, 0]) / scale)) / 4
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-16)
    # And by drawing the cell behind the noise from the box, on a grid.
    behind = np.linspace(-1, 3, 20_001)
    for place in (-1.0, 0.0, 2.9, 4.0):
        mean = np.trapezoid(norm.pdf(place, behind, scale), behind) / 4
        density = np.exp(box.log_density(np.array([[place]]), variances=np.array([scale**2])))
        assert density[0] == pytest.approx(mean, rel=1e-6)


def test_every_feature_is_blurred_by_its_own_noise():
    rng = np.random.default_rng(0)
    x, variances = rng.uniform([-2, 1], [4, 3.5], size=(50, 2)), rng.uniform(0.2, 4.0, size=(50, 2))
    found = BOX.log_density(x, variances=variances)
    for i in range(50):
        scale = np.sqrt(variances[i])
        shares = norm.cdf((BOX.upper - x[i]) / scale) - norm.cdf((BOX.lower - x[i]) / scale)
        assert found[i] == pytest.approx(np.log(shares / (BOX.upper - BOX.lower)).sum(), rel=1e-9)
    shared = BOX.log_density(x, variances=variances[0])
    assert shared[0] == found[0]
    assert np.array_equal(shared, BOX.log_density(x, variances=np.tile(variances[0], (50, 1))))


def test_noise_of_zero_in_one_feature_leaves_its_edges_sharp():
    x = np.array([[0.0, 2.2], [-1.5, 2.2], [0.0, 2.6]])
    found = BOX.log_density(x, variances=np.array([0.0, 0.04]))
    expected = np.log(norm.cdf([1.5, -0.5]) - norm.cdf([-1.0, -3.0])) - np.log(2.0)
    np.testing.assert_allclose(found, [expected[0], -np.inf, expected[1]], rtol=1e-12)


@pytest.mark.parametrize("sigmas", [5.0, 10.0, 30.0])
@pytest.mark.parametrize("side", [-1, 1])
def test_far_outside_the_density_keeps_its_digits(side, sigmas):
    box = Background([-1.0], [3.0])
    x = np.array([[3.0 + sigmas if side > 0 else -1.0 - sigmas]])
    found = box.log_density(x, variances=np.array([1.0]))[0]
    # The other edge is 4 sigma farther: less than a rounding error from 5 sigma on, but for the first digits.
    expected = np.log(norm.sf(sigmas) - norm.sf(sigmas + 4)) - np.log(4)
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("log_scale", [2, 6, 10, 15])
def test_a_box_that_is_narrow_for_the_noise_keeps_its_digits(log_scale):
    scale = 10.0**log_scale
    x = np.array([[0.3], [0.3 + scale]])
    found = Background([-1.0], [3.0]).log_density(x, variances=np.array([scale**2]))
    # The logarithm of a normal density has a slope of 1 / scale at most there: 4 / scale across the box.
    np.testing.assert_allclose(found, norm.logpdf([0.0, 1.0]) - np.log(scale), rtol=0, atol=max(4 / scale, 1e-9))


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    lower=st.floats(-5, 5),
    width=st.floats(0.1, 10),
    log_scale=st.floats(-3, 1),
    gap=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_is_the_product_of_its_features(lower, width, log_scale, gap, seed):
    rng = np.random.default_rng(seed)
    box = Background([lower, 0.0], [lower + width, 1.0])
    x = np.column_stack([rng.uniform(lower - 2 * width, lower + 3 * width, size=20), rng.uniform(-0.5, 1.5, size=20)])
    x[:: 1 + gap, 1] = np.nan if gap else 0.5
    variances = 10**log_scale * rng.uniform(size=(20, 2))
    found = box.log_density(x, variances=variances)
    for i in range(20):
        there = np.flatnonzero(~np.isnan(x[i]))
        expected = background_log_density(box, x[i], np.diag(variances[i]), there)
        if expected > -600:  # beyond 35 sigma is zero
            assert found[i] == pytest.approx(expected, rel=1e-9, abs=1e-12)
        else:
            assert found[i] < -600


@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 10.0])
def test_its_density_integrates_to_one_in_one_feature(scale):
    box = Background([-1.0], [3.0])
    axis = np.linspace(-1 - 9 * scale - 1, 3 + 9 * scale + 1, 400_002)
    density = np.exp(box.log_density(axis[:, None], variances=np.array([scale**2])))
    # An edge on the grid is off by no more than a step of it.
    assert np.trapezoid(density, axis) == pytest.approx(1.0, abs=1e-4 if scale == 0 else 1e-9)


@pytest.mark.parametrize("variances", [np.array([0.04, 0.09]), np.array([1.0, 0.25])])
def test_its_density_integrates_to_one_in_two_features(variances):
    edges = [
        np.linspace(low - 9 * s, high + 9 * s, 601)
        for low, high, s in zip(BOX.lower, BOX.upper, np.sqrt(variances), strict=True)
    ]
    grid = np.stack(np.meshgrid(*edges, indexing="ij"), axis=-1).reshape(-1, 2)
    density = np.exp(BOX.log_density(grid, variances=variances)).reshape(601, 601)
    # A smooth function that vanishes at its ends: the trapezoidal rule converges faster than any power.
    whole = np.trapezoid(np.trapezoid(density, edges[1], axis=1), edges[0])
    assert whole == pytest.approx(1.0, abs=1e-10)


def test_a_missing_feature_is_integrated_over():
    x = np.array([[0.0, np.nan], [np.nan, 2.1], [np.nan, np.nan], [5.0, np.nan]])
    assert BOX.log_density(x).tolist() == [-np.log(4.0), -np.log(0.5), 0.0, -np.inf]
    blurred = BOX.log_density(x, variances=np.ones(2))
    first = Background([-1.0], [3.0]).log_density(x[:1, :1], variances=np.ones(1))
    np.testing.assert_allclose(blurred[[0, 2]], [first[0], 0.0], rtol=1e-14)
    # By the definition: the integral over the missing feature, by the trapezoidal rule.
    axis = np.linspace(-8, 13, 4001)
    grid = np.column_stack([np.full(4001, 0.5), axis])
    marginal = np.trapezoid(np.exp(BOX.log_density(grid, variances=np.ones(2))), axis)
    found = BOX.log_density(np.array([[0.5, np.nan]]), variances=np.ones(2))[0]
    assert found == pytest.approx(np.log(marginal), abs=1e-9)


def test_some_features_are_those_of_the_box():
    box = Background([-1.0, 2.0, 0.0], [3.0, 2.5, 8.0])
    x = np.random.default_rng(0).uniform(-1, 3, size=(20, 2))
    features, variances = np.array([2, 0]), np.array([0.3, 0.1])
    small = Background([0.0, -1.0], [8.0, 3.0])
    assert np.array_equal(box.log_density(x, features), small.log_density(x))
    assert np.array_equal(box.log_density(x, features, variances), small.log_density(x, variances=variances))


def test_samples_fill_the_box_evenly():
    n = 20_000
    x = BOX.sample(n, np.random.default_rng(0))
    assert x.shape == (n, 2)
    assert np.isfinite(BOX.log_density(x)).all()
    # Five standard errors of the mean and of the variance of a uniform variable.
    width = BOX.upper - BOX.lower
    np.testing.assert_allclose(x.mean(axis=0), (BOX.lower + BOX.upper) / 2, atol=5 * width.max() / np.sqrt(12 * n))
    np.testing.assert_allclose(x.var(axis=0) / width**2, 1 / 12, atol=5 * np.sqrt(1 / 180 / n))
    assert abs(np.corrcoef(x.T)[0, 1]) < 5 / np.sqrt(n)


@pytest.mark.parametrize(
    ("lower", "upper"),
    [([0.0, 0.0], [1.0]), ([[0.0]], [[1.0]]), ([0.0], [[1.0]]), (0.0, [1.0, 2.0])],
)
def test_corners_of_other_shapes_are_refused(lower, upper):
    with pytest.raises(ConfigError, match=r"the background needs lower and upper of shape \(D,\), got \("):
        Background(lower, upper)


@pytest.mark.parametrize(
    ("lower", "upper"),
    [([0, 1], [1, 1]), ([0, 2], [1, 1]), ([0, np.nan], [1, 1]), ([0, -np.inf], [1, 1]), ([0, 0], [1, np.inf])],
)
def test_boxes_without_volume_or_end_are_refused(lower, upper):
    with pytest.raises(
        ConfigError, match=r"^the background's lower must be below its upper, and both finite, in every feature$"
    ):
        Background(lower, upper)


@pytest.mark.parametrize(
    "amps",
    [
        {"amp": -0.1},
        {"amp": 1.1},
        {"amp": np.nan},
        {"amp": 0.1, "amp_min": 0.2},
        {"amp": 0.5, "amp_max": 0.4},
        {"amp": 0.5, "amp_max": 1.4},
        {"amp": 0.5, "amp_min": -0.1},
        {"amp": 0.5, "amp_min": np.nan},
        {"amp": 0.5, "amp_min": 0.6, "amp_max": 0.4},
    ],
)
def test_amplitudes_out_of_their_bounds_are_refused(amps):
    with pytest.raises(ConfigError, match="the background needs 0 <= amp_min <= amp <= amp_max <= 1, got amp_min"):
        Background([0.0], [1.0], **amps)


def test_the_message_names_the_amplitudes():
    with pytest.raises(ConfigError, match=r"got amp_min 0\.2, amp 0\.1, amp_max 1\.0$"):
        Background([0.0], [1.0], amp=0.1, amp_min=0.2)


def test_one_feature_needs_no_list():
    box = Background(0, 2)
    assert (box.n_features, box.lower.tolist(), box.upper.tolist()) == (1, [0.0], [2.0])
    assert box.lower.dtype == np.float64
    assert (box.amp, box.amp_min, box.amp_max, box.adjust_amp) == (0.1, 0.0, 1.0, True)


@pytest.mark.parametrize(("amp", "expected"), [(0.3, 0.3), (0.0, 0.05), (0.7, 0.4), (1.5, 0.4), (-1.0, 0.05)])
def test_another_amplitude_is_brought_within_the_bounds(amp, expected):
    box = Background([0.0], [1.0], 0.1, 0.05, 0.4, False)
    other = box.with_amp(amp)
    assert (other.amp, other.amp_min, other.amp_max, other.adjust_amp) == (expected, 0.05, 0.4, False)
    assert np.array_equal(other.lower, box.lower)
    assert box.amp == 0.1


@pytest.mark.parametrize("adjust_amp", [True, False])
def test_its_arrays_give_it_back(adjust_amp):
    box = Background([-1.0, 2.0], [3.0, 2.5], 0.123, 0.01, 0.9, adjust_amp)
    again = Background.from_arrays(box.arrays())
    assert np.array_equal(again.lower, box.lower)
    assert np.array_equal(again.upper, box.upper)
    assert [again.amp, again.amp_min, again.amp_max] == [0.123, 0.01, 0.9]
    assert again.adjust_amp is adjust_amp
    assert Background.from_arrays({"weights": np.ones(1)}) is None


def beside(model, **options):
    box = Background(model.means.min(axis=0) - 3, model.means.max(axis=0) + 3, **options)
    return model.with_background(box)


def after_m_step(model, x, noise=None):
    cells = Measurements(x, noise, 1, model.background)
    moments = choose_estep(cells, model.n_components, model.covariance_type)(model)
    constraints = Constraints(1e-9, False, Frozen.from_argument(None, model.n_components))
    return m_step(moments, model, constraints)[0]


@pytest.mark.parametrize("kind", ["none", "shared covariance", "own variances"])
@pytest.mark.parametrize("gaps", ["complete", "both"])
@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_the_m_step_shares_the_cells_between_components_and_background(make_mixture, kind, gaps, covariance_type):
    """Amplitude: the mean probability of being background; weights: the mean responsibilities."""
    model = beside(make_mixture(3, 2, covariance_type, spread=1.5), amp=0.3)
    rng = np.random.default_rng(0)
    x = model.sample(120, rng)[0] + rng.normal(size=(120, 2))
    x, noise = make_gaps(gaps, x, rng), make_noise(kind, 120, 2, rng)
    new = after_m_step(model, x, noise)
    truth = posterior_by_definition(model, x, noise)
    resp = truth.responsibilities[truth.n_observed > 0]
    assert new.background.amp == pytest.approx((1 - resp.sum(axis=1)).mean(), rel=1e-11)
    np.testing.assert_allclose(new.weights, resp.mean(axis=0), rtol=1e-11)
    assert new.weights.sum() + new.background.amp == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize(
    ("bounds", "expected"), [({"amp_max": 0.31}, 0.31), ({"amp_min": 0.29}, 0.29), ({"adjust_amp": False}, 0.3)]
)
def test_an_amplitude_at_its_bound_leaves_the_rest_to_the_components(make_mixture, bounds, expected):
    model = beside(make_mixture(3, 2, spread=1.5), amp=0.3, **bounds)
    rng = np.random.default_rng(0)
    # Nearly all cells are background, or nearly none is.
    x = model.background.sample(200, rng) if "amp_max" in bounds else model.without_background().sample(200, rng)[0]
    new = after_m_step(model, x)
    resp = posterior_by_definition(model, x).responsibilities
    assert new.background.amp == expected
    assert abs((1 - resp.sum(axis=1)).mean() - expected) > 0.05
    np.testing.assert_allclose(new.weights, (1 - expected) * resp.sum(axis=0) / resp.sum(), rtol=1e-11)
    assert new.weights.sum() + new.background.amp == pytest.approx(1, abs=1e-14)


def test_an_amplitude_of_zero_stays_there(make_mixture):
    model = beside(make_mixture(2, 2), amp=0.0)
    x = model.sample(100, 0)[0]
    assert after_m_step(model, x).background.amp == 0.0


def test_a_background_that_claims_everything_leaves_the_components_as_they_were(make_mixture):
    model = beside(make_mixture(2, 2), amp=0.5)
    moments = Moments.zeros(2, 2, "full")
    moments.n = 100
    constraints = Constraints(1e-9, False, Frozen.from_argument(None, 2))
    new, _ = m_step(moments, model, constraints)
    assert new.background.amp == 1.0
    assert not new.weights.any()


def test_cells_outside_the_box_are_never_background(make_mixture):
    model = beside(make_mixture(2, 2), amp=0.5)
    x = np.vstack([model.background.upper + 1e-6, model.background.lower - 1e-6, model.means])
    probability = model.background_probability(x)
    assert probability[:2].tolist() == [0.0, 0.0]
    assert (probability[2:] > 0).all()
