"""Drawing cells as they would be measured: noise first, then selection, until enough were seen."""

import numpy as np
import pytest
from scipy import stats

from cohortgmm.errors import CohortgmmError, DataError
from cohortgmm.mixture.density import sampling as observe
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background


def normal(d=1, covariance_type="full", amp=None):
    """Two components a unit apart, maybe beside a background."""
    covariances = np.tile([1.0, 0.5], (2, d))[:, :d]
    if covariance_type == "full":
        covariances = covariances[:, :, None] * np.eye(d) + 0.2 * (1 - np.eye(d))
    model = GaussianMixture(np.array([0.7, 0.3]), np.arange(2.0)[:, None] * np.ones(d), covariances)
    return model if amp is None else model.with_background(Background(np.full(d, -5.0), np.full(d, 5.0), amp))


def above(c):
    return lambda x: (x[:, 0] > c).astype(float)


def constantly(p):
    return lambda x: np.full(len(x), p)


def slope(x):
    return np.clip(0.5 + 0.25 * x[:, 0], 0.0, 1.0)


@pytest.fixture
def small_batches(tune):
    """So few cells at a time that some hundred take many batches."""
    tune(fewest_draws=4)
    tune(most_draws=16)


# ---- how many ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 1000, 5000])
@pytest.mark.parametrize("completeness", [None, above(1.0), constantly(0.03), slope])
@pytest.mark.parametrize("noise", [None, np.array([0.4])])
def test_exactly_as_many_cells_are_seen_as_asked_for(n, completeness, noise):
    sample = normal().sample_observed(n, 0, noise=noise, completeness=completeness)
    assert sample.x.shape == (n, 1)
    assert sample.components.shape == (n,)
    assert np.isfinite(sample.x).all()
    if completeness is None:
        assert sample.n_drawn == n
    else:
        assert sample.n_drawn >= n
        assert completeness(sample.x).min() > 0


@pytest.mark.parametrize("n", [1, 20])
@pytest.mark.parametrize("batches", ["usual", "small"])
def test_the_number_drawn_is_that_of_independent_trials(tune, n, batches):
    """Until the n-th success: a negative binomial distribution."""
    if batches == "small":
        tune(fewest_draws=3)
        tune(most_draws=8)
    model, p = normal(), 0.3
    drawn = np.array([model.sample_observed(n, seed, completeness=constantly(p)).n_drawn for seed in range(400)])
    mean, variance = stats.nbinom(n, p).stats()
    # Four standard errors of 400 samples.
    assert drawn.mean() - n == pytest.approx(mean, abs=4 * np.sqrt(variance / 400))
    values = np.arange(n, drawn.max() + 1)
    gap = [np.mean(drawn <= v) - stats.nbinom(n, p).cdf(v - n) for v in values]
    # Kolmogorov's statistic exceeds 1.63 / √400 once in a hundred samples.
    assert np.abs(gap).max() < 1.63 / 20


@pytest.mark.parametrize("inverted", [False, True])
def test_no_cells_are_asked_for(inverted):
    noise = np.array([0.1, 0.2])
    sample = normal(2).sample_observed(0, 0, noise=noise, completeness=above(0.0), inverted=inverted)
    assert sample.x.shape == (0, 2)
    assert sample.components.shape == (0,)
    assert sample.n_drawn == 0
    assert np.array_equal(sample.noise, noise)
    assert normal(2).sample_observed(0, 0).noise is None


def test_many_cells_are_drawn_in_batches_that_fit(monkeypatch, tune):
    sizes = []
    draw = observe.sample
    monkeypatch.setattr(observe, "sample", lambda self, n, rng: sizes.append(n) or draw(self, n, rng))
    tune(most_draws=2000)
    sample = normal().sample_observed(10_000, 0, completeness=constantly(0.5))
    assert max(sizes) <= 2000
    # No more than one batch is drawn for nothing.
    assert sum(sizes) - sample.n_drawn < 2000


# ---- which ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("amp", [None, 0.3])
def test_seen_and_unseen_cells_are_what_was_drawn(amp):
    """The inverted sample of the same seed is the complement, in the order of the draws."""
    model = normal(2, amp=amp)
    options = {"completeness": slope, "noise": lambda x: 0.1 + x**2}
    seen, unseen = (model.sample_observed(200, 7, inverted=inverted, **options) for inverted in (False, True))
    assert seen.n_drawn == unseen.n_drawn
    assert len(seen.x) == 200
    assert len(unseen.x) == seen.n_drawn - 200
    assert not set(seen.x[:, 0]) & set(unseen.x[:, 0])
    everyone = model.sample_observed(seen.n_drawn, 7, noise=options["noise"])
    assert everyone.n_drawn == seen.n_drawn
    assert set(slope(seen.x) > 0) == {True}
    assert set(slope(unseen.x) < 1) == {True}


def test_the_complement_of_everyone_is_nobody():
    for completeness in (None, constantly(1.0)):
        sample = normal(2).sample_observed(50, 0, completeness=completeness, inverted=True, noise=np.ones((2, 2)))
        assert sample.x.shape == (0, 2)
        assert sample.components.shape == (0,)
        assert sample.n_drawn == 50


@pytest.mark.parametrize("inverted", [False, True])
def test_cells_are_distributed_as_the_density_times_the_completeness(inverted):
    model = normal()
    sample = model.sample_observed(4000, 1, completeness=slope, inverted=inverted)
    grid = np.linspace(-9, 9, 4001)
    density = np.exp(model.log_prob(grid[:, None])) * (1 - slope(grid[:, None]) if inverted else slope(grid[:, None]))
    cumulative = np.cumsum(density) / density.sum()
    # A p-value of 1e-3 is rarer than any of these seeds.
    assert stats.kstest(sample.x[:, 0], lambda t: np.interp(t, grid, cumulative)).pvalue > 1e-3
    share = 1 - density.sum() * (grid[1] - grid[0]) if inverted else density.sum() * (grid[1] - grid[0])
    expected = 4000 / share
    assert sample.n_drawn == pytest.approx(expected, abs=4 * np.sqrt(4000 * (1 - share)) / share)


def test_selection_is_of_the_measured_cell():
    """Seen through large noise, cells on the wrong side of the edge are chosen, and none below it in what is seen."""
    model = GaussianMixture(np.ones(1), np.zeros((1, 1)), np.full((1, 1, 1), 1e-12))
    sample = model.sample_observed(2000, 0, noise=np.array([4.0]), completeness=above(1.0))
    assert sample.x.min() > 1.0
    cut = stats.truncnorm(0.5, np.inf, scale=2.0)
    assert sample.x.mean() == pytest.approx(cut.mean(), abs=4 * cut.std() / np.sqrt(2000))
    p = stats.norm.sf(0.5)
    assert sample.n_drawn == pytest.approx(2000 / p, abs=4 * np.sqrt(2000 * (1 - p)) / p)


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
@pytest.mark.parametrize("amp", [None, 0.25])
def test_moments_are_those_of_the_mixture_and_its_noise(covariance_type, amp):
    model, noise, n = normal(2, covariance_type, amp), np.array([[0.5, 0.3], [0.3, 0.8]]), 40_000
    sample = model.sample_observed(n, 2, noise=noise)
    shares = np.append(model.weights, amp or 0.0)
    means = np.vstack([model.means, np.zeros((1, 2))])
    box = np.eye(2) * 100 / 12
    covariances = np.concatenate([model.full_covariances, box[None]])
    mean = shares @ means
    second = np.einsum("k,kij->ij", shares, covariances + means[:, :, None] * means[:, None, :])
    covariance = second - np.outer(mean, mean) + noise
    # Four standard errors of means, and of variances about 3 of a kurtosis of 3.
    np.testing.assert_allclose(sample.x.mean(axis=0), mean, atol=4 * np.sqrt(covariance.max() / n))
    np.testing.assert_allclose(np.cov(sample.x.T), covariance, atol=4 * covariance.max() * np.sqrt(2 / n))
    np.testing.assert_allclose(
        [np.mean(sample.components == k) for k in (0, 1, -1)], shares, atol=4 * np.sqrt(0.25 / n)
    )


def test_components_and_the_background_are_told_apart():
    background = Background([20.0, 20.0], [21.0, 22.0], 0.4)
    model = GaussianMixture(
        np.array([0.3, 0.3]), np.array([[0.0, 0.0], [-20.0, 0.0]]), np.full((2, 2), 0.01), background
    )
    sample = model.sample_observed(500, 0, completeness=constantly(0.4))
    assert set(sample.components.tolist()) == {-1, 0, 1}
    inside = ((sample.x >= background.lower) & (sample.x <= background.upper)).all(axis=1)
    assert np.array_equal(sample.components == -1, inside)
    for k in (0, 1):
        assert np.abs(sample.x[sample.components == k] - model.means[k]).max() < 1
    only = GaussianMixture(model.weights / 2, model.means, model.covariances, background.with_amp(0.7))
    seen = only.sample_observed(300, 0, completeness=above(10.0))
    assert (seen.components == -1).all()
    assert seen.n_drawn == pytest.approx(300 / 0.7, abs=4 * np.sqrt(300 * 0.3) / 0.7)


# ---- noise ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "noise", [np.array([0.5, 2.0]), np.array([[0.5, 0.3], [0.3, 2.0]]), [0.5, 2.0], np.array([1, 2])]
)
@pytest.mark.parametrize("completeness", [None, constantly(0.3)])
def test_noise_that_all_share_is_given_back_as_it_is(noise, completeness):
    sample = normal(2).sample_observed(1500, 0, noise=noise, completeness=completeness)
    assert np.array_equal(sample.noise, np.asarray(noise, dtype=float))
    assert sample.noise.dtype == np.float64


def variances_by_place(x):
    return np.column_stack([0.01 * (1 + x[:, 0] ** 2), np.full(len(x), 1e-4)])


def covariances_by_place(x):
    return variances_by_place(x)[:, :, None] * np.array([[1.0, 0.0], [0.0, 1.0]])


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("noise", [variances_by_place, covariances_by_place])
@pytest.mark.parametrize("inverted", [False, True])
def test_every_cell_comes_with_its_own_noise(monkeypatch, noise, inverted):
    """By the places before the noise, which the sample does not give away: they are caught as they are drawn."""
    places = []
    draw = observe.sample

    def caught(self, n, rng):
        x, components = draw(self, n, rng)
        places.append(x.copy())
        return x, components

    monkeypatch.setattr(observe, "sample", caught)
    model = normal(2)
    sample = model.sample_observed(300, 3, noise=noise, completeness=slope, inverted=inverted)
    assert sample.noise.shape[0] == len(sample.x)
    places = np.concatenate(places)
    # The second feature is blurred by 0.01 only, the cells being some 0.01 apart: the nearest ten in it, of which that
    # with the same noise is the one.
    expected = noise(places).reshape(len(places), -1)
    own = sample.noise.reshape(len(sample.x), -1)
    match = np.abs(expected[None, :, 0] - own[:, None, 0]).argmin(axis=1)
    assert np.array_equal(expected[match], own)
    assert len(set(match.tolist())) == len(sample.x)
    residual = (sample.x - places[match]) / np.sqrt(variances_by_place(places[match]))
    # Standard normal numbers, but for what the selection prefers.
    assert np.abs(residual).max() < 5
    assert residual[:, 1].std() == pytest.approx(1, abs=4 / np.sqrt(2 * len(residual)))


def test_one_noise_for_all_from_a_function_belongs_to_all():
    sample = normal(2).sample_observed(3000, 0, noise=lambda x: np.array([0.1, 0.2]), completeness=constantly(0.2))
    assert np.array_equal(np.broadcast_to(sample.noise, (3000, 2)), np.tile([0.1, 0.2], (3000, 1)))


def test_functions_get_arrays_of_their_own():
    def greedy(function):
        def spoil(x):
            values = function(x)
            x[:] = np.nan
            return values

        return spoil

    model = normal(2)
    expected = model.sample_observed(100, 0, noise=variances_by_place, completeness=slope)
    sample = model.sample_observed(100, 0, noise=greedy(variances_by_place), completeness=greedy(slope))
    assert np.array_equal(sample.x, expected.x)
    assert np.array_equal(sample.noise, expected.noise)


def test_noise_of_zero_leaves_cells_where_they_are():
    model = GaussianMixture(np.ones(1), np.array([[1.0, 2.0]]), np.full((1, 2), 1e-20))
    sample = model.sample_observed(100, 0, noise=np.zeros((2, 2)))
    np.testing.assert_allclose(sample.x, np.tile([1.0, 2.0], (100, 1)), atol=1e-8)
    assert model.sample_observed(100, 0).noise is None


# ---- seeds ---------------------------------------------------------------------------------------------------------


def test_the_same_seed_draws_the_same_bits():
    options = {"noise": variances_by_place, "completeness": slope}
    model = normal(2, amp=0.2)
    left, right, generator, other = (
        model.sample_observed(500, seed, **options) for seed in (4, 4, np.random.default_rng(4), 5)
    )
    for again in (right, generator):
        for name in ("x", "noise", "components"):
            assert np.array_equal(getattr(left, name), getattr(again, name))
        assert left.n_drawn == again.n_drawn
    assert not np.array_equal(left.x, other.x)
    rng = np.random.default_rng(0)
    first, second = (model.sample_observed(50, rng, **options).x for _ in range(2))
    assert not np.array_equal(first, second)
    assert not np.array_equal(model.sample_observed(5).x, model.sample_observed(5).x)


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [-1, -1000, 2.5, "3", None])
def test_a_bad_number_of_cells_is_one_clear_error(n):
    with pytest.raises(CohortgmmError):
        normal().sample_observed(n, 0, completeness=slope)


@pytest.mark.parametrize("n", [1, 3000])
@pytest.mark.parametrize("inverted", [False, True])
def test_a_selection_that_nobody_passes_is_an_error(tune, n, inverted):
    tune(hopeless_draws=20_000)
    with pytest.raises(DataError, match=r"none of 2\d{4} cells drawn from the mixture passes the selection"):
        normal().sample_observed(n, 0, completeness=above(100.0), inverted=inverted)


def test_a_selection_that_hardly_anybody_passes_is_none(tune):
    tune(hopeless_draws=2000)
    sample = normal().sample_observed(3, 0, completeness=constantly(2e-3))
    assert len(sample.x) == 3
    assert sample.n_drawn > 300


@pytest.mark.parametrize(
    ("completeness", "message"),
    [
        (0.5, "must be a callable"),
        (constantly(1.5), r"must be within \[0, 1\]"),
        (constantly(np.nan), "returned nan"),
        (lambda x: np.ones((len(x), 1)), "returned shape"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
        (lambda x: "often", "not numbers"),
    ],
)
def test_a_bad_completeness_is_one_clear_error(completeness, message):
    with pytest.raises(DataError, match=message):
        normal().sample_observed(10, 0, completeness=completeness)


def fails(x):
    raise KeyError("no such place")


@pytest.mark.parametrize(
    "noise",
    [
        np.ones(3),
        np.ones((10, 2)),
        np.array([1.0, -1.0]),
        np.array([1.0, np.inf]),
        np.diag([1.0, -1.0]),
        lambda x: np.ones((len(x), 3)),
        lambda x: np.ones((5, 2)),
        lambda x: np.full(x.shape, np.nan),
        fails,
        lambda x: "much",
        "much",
    ],
)
def test_bad_noise_is_one_clear_error(noise):
    with pytest.raises(CohortgmmError, match="noise"):
        normal(2).sample_observed(10, 0, noise=noise)
