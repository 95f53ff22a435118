"""Fits of cells with noise, gaps and a background: closed forms, the likelihood's path, and the truth regained."""

import numpy as np
import pytest
from measured import GAPS, make_gaps, make_noise, posterior_by_definition, with_background

from cohortgmm.errors import ConfigError, DataError
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background

COVARIANCE_TYPES = ["full", "diag"]

# A floor far below every eigenvalue here, and an EM that goes on as long as it gains anything.
CLOSELY = {"eps": 1e-10, "tol": 1e-13, "max_iter": 5000, "n_init": 1}


def falls_by(fit):
    return np.max(-np.diff(fit.history) / np.maximum(1.0, np.abs(fit.history[1:])), initial=0.0)


def cells_of_one_component(n, d, seed=0):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(d, d))
    return rng.normal(size=(n, d)) @ root.T + 3 * rng.normal(size=d) + 2 * rng.normal(size=(n, d))


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("is_diagonal", [True, False])
def test_shared_noise_of_one_component_is_subtracted_from_the_covariance(covariance_type, is_diagonal):
    """The likelihood depends on Σ + S alone, whose best value is the covariance of the sample."""
    x = cells_of_one_component(300, 3)
    noise = np.diag([0.5, 1.5, 2.5])
    if not is_diagonal and covariance_type == "full":
        noise = noise + 0.4
    fit = fit_mixture(x, 1, covariance_type=covariance_type, noise=np.diag(noise) if is_diagonal else noise, **CLOSELY)
    sample = np.cov(x, rowvar=False, bias=True)
    assert np.linalg.eigvalsh(sample - noise).min() > 0.1
    expected = sample - noise
    # The likelihood is flat at its maximum: a gain of 1e-13 per cell leaves √1e-13 of a standard deviation.
    np.testing.assert_allclose(fit.model.means[0], x.mean(axis=0), atol=1e-6)
    if covariance_type == "full":
        np.testing.assert_allclose(fit.model.covariances[0], expected, atol=1e-5)
        whole = -0.5 * (np.linalg.slogdet(2 * np.pi * sample)[1] + 3)
        assert fit.log_likelihood == pytest.approx(whole, abs=1e-11)
    else:
        np.testing.assert_allclose(fit.model.covariances[0], np.diag(expected), atol=1e-5)
    assert fit.converged
    assert falls_by(fit) <= 1e-12


def test_round_noise_that_is_larger_than_the_spread_leaves_the_floor():
    """With noise σ², the best eigenvalues are those of the sample less σ², but no less than the floor."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)) * np.sqrt([9.0, 4.0, 1.0])
    fit = fit_mixture(x, 1, noise=np.full(3, 2.0), **CLOSELY | {"eps": 0.01})
    values, axes = np.linalg.eigh(np.cov(x, rowvar=False, bias=True))
    expected = (axes * np.maximum(values - 2.0, 0.01)) @ axes.T
    assert values[0] < 2
    np.testing.assert_allclose(fit.model.covariances[0], expected, atol=1e-4)
    assert fit.floored.tolist() == [True]


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("shape", [(2,), (2, 2), (200, 2), (200, 2, 2)])
def test_noise_of_zero_gives_the_fit_of_plain_cells(make_mixture, shape, covariance_type):
    model = make_mixture(2, 2, covariance_type)
    x = model.sample(200, 0)[0]
    settings = {"covariance_type": covariance_type, "initial": model, "tol": 1e-12, "max_iter": 300, "eps": 1e-8}
    plain, noisy_fit = fit_mixture(x, 2, **settings), fit_mixture(x, 2, noise=np.zeros(shape), **settings)
    # Those with noise are extrapolated; both have come to the same maximum.
    assert noisy_fit.log_likelihood == pytest.approx(plain.log_likelihood, abs=1e-10)
    np.testing.assert_allclose(noisy_fit.model.means, plain.model.means, atol=1e-4)
    np.testing.assert_allclose(noisy_fit.model.covariances, plain.model.covariances, atol=1e-4)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_gaps_in_independent_features_leave_the_moments_of_what_is_there(covariance_type):
    rng = np.random.default_rng(0)
    x = 5 + 2 * rng.normal(size=(200, 1))
    x[rng.random(200) < 0.3] = np.nan
    there = x[~np.isnan(x)]
    fit = fit_mixture(x, 1, covariance_type=covariance_type, **CLOSELY)
    assert fit.model.means[0, 0] == pytest.approx(there.mean(), abs=1e-8)
    assert fit.model.covariances.ravel()[0] == pytest.approx(there.var(), abs=1e-8)
    assert fit.n_empty == 200 - len(there)
    if covariance_type == "diag":
        x = np.column_stack([x, 1 + rng.normal(size=200)])
        x[rng.random(200) < 0.3, 1] = np.nan
        fit = fit_mixture(x, 1, covariance_type="diag", **CLOSELY)
        np.testing.assert_allclose(fit.model.means[0], np.nanmean(x, axis=0), atol=1e-6)
        np.testing.assert_allclose(fit.model.covariances[0], np.nanvar(x, axis=0), atol=1e-6)
        assert fit.n_empty == np.isnan(x).all(axis=1).sum() > 0


def test_a_feature_that_only_some_cells_have_is_estimated_by_regression():
    """Monotone gaps in a bivariate normal have a closed form (Anderson 1957)."""
    rng = np.random.default_rng(0)
    first = 3 + 2 * rng.normal(size=300)
    second = 1 + 0.8 * first + 0.5 * rng.normal(size=300)
    second[first > 4] = np.nan  # not at random: the mean of what is there is off
    fit = fit_mixture(np.column_stack([first, second]), 1, **CLOSELY)
    there = ~np.isnan(second)
    covariance = np.cov(first[there], second[there], bias=True)
    slope = covariance[0, 1] / covariance[0, 0]
    residual = covariance[1, 1] - slope * covariance[0, 1]
    mean = second[there].mean() + slope * (first.mean() - first[there].mean())
    assert mean - second[there].mean() > 0.3
    np.testing.assert_allclose(fit.model.means[0], [first.mean(), mean], atol=1e-6)
    expected = first.var() * np.array([[1, slope], [slope, slope**2]]) + [[0, 0], [0, residual]]
    np.testing.assert_allclose(fit.model.covariances[0], expected, atol=1e-5)


@pytest.mark.usefixtures("stops_early")
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_an_infinite_variance_gives_the_fit_of_a_gap(make_mixture, assert_same_fit, covariance_type):
    rng = np.random.default_rng(0)
    x = make_mixture(2, 3, covariance_type).sample(300, rng)[0]
    missing = rng.random((300, 3)) < 0.2
    noise = rng.uniform(0.1, 0.5, size=(300, 3))
    settings = {"covariance_type": covariance_type, "n_init": 2, "max_iter": 40}
    by_nan = fit_mixture(np.where(missing, np.nan, x), 2, noise=noise, **settings)
    by_infinity = fit_mixture(np.where(missing, -999.0, x), 2, noise=np.where(missing, np.inf, noise), **settings)
    assert_same_fit(by_nan, by_infinity)
    assert by_nan.n_empty == by_infinity.n_empty == missing.all(axis=1).sum()


@pytest.fixture
def assert_same_fit():
    """Check that two fits are the same in every bit, background included."""

    def check(left, right):
        for name, array in left.model.arrays().items():
            assert np.array_equal(array, right.model.arrays()[name]), name
        assert np.array_equal(left.history, right.history)
        assert (left.n_iter, left.converged, left.n_empty) == (right.n_iter, right.converged, right.n_empty)

    return check


@pytest.mark.usefixtures("stops_early")
@pytest.mark.parametrize("has_background", [False, True])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("gaps", GAPS)
@pytest.mark.parametrize("kind", ["none", "shared covariance", "few variances", "own variances", "own covariances"])
def test_the_likelihood_never_falls(tune, make_mixture, kind, gaps, covariance_type, has_background):
    tune(smallest_group=6)
    tune(cells_per_noise=20)
    rng = np.random.default_rng(0)
    model = make_mixture(2, 3, covariance_type, spread=2.0)
    x = make_gaps(gaps, model.sample(100, rng)[0] + rng.normal(size=(100, 3)), rng)
    noise = make_noise(kind, 100, 3, rng)
    background = with_background(model).background if has_background else None
    fit = fit_mixture(
        x,
        2,
        covariance_type=covariance_type,
        noise=noise,
        background=background,
        n_init=1,
        max_iter=25,
        tol=0,
        eps=1e-3,
    )
    assert falls_by(fit) <= 1e-10
    assert fit.history[-1] > fit.history[0]
    assert fit.n_empty == np.isnan(x).all(axis=1).sum()
    # The likelihood is that of the cells that have a feature, under the mixture that was returned.
    log_prob = fit.model.log_prob(x, noise)
    assert fit.log_likelihood == pytest.approx(log_prob.sum() / (100 - fit.n_empty), rel=1e-11)
    assert np.linalg.eigvalsh(fit.model.full_covariances).min() >= 1e-3 * (1 - 1e-9)
    amp = 0.0 if fit.model.background is None else fit.model.background.amp
    assert (fit.model.background is not None) == has_background
    assert fit.model.weights.sum() + amp == pytest.approx(1, abs=1e-12)


@pytest.mark.usefixtures("stops_early")
@pytest.mark.parametrize(
    ("kind", "gaps", "cutoff"),
    [
        ("none", "both", None),
        ("shared covariance", "complete", None),
        ("few variances", "few patterns", None),
        ("own variances", "complete", None),
        ("own covariances", "any pattern", None),
        ("own covariances", "complete", 3.0),
        ("none", "complete", 3.0),
    ],
)
@pytest.mark.parametrize("has_background", [False, True])
def test_the_number_of_threads_changes_no_bit(
    monkeypatch, tune, make_mixture, assert_same_fit, kind, gaps, cutoff, has_background
):
    tune(tile_values=1)
    tune(quadratic_values=1)
    tune(noisy_rows=(40, 40))
    tune(density_rows=40)
    rng = np.random.default_rng(0)
    model = make_mixture(3, 3, spread=2.0)
    x = make_gaps(gaps, model.sample(600, rng)[0] + 0.5 * rng.normal(size=(600, 3)), rng)
    noise = make_noise(kind, 600, 3, rng, 0.25)
    background = with_background(model).background if has_background else None
    alone, threaded = (
        fit_mixture(
            x, 3, noise=noise, background=background, n_init=1, max_iter=3, tol=0, cutoff=cutoff, n_threads=n_threads
        )
        for n_threads in (1, 3)
    )
    assert_same_fit(alone, threaded)


def errors_in_sigma(model, truth, n, noise):
    """Deviations of means and weights from the truth in units of their standard errors, components in their order."""
    order = [int(((model.means - mean) ** 2).sum(axis=1).argmin()) for mean in truth.means]
    assert sorted(order) == list(range(truth.n_components))
    spread = np.sqrt((np.einsum("kdd->kd", truth.full_covariances) + noise) / (n * truth.weights[:, None]))
    weights = np.sqrt(truth.weights * (1 - truth.weights) / n)
    return order, (model.means[order] - truth.means) / spread, (model.weights[order] - truth.weights) / weights


TRUTH = GaussianMixture(
    [0.5, 0.3, 0.2],
    [[0.0, 0.0], [6.0, 0.0], [0.0, 7.0]],
    [[[1.0, 0.6], [0.6, 1.0]], [[0.5, 0.0], [0.0, 2.0]], [[2.0, -0.8], [-0.8, 0.8]]],
)


@pytest.mark.parametrize("case", ["noise", "gaps", "background", "everything"])
def test_the_truth_is_regained_within_its_statistical_error(case):
    rng = np.random.default_rng(7)
    n = 4000
    truth, background = TRUTH, None
    if case in ("background", "everything"):
        background = Background([-6.0, -6.0], [12.0, 12.0], amp=0.1)
        truth = TRUTH.with_background(Background(background.lower, background.upper, amp=0.2))
    x = truth.sample(n, rng)[0]
    noise, level = None, 0.0
    if case in ("noise", "everything"):
        noise = rng.uniform(0.1, 2.0, size=(n, 2))
        x = x + np.sqrt(noise) * rng.normal(size=(n, 2))
        level = 1.0
    if case in ("gaps", "everything"):
        x[rng.random(n) < 0.2, 0] = np.nan
        x[rng.random(n) < 0.2, 1] = np.nan
    fit = fit_mixture(x, 3, noise=noise, background=background, n_init=3, random_state=1)
    assert fit.converged
    order, means, weights = errors_in_sigma(fit.model, truth, n, level)
    # Five standard errors; gaps and overlap leave less than half of what complete cells would tell.
    slack = 1.0 if case == "noise" else 2.0
    assert np.abs(means).max() < 5 * slack
    assert np.abs(weights).max() < 5 * slack
    for k, place in enumerate(order):
        total = np.diag(truth.covariances[k]) + level
        spread = np.sqrt((np.outer(total, total) + truth.covariances[k] ** 2) / (n * truth.weights[k]))
        assert (np.abs(fit.model.covariances[place] - truth.covariances[k]) < 5 * slack * spread).all()
    assert fit.n_empty == np.isnan(x).all(axis=1).sum()
    if background is not None:
        assert abs(fit.model.background.amp - 0.2) < 5 * slack * np.sqrt(0.2 * 0.8 / n)
    # No mixture that is the truth can be better than the fit, which was made for these cells; it is hardly better.
    gain = fit.log_likelihood - truth.log_prob(x, noise).sum() / (n - fit.n_empty)
    assert 0 < gain < 30 / n


def test_disregarding_the_noise_would_not_regain_it():
    rng = np.random.default_rng(7)
    noise = rng.uniform(0.1, 4.0, size=(2000, 2))
    x = TRUTH.sample(2000, rng)[0] + np.sqrt(noise) * rng.normal(size=(2000, 2))
    plain = fit_mixture(x, 3, initial=TRUTH, tol=1e-6).model
    deconvolved = fit_mixture(x, 3, noise=noise, initial=TRUTH).model
    assert np.abs(plain.covariances - TRUTH.covariances).max() > 1.5
    assert np.abs(deconvolved.covariances - TRUTH.covariances).max() < 0.8


@pytest.mark.parametrize("adjust_amp", [True, False])
def test_the_amplitude_is_fitted_within_its_bounds_or_stays(adjust_amp):
    rng = np.random.default_rng(0)
    x = np.vstack([rng.normal(size=(400, 2)), rng.uniform(-10, 10, size=(100, 2))])
    lower, upper = [-10.0, -10.0], [10.0, 10.0]
    free = fit_mixture(x, 1, background=Background(lower, upper, 0.05), n_init=1).model.background
    # The box holds some cells of the component's too: the share is known to its standard error.
    assert free.amp == pytest.approx(0.2, abs=5 * np.sqrt(0.16 / 500))
    for bounds, expected in (({"amp_max": 0.1}, 0.1), ({"amp_min": 0.4, "amp": 0.5}, 0.4), ({"amp": 0.3}, None)):
        given = Background(lower, upper, **{"amp": 0.05} | bounds, adjust_amp=adjust_amp)
        fit = fit_mixture(x, 1, background=given, n_init=1)
        if not adjust_amp:
            expected = given.amp
        elif expected is None:
            expected = pytest.approx(free.amp, abs=1e-3)
        assert fit.model.background.amp == expected
        assert fit.model.weights.sum() + fit.model.background.amp == pytest.approx(1, abs=1e-12)
        assert falls_by(fit) <= 1e-10


@pytest.mark.usefixtures("stops_early")
def test_a_start_with_a_background_keeps_it_and_may_be_given_another():
    rng = np.random.default_rng(0)
    x = np.vstack([TRUTH.sample(300, rng)[0], rng.uniform(-6, 12, size=(60, 2))])
    box = Background([-6.0, -6.0], [12.0, 12.0], amp=0.1, adjust_amp=False)
    start = TRUTH.with_background(box)
    kept = fit_mixture(x, 3, initial=start, max_iter=3).model
    assert kept.background.amp == 0.1
    assert np.array_equal(kept.background.lower, box.lower)
    other = fit_mixture(
        x, 3, initial=start, background=Background(box.lower, box.upper, amp=0.3, adjust_amp=False), max_iter=3
    )
    assert other.model.background.amp == 0.3
    assert other.model.weights.sum() == pytest.approx(0.7, abs=1e-12)


@pytest.mark.usefixtures("stops_early")
@pytest.mark.parametrize(("n", "share"), [(100, 0.3), (300, 0.9)])
def test_cells_without_features_take_no_part_and_are_counted(n, share):
    rng = np.random.default_rng(0)
    x = TRUTH.sample(n, rng)[0]
    x[rng.random(n) < share] = np.nan
    some = ~np.isnan(x).all(axis=1)
    settings = {"initial": TRUTH, "max_iter": 10, "tol": 0}
    whole = fit_mixture(x, 3, noise=np.full(2, 0.1), **settings)
    part = fit_mixture(x[some], 3, noise=np.full(2, 0.1), **settings)
    assert (whole.n_empty, part.n_empty) == (n - some.sum(), 0)
    np.testing.assert_allclose(whole.history, part.history, rtol=1e-12)
    np.testing.assert_allclose(whole.model.means, part.model.means, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("stops_early")
def test_a_cutoff_leaves_a_lower_bound_of_the_likelihood():
    rng = np.random.default_rng(0)
    noise = rng.uniform(0.1, 1.0, size=(500, 2))
    x = TRUTH.sample(500, rng)[0] + np.sqrt(noise) * rng.normal(size=(500, 2))
    settings = {"noise": noise, "initial": TRUTH, "max_iter": 1}
    exact = fit_mixture(x, 3, **settings).history[0]
    bounds = [fit_mixture(x, 3, cutoff=cutoff, **settings).history[0] for cutoff in (1.0, 2.0, 3.0, 4.0)]
    assert bounds == sorted(bounds)
    assert bounds[0] < exact - 1e-3
    assert exact - 1e-4 < bounds[-1] <= exact
    assert fit_mixture(x, 3, cutoff=30.0, **settings).history[0] == pytest.approx(exact, rel=1e-13)


def test_cells_may_be_outside_the_box_of_a_known_mixture():
    """A box that is given anew and holds no cell is a mistake; of a known mixture, there is none of it here."""
    known = TRUTH.with_background(Background([90.0, 90.0], [99.0, 99.0], 0.3))
    x = TRUTH.sample(300, np.random.default_rng(0))[0]
    kept = {"mean": "all", "covar": "all"}
    fit = fit_mixture(x, 3, initial=known, frozen=kept)
    assert fit.model.background.amp == 0
    np.testing.assert_allclose(
        fit.model.weights, fit_mixture(x, 3, initial=TRUTH, frozen=kept).model.weights, atol=1e-3
    )
    with pytest.raises(DataError, match="the background's box holds none of the cells"):
        fit_mixture(x, 3, initial=TRUTH, background=known.background, frozen=kept)


def test_a_feature_that_nobody_has_is_named():
    x = np.random.default_rng(0).normal(size=(50, 3))
    x[:, 1] = np.nan
    with pytest.raises(DataError, match="feature 1 is missing in all cells: leave it out"):
        fit_mixture(x, 1)
    with pytest.raises(DataError, match="feature 1 is missing in all cells: leave it out"):
        fit_mixture(np.nan_to_num(x), 1, noise=np.array([0.1, np.inf, 0.1]))
    with pytest.raises(DataError, match="feature 1 is missing in all cells: leave it out"):
        fit_mixture(np.nan_to_num(x), 1, noise=np.tile([0.1, np.inf, 0.1], (50, 1)))


def test_a_feature_that_few_of_many_cells_have_can_be_fitted(tune):
    tune(start_cells=50)
    x = np.random.default_rng(0).normal(size=(2000, 2))
    x[3:, 1] = np.nan
    fit = fit_mixture(x, 1, n_init=1, max_iter=3)
    assert np.isfinite(fit.log_likelihood)


@pytest.mark.usefixtures("stops_early")
@pytest.mark.parametrize("is_shared", [True, False])
def test_noise_of_rank_one_in_float32_can_be_fitted(is_shared):
    """Of a matrix whose largest eigenvalue is 1e6, rounding leaves some of −0.1, beyond the mixture's variances."""
    rng = np.random.default_rng(0)
    direction = np.tile(rng.normal(size=3), (400, 1)) if is_shared else rng.normal(size=(400, 3))
    noise = (1e6 * direction[:, :, None] * direction[:, None, :]).astype(np.float32)
    x = 0.03 * rng.normal(size=(400, 3)) + 1e3 * direction * rng.normal(size=(400, 1))
    start = GaussianMixture([1.0], np.zeros((1, 3)), 1e-3 * np.eye(3)[None])
    fit = fit_mixture(x, 1, noise=noise[0] if is_shared else noise, initial=start, max_iter=3)
    assert np.isfinite(fit.history).all()
    assert falls_by(fit) <= 1e-10


def test_a_background_that_does_not_fit_the_cells_is_refused():
    x = np.random.default_rng(0).normal(size=(50, 2))
    with pytest.raises(ConfigError, match="the background has 1 features, the cells have 2"):
        fit_mixture(x, 1, background=Background([0.0], [1.0]))
    with pytest.raises(DataError, match="the background's box holds none of the cells: check its lower and upper"):
        fit_mixture(x, 1, background=Background([50.0, 50.0], [60.0, 60.0]))


def test_too_few_cells_with_a_feature_are_refused():
    x = np.full((50, 2), np.nan)
    x[:2] = 1.0
    with pytest.raises(DataError, match="2 cells are too few for 3 components"):
        fit_mixture(x, 3)


def test_the_noise_is_checked_before_anything_else_is_done():
    x = np.random.default_rng(0).normal(size=(50, 2))
    noise = np.ones((50, 2))
    noise[17, 1] = np.nan
    with pytest.raises(DataError, match="the noise of cell 17 is no covariance"):
        fit_mixture(x, 1, noise=noise)


@pytest.mark.usefixtures("stops_early")
def test_a_fit_with_a_background_and_gaps_is_written_and_read(tmp_path):
    rng = np.random.default_rng(0)
    x = np.vstack([TRUTH.sample(200, rng)[0], rng.uniform(-6, 12, size=(40, 2))])
    x[::7, 1], x[::50] = np.nan, np.nan
    fit = fit_mixture(x, 3, background=Background([-6, -6], [12, 12]), n_init=1, max_iter=5)
    fit.save(tmp_path / "fit.npz")
    again = type(fit).load(tmp_path / "fit.npz")
    for name, array in fit.model.arrays().items():
        assert np.array_equal(again.model.arrays()[name], array)
    assert again.n_empty == fit.n_empty == 5
    assert again.model.background.amp == fit.model.background.amp
    assert np.array_equal(GaussianMixture.load(tmp_path / "fit.npz").means, fit.model.means)


@pytest.mark.usefixtures("stops_early")
@pytest.mark.parametrize("kind", ["own", "few"])
@pytest.mark.parametrize("junk", ["infinite", "nan"])
@pytest.mark.parametrize("shape", ["variances", "covariances"])
@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_missing_features_may_be_told_by_the_noise_or_have_none(kind, junk, shape, covariance_type):
    """Three ways to say the same: NaN in the cells with noise or without, an infinite variance in the noise."""
    rng = np.random.default_rng(3)
    n, d = 240, 2
    x = TRUTH.sample(n, rng)[0]
    root = rng.normal(size=(n, d, d)) if kind == "own" else rng.normal(size=(2, d, d))[np.arange(n) % 2]
    noise = 0.3 * (root @ root.transpose(0, 2, 1) + 0.1 * np.eye(d))
    missing = (
        (rng.random((n, d)) < 0.3) if kind == "own" else np.column_stack([np.zeros(n, bool), np.arange(n) % 4 > 1])
    )
    if shape == "variances":
        noise = np.diagonal(noise, axis1=1, axis2=2).copy()
    gaps, spoiled = np.where(missing, np.nan, x), noise.copy()
    value = np.inf if junk == "infinite" else np.nan
    spoiled[missing] = value
    if shape == "covariances":
        spoiled[missing] = np.nan
        spoiled.transpose(0, 2, 1)[missing] = np.nan
        cells, features = np.nonzero(missing)
        spoiled[cells, features, features] = value
    model = (
        TRUTH
        if covariance_type == "full"
        else GaussianMixture(TRUTH.weights, TRUTH.means, np.diagonal(TRUTH.covariances, axis1=1, axis2=2))
    )
    expected = posterior_by_definition(model, gaps, noise)
    seen = x if junk == "infinite" else gaps  # NaN says nothing by itself
    np.testing.assert_allclose(model.log_prob(seen, spoiled), expected.log_prob, rtol=1e-9)
    options = {"initial": model, "covariance_type": covariance_type, "max_iter": 3, "tol": 0}
    fit, other = fit_mixture(seen, 3, noise=spoiled, **options), fit_mixture(gaps, 3, noise=noise, **options)
    assert fit.n_empty == other.n_empty
    np.testing.assert_allclose(fit.history, other.history, rtol=1e-9)
    np.testing.assert_allclose(fit.model.means, other.model.means, atol=1e-7)
    np.testing.assert_allclose(fit.model.covariances, other.model.covariances, atol=1e-7)


@pytest.mark.parametrize("n", [20, 200])
def test_one_covariance_for_all_may_be_infinite_in_a_feature(n):
    x = np.random.default_rng(0).normal(size=(n, 3))
    noise = np.array([[0.5, np.nan, 0.2], [np.nan, np.inf, np.nan], [0.2, np.nan, 0.4]])
    known = GaussianMixture([1.0], np.zeros((1, 3)), np.eye(3)[None] + 0.2)
    within = GaussianMixture([1.0], np.zeros((1, 2)), np.eye(2)[None] + 0.2)
    left = noise[::2, ::2]
    np.testing.assert_allclose(known.log_prob(x, noise), within.log_prob(x[:, ::2], left), rtol=1e-12)


def test_a_box_is_blurred_by_the_noise_of_the_features_there_are():
    model = TRUTH.with_background(Background([-9.0, -9.0], [9.0, 9.0], 0.4))
    x = np.array([[8.9, 1.0], [0.0, 9.3], [-9.2, np.nan]])
    noise = np.tile(np.diag([0.3, 0.2]), (3, 1, 1))
    noise[1, 0, 0], noise[2, 1] = np.inf, np.nan
    noise[2, 0, 1] = np.nan
    gaps = x.copy()
    gaps[1, 0] = np.nan
    expected = posterior_by_definition(model, gaps, np.tile(np.diag([0.3, 0.2]), (3, 1, 1)))
    np.testing.assert_allclose(model.log_prob(x, noise), expected.log_prob, rtol=1e-10)
