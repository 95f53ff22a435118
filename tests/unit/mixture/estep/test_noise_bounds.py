"""Bounds of the densities of noisy cells hold for every pair of cell and component."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measured import make_noise, posterior_by_definition
from noisy_cells import ALL_ROWS, all_pairs, noisy_cells, one_group

from cohortgmm.mixture.estep.noisy import NoisyExpectation
from cohortgmm.mixture.model import GaussianMixture

COVARIANCE_TYPES = ["full", "diag"]

OWN_NOISES = ["none", "shared variances", "shared covariance", "own variances", "own covariances"]


@pytest.fixture(autouse=True)
def _all_in_one_group(tune):
    """Cells are never sorted into groups that are treated alike."""
    tune(smallest_group=1 << 30)
    tune(cells_per_noise=1 << 30)


MIXTURES = st.tuples(st.integers(1, 4), st.integers(1, 5))


def uneven_problem(make_mixture, shape, covariance_type, kind, seed, log_scale, log_range, shrink, reach):
    """Ten cells, near or far, behind noise of many sizes; one component smaller than the others."""
    model, rng, n = make_mixture(*shape, covariance_type, seed=seed), np.random.default_rng(seed), 10
    covariances = model.covariances.copy()
    covariances[0] *= 10**shrink
    model = GaussianMixture(model.weights, model.means, covariances)
    noise = make_noise(kind, n, shape[1], rng, 10**log_scale)
    if noise is not None and kind.startswith("own"):
        noise = noise * 10 ** rng.uniform(-log_range, 0, size=(n, *[1] * (noise.ndim - 1)))
    return model, model.sample(n, rng)[0] + reach * rng.normal(size=(n, shape[1])), noise


@settings(max_examples=120, derandomize=True, deadline=None)
@given(
    shape=MIXTURES,
    covariance_type=st.sampled_from(COVARIANCE_TYPES),
    kind=st.sampled_from(OWN_NOISES),
    seed=st.integers(0, 2**32 - 1),
    log_scale=st.floats(-8, 6),
    log_range=st.floats(0, 4),
    shrink=st.floats(-6, 0),
    reach=st.sampled_from([0.0, 3.0, 100.0]),
)
def test_the_bounds_hold_for_every_pair(
    make_mixture, shape, covariance_type, kind, seed, log_scale, log_range, shrink, reach
):
    """The density is never above its bound, the distance never below its own."""
    model, x, noise = uneven_problem(
        make_mixture, shape, covariance_type, kind, seed, log_scale, log_range, shrink, reach
    )
    step = NoisyExpectation(one_group(x, noise), shape[0], covariance_type)
    _, bound, distance = step._tile_bounds(model)(ALL_ROWS)
    truth = posterior_by_definition(model, x, noise)
    # Condition numbers up to 1e9 leave seven digits of a distance; those in the E-step have room for 1e-9 and 37 nats.
    assert (bound >= truth.joint.T - 1e-9 * np.maximum(100.0, np.abs(truth.joint.T))).all()
    assert (distance <= truth.distance.T * (1 + 1e-9) + 1e-9).all()


@settings(max_examples=120, derandomize=True, deadline=None)
@given(
    shape=MIXTURES,
    covariance_type=st.sampled_from(COVARIANCE_TYPES),
    kind=st.sampled_from(OWN_NOISES),
    seed=st.integers(0, 2**32 - 1),
    log_scale=st.floats(-8, 6),
    log_range=st.floats(0, 4),
    shrink=st.floats(-6, 0),
    reach=st.sampled_from([0.0, 3.0, 100.0]),
)
def test_a_closer_look_leaves_out_no_pair_that_is_needed(
    make_mixture, shape, covariance_type, kind, seed, log_scale, log_range, shrink, reach
):
    model, x, noise = uneven_problem(
        make_mixture, shape, covariance_type, kind, seed, log_scale, log_range, shrink, reach
    )
    pairs, _, _ = NoisyExpectation(one_group(x, noise), shape[0], covariance_type)._tile_bounds(model)(ALL_ROWS)
    truth = posterior_by_definition(model, x, noise).joint.T
    rows = np.array([0, 2, 3, 7, 9])
    for k in range(shape[0]):
        just_below = truth[k, rows] - 1e-9 * np.maximum(100.0, np.abs(truth[k, rows]))
        assert np.array_equal(pairs.narrow(k, rows, just_below), rows)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("kind", OWN_NOISES)
def test_a_closer_look_leaves_out_pairs_that_are_far_below(make_mixture, kind, covariance_type):
    model = make_mixture(3, 4, covariance_type)
    x, noise = noisy_cells(model, kind, 200)
    group = one_group(x, noise)
    pairs, bound, _ = NoisyExpectation(group, 3, covariance_type)._tile_bounds(model)(ALL_ROWS)
    joint, everyone = all_pairs(group, model).joint, np.arange(200)
    for k in range(3):
        needed = joint[k] + 20.0
        kept = pairs.narrow(k, everyone, needed)
        assert len(kept) < 100
        assert len(kept) <= (bound[k] > needed).sum()
    assert len(pairs.narrow(0, np.empty(0, dtype=int), np.empty(0))) == 0


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("kind", OWN_NOISES)
def test_a_cell_at_a_mean_is_needed_there(make_mixture, kind, covariance_type):
    model = make_mixture(3, 4, covariance_type)
    noise = make_noise(kind, 3, 4, np.random.default_rng(0))
    group = one_group(model.means, noise)
    pairs, _, _ = NoisyExpectation(group, 3, covariance_type)._tile_bounds(model)(ALL_ROWS)
    joint = all_pairs(group, model).joint
    for k in range(3):
        assert pairs.narrow(k, np.array([k]), joint[k, [k]] - 1e-9).tolist() == [k]


def test_a_closer_look_at_cells_with_gaps_tells_nothing(make_mixture):
    model = make_mixture(2, 3)
    x, noise = noisy_cells(model, "own variances", 20)
    x[::4, 1] = np.nan
    pairs, _, _ = NoisyExpectation(one_group(x, noise), 2, "full")._tile_bounds(model)(ALL_ROWS)
    rows = np.arange(0, 20, 2)
    assert np.array_equal(pairs.narrow(1, rows, np.full(10, 1e9)), rows)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("shape", [None, (4,), (200, 4), (200, 4, 4)])
def test_the_bounds_are_the_densities_where_there_is_no_noise(make_mixture, covariance_type, shape):
    model = make_mixture(3, 4, covariance_type)
    x = model.sample(200, 0)[0]
    group = one_group(x, None if shape is None else np.zeros(shape))
    _, bound, distance = NoisyExpectation(group, 3, covariance_type)._tile_bounds(model)(ALL_ROWS)
    pairs = all_pairs(group, model)
    np.testing.assert_allclose(bound, pairs.joint, rtol=1e-10)
    np.testing.assert_allclose(distance, pairs.distance, rtol=1e-10)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_the_bounds_are_close_where_the_noise_is_round(make_mixture, covariance_type):
    """The distance is exact; the determinant is by no more than half a nat too small for eigenvalues of 0.3 to 3."""
    model = make_mixture(3, 4, covariance_type)
    x = model.sample(300, 0)[0]
    group = one_group(x, np.geomspace(1e-5, 1e3, 300)[:, None] * np.ones(4))
    _, bound, distance = NoisyExpectation(group, 3, covariance_type)._tile_bounds(model)(ALL_ROWS)
    pairs = all_pairs(group, model)
    np.testing.assert_allclose(distance, pairs.distance, rtol=1e-10)
    gap = bound - pairs.joint
    assert gap.min() >= -1e-9
    assert gap.max() < 0.5


def test_cells_with_gaps_have_no_bounds(make_mixture):
    model = make_mixture(2, 3)
    x, noise = noisy_cells(model, "own variances", 20)
    x[::4, 1] = np.nan
    step = NoisyExpectation(one_group(x, noise), 2, "full")
    _, bound, distance = step._tile_bounds(model)(ALL_ROWS)
    assert (bound[:, ::4] == np.inf).all()
    assert (distance[:, ::4] == 0).all()
    assert np.isfinite(np.delete(bound, np.s_[::4], axis=1)).all()


@pytest.mark.parametrize("kind", OWN_NOISES)
def test_the_spread_of_the_noise_is_that_of_its_eigenvalues(make_mixture, kind):
    x, noise = noisy_cells(make_mixture(2, 3), kind, 400)
    spread = NoisyExpectation(one_group(x, noise), 2, "full")._noise_spectrum
    for i in range(0, 400, 7):
        own = np.zeros((3, 3)) if noise is None else noise[i] if len(noise) == 400 else noise
        matrix = np.diag(own) if own.ndim == 1 else own
        assert spread.largest[i] == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=1e-12)
        assert spread.mean[i] == pytest.approx(np.trace(matrix) / 3, rel=1e-12)
        expected = 0.0 if noise is None else np.linalg.det(matrix) ** (1 / 3)
        assert spread.geometric[i] == pytest.approx(expected, rel=1e-10)
