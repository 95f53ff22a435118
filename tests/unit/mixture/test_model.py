"""The mixture: densities, responsibilities, samples, file."""

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from cohortgmm.errors import DataError
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.numerics.gaussian import floor_covariances

COVARIANCE_TYPES = ["full", "diag"]


def scipy_joint(model, x):
    """log(weight × density) by scipy, (n, K)."""
    return np.column_stack(
        [
            np.log(w) + multivariate_normal(m, c).logpdf(x)
            for w, m, c in zip(model.weights, model.means, model.full_covariances, strict=True)
        ]
    )


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("n_features", [1, 2, 10])
def test_densities_and_responsibilities_are_scipys(make_mixture, covariance_type, n_features):
    model = make_mixture(4, n_features, covariance_type)
    x = 5 * np.random.default_rng(0).normal(size=(300, n_features))
    joint = scipy_joint(model, x)
    total = logsumexp(joint, axis=1)
    # Condition numbers below 1e3 cost three of the sixteen digits; log-densities reach hundreds of nats.
    np.testing.assert_allclose(model.joint_log_prob(x - model.means[:, None, :]).T, joint, rtol=1e-11)
    np.testing.assert_allclose(model.log_prob(x), total, rtol=1e-11)
    np.testing.assert_allclose(model.responsibilities(x), np.exp(joint - total[:, None]), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_responsibilities_sum_to_one_even_where_every_density_underflows(make_mixture, covariance_type):
    model = make_mixture(5, 3, covariance_type)
    x = np.vstack([np.random.default_rng(0).normal(size=(100, 3)), np.full((1, 3), 1e6)])
    resp = model.responsibilities(x)
    assert resp.min() >= 0
    np.testing.assert_allclose(resp.sum(axis=1), 1.0, rtol=1e-9)  # log-densities of 1e12 nats keep few decimals


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("n_features", [1, 2])
def test_density_integrates_to_one(make_mixture, covariance_type, n_features):
    model = make_mixture(3, n_features, covariance_type, spread=1.0)
    # The trapezoidal rule converges faster than any power for a density that has vanished at the ends of the grid.
    axis = np.linspace(-20, 20, 601)
    grid = np.stack(np.meshgrid(*[axis] * n_features), axis=-1).reshape(-1, n_features)
    mass = np.exp(model.log_prob(grid)).sum() * (axis[1] - axis[0]) ** n_features
    assert mass == pytest.approx(1.0, abs=1e-10)


def test_components_of_weight_zero_take_no_part(make_mixture):
    model = make_mixture(2, 2)
    padded = GaussianMixture(
        np.append(model.weights, 0.0), np.vstack([model.means, [[0, 0]]]), np.vstack([model.covariances, [np.eye(2)]])
    )
    x = np.random.default_rng(0).normal(size=(50, 2))
    np.testing.assert_allclose(padded.log_prob(x), model.log_prob(x), rtol=1e-14)
    assert (padded.responsibilities(x)[:, 2] == 0).all()


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_sample_has_the_moments_of_the_mixture(make_mixture, covariance_type):
    model, n = make_mixture(3, 2, covariance_type), 40_000
    x, components = model.sample(n, 0)
    assert x.shape == (n, 2)
    five_sigma = 5 * np.sqrt(model.weights * (1 - model.weights) / n)
    assert (np.abs(np.bincount(components, minlength=3) / n - model.weights) < five_sigma).all()
    for k in range(3):
        own, truth = x[components == k], model.full_covariances[k]
        assert (np.abs(own.mean(axis=0) - model.means[k]) < 5 * np.sqrt(np.diag(truth) / len(own))).all()
        # Var(s_ij) = (σ_ii σ_jj + σ_ij²) / n for a Gaussian.
        spread = np.sqrt((np.outer(np.diag(truth), np.diag(truth)) + truth**2) / len(own))
        assert (np.abs(np.cov(own, rowvar=False) - truth) < 5 * spread).all()


def test_sample_is_repeatable_and_takes_a_generator(make_mixture):
    model = make_mixture(3, 2)
    first, again, by_generator = model.sample(20, 7), model.sample(20, 7), model.sample(20, np.random.default_rng(7))
    for a, b, c in zip(first, again, by_generator, strict=True):
        assert np.array_equal(a, b)
        assert np.array_equal(a, c)
    assert not np.array_equal(model.sample(20, 8)[0], first[0])


def test_peaks_are_the_joint_log_densities_at_the_means(make_mixture):
    model = make_mixture(4, 3)
    at_means = np.diagonal(scipy_joint(model, model.means))
    np.testing.assert_allclose(model.log_peaks, at_means, rtol=1e-12)
    np.testing.assert_allclose(model.joint_log_prob(np.zeros((4, 1, 3)))[:, 0], at_means, rtol=1e-12)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_densities_and_samples_do_not_depend_on_which_square_roots_are_given(make_mixture, covariance_type):
    model = make_mixture(3, 4, covariance_type)
    factors = floor_covariances(model.covariances, 1e-6, strict=False, suspected=np.array([True, False, True]))[1]
    other = GaussianMixture.from_factors(model.weights, model.means, model.covariances, factors)
    assert other.factors is factors
    x = 5 * np.random.default_rng(0).normal(size=(100, 4))
    np.testing.assert_allclose(other.log_prob(x), model.log_prob(x), rtol=1e-11)
    sample, components = other.sample(20_000, 0)
    for k in range(3):
        own = sample[components == k]
        # Five standard errors of a variance of up to 3.5 from 4,000 cells.
        np.testing.assert_allclose(np.cov(own, rowvar=False), model.full_covariances[k], atol=5 * 3.5 / 44)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("n_features", [1, 3])
def test_save_and_load_give_back_every_bit(make_mixture, tmp_path, covariance_type, n_features):
    model = make_mixture(3, n_features, covariance_type)
    model.save(tmp_path / "model.npz")
    loaded = GaussianMixture.load(tmp_path / "model.npz")
    assert loaded.covariance_type == covariance_type
    for name, array in model.arrays().items():
        assert np.array_equal(getattr(loaded, name), array)
    x = np.random.default_rng(0).normal(size=(10, n_features))
    assert np.array_equal(loaded.log_prob(x), model.log_prob(x))


def test_save_writes_to_open_files(make_mixture, tmp_path):
    model, path = make_mixture(2, 2), tmp_path / "model.npz"
    with path.open("wb") as file:
        model.save(file)
    assert np.array_equal(GaussianMixture.load(path).means, model.means)


def write_text(path):
    path.write_text("id\tk\n")


def write_nothing(path):
    path.touch()


def write_torn_archive(path):
    np.savez(path, weights=np.ones(1), means=np.zeros((1, 2)), covariances=np.ones((1, 2)))
    path.write_bytes(path.read_bytes()[:200])


def write_single_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def write_other_arrays(path):
    np.savez(path, weights=np.ones(1), skipped=True)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_text, "holds no mixture: not a readable .npz"),
        (write_nothing, "holds no mixture: not a readable .npz"),
        (write_torn_archive, "holds no mixture: not a readable .npz"),
        (write_single_array, "holds no mixture: not a readable .npz"),
        (write_other_arrays, "holds no mixture: covariances, means missing"),
    ],
)
def test_load_refuses_what_is_not_a_mixture(tmp_path, write, message):
    path = tmp_path / "other.npz"
    write(path)
    with pytest.raises(DataError, match=message):
        GaussianMixture.load(path)


def test_load_of_a_missing_file_says_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        GaussianMixture.load(tmp_path / "nowhere.npz")


@pytest.mark.parametrize(
    ("weights", "means", "covariances"),
    [
        (np.ones(2), np.zeros((1, 2)), np.ones((1, 2))),
        (np.ones(1), np.zeros(2), np.ones((1, 2))),
        (np.ones(1), np.zeros((1, 2)), np.ones((1, 3))),
        (np.ones(1), np.zeros((1, 2)), np.ones((1, 2, 3))),
        (np.ones((1, 1)), np.zeros((1, 2)), np.ones((1, 2))),
    ],
)
def test_shapes_that_do_not_fit_together_are_refused(weights, means, covariances):
    with pytest.raises(DataError, match="a mixture needs weights"):
        GaussianMixture(weights, means, covariances)


@pytest.mark.parametrize("name", ["weights", "means", "covariances"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(name, value):
    arrays = {"weights": np.ones(1), "means": np.zeros((1, 2)), "covariances": np.ones((1, 2))}
    arrays[name].flat[0] = value
    with pytest.raises(DataError, match=f"{name} of the mixture are not all finite"):
        GaussianMixture(**arrays)


def test_negative_weights_are_refused():
    with pytest.raises(DataError, match="negative"):
        GaussianMixture([-0.5, 1.5], np.zeros((2, 1)), np.ones((2, 1)))


@pytest.mark.parametrize("method", ["log_prob", "responsibilities"])
@pytest.mark.parametrize("shape", [(3,), (3, 4), (1, 3, 2)])
def test_cells_of_the_wrong_shape_are_refused(make_mixture, method, shape):
    with pytest.raises(DataError, match=r"shape \(n, 2\)"):
        getattr(make_mixture(2, 2), method)(np.zeros(shape))


@pytest.mark.parametrize("method", ["log_prob", "responsibilities"])
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_cells_with_infinite_values_are_refused(make_mixture, method, value):
    x = np.zeros((5, 2))
    x[3, 1], x[2, 0] = value, np.nan  # a missing feature is none of them
    with pytest.raises(DataError, match=r"^1 infinite values, the first in cell 3"):
        getattr(make_mixture(2, 2), method)(x)


def test_no_cells_have_no_densities(make_mixture):
    model = make_mixture(3, 2)
    assert model.log_prob(np.empty((0, 2))).shape == (0,)
    assert model.responsibilities(np.empty((0, 2))).shape == (0, 3)


def test_diagonal_mixture_equals_the_full_one_of_the_same_matrices(make_mixture):
    diagonal = make_mixture(3, 4, "diag")
    full = GaussianMixture(diagonal.weights, diagonal.means, diagonal.full_covariances)
    assert (diagonal.covariance_type, full.covariance_type) == ("diag", "full")
    x = np.random.default_rng(0).normal(size=(20, 4))
    np.testing.assert_allclose(diagonal.log_prob(x), full.log_prob(x), rtol=1e-13)
    np.testing.assert_allclose(diagonal.condition_numbers, full.condition_numbers, rtol=1e-12)
    np.testing.assert_allclose(full.condition_numbers, np.linalg.cond(full.covariances), rtol=1e-12)


def test_parameters_are_float64_whatever_was_given():
    model = GaussianMixture([1], np.zeros((1, 2), dtype=np.float32), np.ones((1, 2), dtype=int))
    assert (model.n_components, model.n_features) == (1, 2)
    assert all(array.dtype == np.float64 for array in model.arrays().values())
