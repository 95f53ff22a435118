"""The mixture beside a background, and as it looks in some features and through noise."""

import numpy as np
import pytest
from measured import with_background

from cohortgmm.errors import DataError
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background
from cohortgmm.mixture.observations.noise import Noise

COVARIANCE_TYPES = ["full", "diag"]


def shared(values):
    return Noise(np.asarray(values, dtype=float), True, True)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_the_marginal_of_some_features(make_mixture, covariance_type):
    model = with_background(make_mixture(3, 4, covariance_type), 0.2, amp_max=0.3)
    features = np.array([3, 1])
    marginal = model.marginal(features, None)
    assert marginal.covariance_type == covariance_type
    assert np.array_equal(marginal.weights, model.weights)
    for k in range(3):
        assert np.array_equal(marginal.means[k], [model.means[k, 3], model.means[k, 1]])
        assert np.array_equal(marginal.full_covariances[k], model.full_covariances[k][np.ix_(features, features)])
    assert np.array_equal(marginal.background.lower, model.background.lower[features])
    assert np.array_equal(marginal.background.upper, model.background.upper[features])
    assert (marginal.background.amp, marginal.background.amp_max) == (0.2, 0.3)


@pytest.mark.parametrize("features", [None, np.array([0, 2])])
@pytest.mark.parametrize(
    ("covariance_type", "is_diagonal", "expected"),
    [("full", True, "full"), ("full", False, "full"), ("diag", True, "diag"), ("diag", False, "full")],
)
def test_the_covariances_of_a_convolution_are_sums(make_mixture, covariance_type, is_diagonal, expected, features):
    model = make_mixture(2, 3, covariance_type)
    d = 3 if features is None else 2
    matrix = np.diag([0.5, 2.0, 1.0][:d]) + (0.0 if is_diagonal else 0.1)
    marginal = model.marginal(features, shared(np.diag(matrix) if is_diagonal else matrix))
    assert marginal.covariance_type == expected
    own = model.full_covariances if features is None else model.full_covariances[:, features][:, :, features]
    np.testing.assert_allclose(marginal.full_covariances, own + matrix, rtol=1e-15)
    assert np.array_equal(marginal.means, model.means if features is None else model.means[:, features])
    assert marginal.background is None


def test_the_marginal_of_all_features_without_noise_is_the_same(make_mixture):
    model = with_background(make_mixture(2, 3))
    marginal = model.marginal(None, None)
    for name, array in model.arrays().items():
        assert np.array_equal(marginal.arrays()[name], array)


def test_a_marginal_leaves_the_mixture_as_it_is(make_mixture):
    model = make_mixture(2, 3)
    kept = {name: array.copy() for name, array in model.arrays().items()}
    model.marginal(np.array([0, 1]), shared(np.ones(2)))
    model.marginal(None, shared(np.ones((3, 3))))
    for name, array in model.arrays().items():
        assert np.array_equal(array, kept[name])


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_beside_a_background_the_components_share_what_it_leaves(make_mixture, covariance_type):
    model = make_mixture(3, 2, covariance_type)
    box = Background([0.0, 0.0], [1.0, 1.0], amp=0.3)
    beside = model.with_background(box)
    assert beside.background is box
    assert beside.factors is model.factors
    np.testing.assert_allclose(beside.weights, 0.7 * model.weights, rtol=1e-15)
    other = beside.with_background(Background([0.0, 0.0], [2.0, 2.0], amp=0.1))
    np.testing.assert_allclose(other.weights, 0.9 * model.weights, rtol=1e-15)
    assert other.background.amp == 0.1


def test_the_signal_is_without_the_background(make_mixture):
    model = make_mixture(3, 2)
    signal = with_background(model, 0.4).without_background()
    assert signal.background is None
    np.testing.assert_allclose(signal.weights, model.weights, rtol=1e-14)
    assert signal.weights.sum() == pytest.approx(1, abs=1e-15)
    assert np.array_equal(signal.means, model.means)
    assert np.array_equal(signal.covariances, model.covariances)
    x = 3 * np.random.default_rng(0).normal(size=(30, 2))
    np.testing.assert_allclose(signal.log_prob(x), model.log_prob(x), rtol=1e-12)


def test_the_density_is_that_of_signal_and_background_by_their_shares(make_mixture):
    model = with_background(make_mixture(3, 2), 0.4)
    x = model.means.mean(axis=0) + 3 * np.random.default_rng(0).normal(size=(200, 2))
    inside = ((x >= model.background.lower) & (x <= model.background.upper)).all(axis=1)
    assert 20 < inside.sum() < 180
    volume = np.prod(model.background.upper - model.background.lower)
    density = 0.6 * np.exp(model.without_background().log_prob(x)) + 0.4 * inside / volume
    np.testing.assert_allclose(np.exp(model.log_prob(x)), density, rtol=1e-10)
    probability = model.background_probability(x)
    np.testing.assert_allclose(probability, 0.4 * inside / volume / density, atol=1e-12)
    assert probability.min() >= 0
    assert probability.max() <= 1
    np.testing.assert_allclose(model.responsibilities(x).sum(axis=1), 1 - probability, atol=1e-12)


def test_the_background_probability_is_zero_without_a_background(make_mixture):
    model = make_mixture(3, 2)
    assert model.background_probability(np.zeros((4, 2))).tolist() == [0.0] * 4
    with pytest.raises(DataError, match=r"shape \(n, 2\)"):
        model.background_probability(np.zeros((4, 3)))


def test_the_background_probability_is_that_of_the_definition_through_noise(make_mixture):
    model = with_background(make_mixture(2, 1, spread=1.0), 0.3)
    x, noise = np.linspace(-8, 8, 50)[:, None], np.full((50, 1), 0.5)
    noise[::2] = 4.0
    probability = model.background_probability(x, noise)
    centre = 0.5 * (model.background.lower + model.background.upper)
    assert np.abs(x[probability.argmax()] - centre) > 1  # in the wings
    signal = np.exp(model.without_background().log_prob(x, noise))
    whole = np.exp(model.log_prob(x, noise))
    np.testing.assert_allclose(probability, 1 - 0.7 * signal / whole, atol=1e-12)


@pytest.mark.parametrize("adjust_amp", [True, False])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_save_and_load_give_back_the_background(make_mixture, tmp_path, covariance_type, adjust_amp):
    model = with_background(make_mixture(3, 2, covariance_type), 0.25, amp_min=0.01, amp_max=0.7, adjust_amp=adjust_amp)
    model.save(tmp_path / "model.npz")
    loaded = GaussianMixture.load(tmp_path / "model.npz")
    for name, array in model.arrays().items():
        assert np.array_equal(loaded.arrays()[name], array)
    background = loaded.background
    assert (background.amp, background.amp_min, background.amp_max) == (0.25, 0.01, 0.7)
    assert background.adjust_amp is adjust_amp
    x = np.random.default_rng(0).normal(size=(10, 2))
    assert np.array_equal(loaded.log_prob(x), model.log_prob(x))


def test_a_file_without_a_background_gives_none(make_mixture, tmp_path):
    model = make_mixture(3, 2)
    model.save(tmp_path / "model.npz")
    assert set(np.load(tmp_path / "model.npz").files) == {"weights", "means", "covariances"}
    assert GaussianMixture.load(tmp_path / "model.npz").background is None


def test_a_file_with_half_a_background_is_refused(make_mixture, tmp_path):
    arrays = with_background(make_mixture(3, 2)).arrays()
    del arrays["background_lower"]
    np.savez(tmp_path / "model.npz", **arrays)
    with pytest.raises(DataError, match="background_lower"):
        GaussianMixture.load(tmp_path / "model.npz")


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_samples_come_from_background_and_components_by_their_shares(make_mixture, covariance_type):
    model, n = with_background(make_mixture(2, 2, covariance_type), 0.3), 20_000
    x, components = model.sample(n, 0)
    counts = np.array([(components == k).sum() for k in (-1, 0, 1)])
    shares = np.array([0.3, *model.weights])
    assert counts.sum() == n
    assert (np.abs(counts / n - shares) < 5 * np.sqrt(shares * (1 - shares) / n)).all()
    background = x[components == -1]
    assert np.isfinite(model.background.log_density(background)).all()
    centre, width = (getattr(np, name)(background, axis=0) for name in ("mean", "ptp"))
    box = model.background.upper - model.background.lower
    np.testing.assert_allclose(width, box, rtol=0.01)
    np.testing.assert_allclose(
        centre,
        0.5 * (model.background.lower + model.background.upper),
        atol=5 * box.max() / np.sqrt(12 * len(background)),
    )
    for k in range(2):
        own, truth = x[components == k], model.full_covariances[k]
        assert (np.abs(own.mean(axis=0) - model.means[k]) < 5 * np.sqrt(np.diag(truth) / len(own))).all()
        # Var(s_ij) = (σ_ii σ_jj + σ_ij²) / n for a Gaussian.
        spread = np.sqrt((np.outer(np.diag(truth), np.diag(truth)) + truth**2) / len(own))
        assert (np.abs(np.cov(own, rowvar=False) - truth) < 5 * spread).all()


def test_samples_beside_a_background_are_repeatable(make_mixture):
    model = with_background(make_mixture(2, 2), 0.5)
    for left, right in zip(model.sample(50, 3), model.sample(50, 3), strict=True):
        assert np.array_equal(left, right)
    assert (model.sample(50, 3)[1] == -1).any()
    assert (with_background(make_mixture(2, 2), 0.0).sample(50, 3)[1] >= 0).all()


def test_a_background_of_other_features_is_refused(make_mixture):
    model = make_mixture(2, 3)
    with pytest.raises(DataError, match="the background has 2 features, the components have 3"):
        model.with_background(Background([0.0, 0.0], [1.0, 1.0]))


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.3, 0.3]])
def test_weights_and_amplitude_must_sum_to_one(weights):
    arguments = (weights, np.zeros((2, 1)), np.ones((2, 1)))
    expected = f"{sum(weights) + 0.2:.6g}"
    with pytest.raises(DataError, match=f"weights and the background's amplitude must sum to one, got {expected}"):
        GaussianMixture(*arguments, Background([0.0], [1.0], amp=0.2))
    GaussianMixture([0.4, 0.4 + 1e-7], *arguments[1:], Background([0.0], [1.0], amp=0.2))


def test_the_mixture_tells_of_its_background(make_mixture):
    model = make_mixture(2, 3)
    assert repr(model) == "GaussianMixture(n_components=2, n_features=3, full)"
    assert repr(with_background(model, 0.25)) == "GaussianMixture(n_components=2, n_features=3, full, background=0.25)"
