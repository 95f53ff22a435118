"""Cells with noise or gaps of their own: what is evaluated, what is left out, and why it may be."""

import numpy as np
import pytest
from measured import GAPS, e_step_by_definition, make_gaps, posterior_by_definition, with_background
from noisy_cells import ALL_ROWS, all_pairs, noisy_cells, one_group, pairs_of
from scipy.stats import multivariate_normal

from cohortgmm.mixture.density.noisy import DiagonalNoisyDensities, NoisyDensities, noisy_densities
from cohortgmm.mixture.estep.noisy import NoisyExpectation, NoisyPairs, latent_moments
from cohortgmm.mixture.estep.pruned import PrunedExpectation
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.cells import CellData
from cohortgmm.mixture.observations.measurements import Group

COVARIANCE_TYPES = ["full", "diag"]

OWN_NOISES = ["none", "shared variances", "shared covariance", "own variances", "own covariances"]


# Condition numbers below 1e3 and some hundred cells leave eleven digits of the moments.
RTOL = 1e-10


@pytest.fixture(autouse=True)
def _all_in_one_group(tune):
    """Cells are never sorted into groups that are treated alike."""
    tune(smallest_group=1 << 30)
    tune(cells_per_noise=1 << 30)


@pytest.fixture
def evaluated(monkeypatch):
    """Numbers of pairs that are evaluated, call by call."""
    numbers = []
    evaluate = NoisyPairs.evaluate

    def count(self, k, rows):
        numbers.append(len(rows))
        evaluate(self, k, rows)

    monkeypatch.setattr(NoisyPairs, "evaluate", count)
    return numbers


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("gaps", GAPS)
@pytest.mark.parametrize("kind", OWN_NOISES)
def test_pairs_have_the_densities_and_distances_of_the_definition(make_mixture, kind, gaps, covariance_type):
    model = make_mixture(3, 4, covariance_type, spread=1.5)
    x, noise = noisy_cells(model, kind, 40)
    x = make_gaps(gaps, x, np.random.default_rng(1))
    x[np.isnan(x).all(axis=1)] = 1.0  # cells without any feature are in no group
    pairs = all_pairs(one_group(x, noise), model)
    truth = posterior_by_definition(model, x, noise)
    np.testing.assert_allclose(pairs.joint, truth.joint.T, rtol=1e-11)
    np.testing.assert_allclose(pairs.distance, truth.distance.T, rtol=1e-10)


def test_densities_are_scipys(make_mixture):
    model = make_mixture(2, 3)
    x, noise = noisy_cells(model, "own covariances", 30)
    x[::2, 1] = np.nan
    joint = all_pairs(one_group(x, noise), model).joint
    for i in range(30):
        there = np.flatnonzero(~np.isnan(x[i]))
        for k in range(2):
            total = (model.covariances[k] + noise[i])[np.ix_(there, there)]
            density = multivariate_normal(model.means[k, there], total).logpdf(x[i, there])
            assert joint[k, i] == pytest.approx(np.log(model.weights[k]) + density, rel=1e-11)


@pytest.mark.parametrize(
    ("kind", "covariance_type", "expected"),
    [
        ("none", "full", NoisyDensities),
        ("none", "diag", DiagonalNoisyDensities),
        ("own variances", "full", NoisyDensities),
        ("own variances", "diag", DiagonalNoisyDensities),
        ("shared variances", "diag", DiagonalNoisyDensities),
        ("own covariances", "full", NoisyDensities),
        ("own covariances", "diag", NoisyDensities),
        ("shared covariance", "diag", NoisyDensities),
    ],
)
def test_variances_alone_need_no_matrices(make_mixture, kind, covariance_type, expected):
    model = make_mixture(2, 3, covariance_type)
    x, noise = noisy_cells(model, kind, 10)
    assert type(noisy_densities(one_group(x, noise), ALL_ROWS, model)) is expected


@pytest.mark.parametrize("gaps", ["complete", "any pattern"])
@pytest.mark.parametrize("kind", ["none", "own variances", "shared variances"])
def test_pairs_of_variances_are_those_of_their_matrices(make_mixture, assert_same_moments, kind, gaps):
    model = make_mixture(3, 4, "diag", spread=1.0)
    x, noise = noisy_cells(model, kind, 50)
    x[x > (4.0 if gaps == "any pattern" else np.inf)] = np.nan
    group = one_group(x, noise)
    left, right = (NoisyPairs(kind(group, ALL_ROWS, model)) for kind in (DiagonalNoisyDensities, NoisyDensities))
    for pairs in (left, right):
        for k in range(3):
            pairs.evaluate(k, np.arange(50))
    np.testing.assert_allclose(left.joint, right.joint, rtol=1e-12)
    np.testing.assert_allclose(left.distance, right.distance, rtol=1e-12)
    left, right = (latent_moments(pairs.moments(None)[0], model) for pairs in (left, right))
    assert_same_moments(left, right, rtol=1e-11)


def test_pairs_that_were_not_evaluated_have_no_share(make_mixture, assert_same_moments):
    model = make_mixture(3, 2, spread=1.0)
    x, noise = noisy_cells(model, "own covariances", 30)
    truth = posterior_by_definition(model, x, noise)
    listed = np.random.default_rng(0).random((3, 30)) < 0.5
    listed[truth.joint.argmax(axis=1), np.arange(30)] = True
    pairs = pairs_of(one_group(x, noise), ALL_ROWS, model)
    for k in range(3):
        pairs.evaluate(k, np.flatnonzero(listed[k]))
    assert (pairs.joint[~listed] == -np.inf).all()
    assert (pairs.distance[~listed] == np.inf).all()
    truth.joint[~listed.T] = -np.inf
    moments, resp = pairs.moments(None)
    np.testing.assert_allclose(resp, truth.responsibilities.T, rtol=1e-9, atol=1e-300)
    assert_same_moments(latent_moments(moments, model), truth.moments(model), rtol=RTOL)


def test_pairs_may_be_evaluated_bit_by_bit_and_for_no_cells(make_mixture, assert_same_moments):
    model = make_mixture(2, 3, spread=1.0)
    x, noise = noisy_cells(model, "own variances", 30)
    x[::3, 0] = np.nan
    group = one_group(x, noise)
    pairs = pairs_of(group, ALL_ROWS, model)
    for rows in (np.arange(0, 30, 2), np.empty(0, dtype=int), np.arange(1, 30, 2)):
        for k in (1, 0):
            pairs.evaluate(k, rows)
    whole = all_pairs(group, model)
    np.testing.assert_allclose(pairs.joint, whole.joint, rtol=1e-14)
    assert_same_moments(pairs.moments(None)[0], whole.moments(None)[0], rtol=1e-12)


def test_what_the_moments_need_is_freed_with_them(make_mixture):
    model = make_mixture(2, 3)
    pairs = all_pairs(one_group(*noisy_cells(model, "own variances", 10)), model)
    assert len(pairs._evaluated) == 2
    pairs.moments(None)
    assert pairs._evaluated == []


def test_a_tile_of_a_group_is_those_cells(make_mixture):
    model = make_mixture(2, 3)
    x, noise = noisy_cells(model, "own covariances", 30)
    x[::3, 0] = np.nan
    group = one_group(x, noise)
    tile = slice(10, 25)
    pairs = pairs_of(group, tile, model)
    for k in range(2):
        pairs.evaluate(k, np.arange(15))
    np.testing.assert_allclose(pairs.joint, all_pairs(group, model).joint[:, tile], rtol=1e-14)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_what_is_lifted_is_the_posterior_of_the_cell_behind_the_noise(make_mixture, covariance_type):
    """Of one cell and one component: μ + Σ T⁻¹ (x − μ) and Σ − Σ T⁻¹ Σ."""
    model = make_mixture(1, 3, covariance_type)
    x, noise = noisy_cells(model, "own covariances", 1)
    moments = latent_moments(all_pairs(one_group(x, noise), model).moments(None)[0], model)
    sigma = model.full_covariances[0]
    gain = sigma @ np.linalg.inv(sigma + noise[0])
    b = gain @ (x[0] - model.means[0])
    second = np.outer(b, b) + sigma - gain @ sigma
    np.testing.assert_allclose(moments.first[0], b, rtol=1e-11)
    expected = np.diag(second) if covariance_type == "diag" else second
    np.testing.assert_allclose(moments.second[0], expected, rtol=1e-10, atol=1e-11)


def overlapping(make_mixture, kind, covariance_type):
    return make_mixture(6, 4, covariance_type, spread=0.5), 1.0


def separated(make_mixture, kind, covariance_type):
    return make_mixture(6, 4, covariance_type, spread=20.0), 1.0


def behind_huge_noise(make_mixture, kind, covariance_type):
    return make_mixture(6, 4, covariance_type, spread=5.0), 1e4


def behind_tiny_noise(make_mixture, kind, covariance_type):
    return make_mixture(6, 4, covariance_type, spread=5.0), 1e-12


def with_a_weight_of_zero(make_mixture, kind, covariance_type):
    model = make_mixture(6, 4, covariance_type, spread=2.0)
    weights = np.where(np.arange(6) == 1, 0.0, model.weights)
    return GaussianMixture(weights / weights.sum(), model.means, model.covariances), 1.0


def with_a_tiny_and_a_huge_covariance(make_mixture, kind, covariance_type):
    model = make_mixture(6, 4, covariance_type, spread=2.0)
    covariances = model.covariances.copy()
    covariances[0] *= 1e-6
    covariances[1] *= 1e6
    return GaussianMixture(model.weights, model.means, covariances), 0.1


PROBLEMS = [
    overlapping,
    separated,
    behind_huge_noise,
    behind_tiny_noise,
    with_a_weight_of_zero,
    with_a_tiny_and_a_huge_covariance,
]


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("kind", ["own variances", "own covariances"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_nothing_that_could_be_seen_is_left_out(make_mixture, assert_same_moments, problem, kind, covariance_type):
    model, scale = problem(make_mixture, kind, covariance_type)
    x, noise = noisy_cells(model, kind, 300, scale=scale)
    group = one_group(x, noise)
    step = NoisyExpectation(group, 6, covariance_type)
    others = [GaussianMixture(model.weights[::-1], model.means[::-1], model.covariances[::-1]), model]
    for mixture in (model, *others):  # the second remembers the first, whose components come in another order
        everything = latent_moments(all_pairs(group, mixture).moments(None)[0], mixture)
        assert_same_moments(step(mixture), everything, rtol=RTOL)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("kind", ["own variances", "own covariances"])
def test_far_components_are_not_evaluated(make_mixture, evaluated, kind, covariance_type):
    model = make_mixture(24, 4, covariance_type, spread=100.0)
    x, noise = noisy_cells(model, kind, 500)
    step = NoisyExpectation(one_group(x, noise), 24, covariance_type)
    step(model)
    assert sum(evaluated) == 24 * 500  # nothing is known yet of how many matter
    for _ in range(2):
        evaluated.clear()
        step(model)
        assert 500 <= sum(evaluated) < 600


def test_all_pairs_are_evaluated_where_many_matter(make_mixture, evaluated):
    near, far = make_mixture(16, 3, spread=1.0), make_mixture(16, 3, spread=1000.0)
    x, noise = noisy_cells(near, "own covariances", 200)
    step = NoisyExpectation(one_group(x, noise), 16, "full")
    for mixture, fewest, most in ((near, 3200, 3200), (far, 3200, 3200), (far, 200, 400), (near, 200, 3200)):
        evaluated.clear()
        step(mixture)
        assert fewest <= sum(evaluated) <= most
    evaluated.clear()
    step(near)
    assert sum(evaluated) == 3200


@pytest.mark.usefixtures("bounded")
def test_pairs_that_matter_are_evaluated_and_some_of_the_others_are_not(make_mixture, evaluated):
    model = make_mixture(8, 4, spread=6.0)
    x, noise = noisy_cells(model, "own variances", 500)
    NoisyExpectation(one_group(x, noise), 8, "full")(model)
    n_evaluated = sum(evaluated)
    matter = (model.responsibilities(x, noise) > 1e-16).sum()
    assert 600 < matter <= n_evaluated < 0.8 * 8 * 500


@pytest.mark.usefixtures("bounded")
def test_every_component_is_evaluated_for_cells_with_gaps(make_mixture, evaluated):
    model = make_mixture(6, 4, spread=30.0)
    x, _ = noisy_cells(model, "none", 100)
    x[:40, 0] = np.nan
    NoisyExpectation(one_group(x), 6, "full")(model)
    assert 60 + 6 * 40 <= sum(evaluated) < 60 + 6 * 40 + 20


def test_components_of_weight_zero_get_nothing(make_mixture):
    model = make_mixture(3, 2, spread=1.0)
    model = GaussianMixture([0.4, 0.0, 0.6], model.means, model.covariances)
    for limit in (np.inf, 1.0):
        x, noise = noisy_cells(model, "own variances", 60)
        x[x > limit] = np.nan
        noise, x = noise[~np.isnan(x).all(axis=1)], x[~np.isnan(x).all(axis=1)]
        moments = NoisyExpectation(one_group(x, noise), 3, "full")(model)
        assert (moments.nk[1], moments.first[1].any(), moments.second[1].any()) == (0, False, False)
        assert moments.nk.sum() == pytest.approx(len(x), rel=1e-13)


def test_tiles_hold_as_many_rows_as_their_factors_have_room_for(monkeypatch, tune):
    tune(noisy_rows=(100, 3000))
    tune(noisy_values=2_000_000)
    x = np.zeros((10_000, 40))
    # A component has 820 values of a matrix for every cell, or 80 of variances.
    for n_components, covariance_type, expected in (
        (1, "diag", 3000),
        (10, "diag", 2500),
        (2, "full", 1219),
        (99, "full", 100),
    ):
        tiles = NoisyExpectation(Group(CellData(x)), n_components, covariance_type).tiles
        assert [tile.start for tile in tiles] == list(range(0, 10_000, expected))
        assert [tile.stop for tile in tiles] == [*range(expected, 10_000, expected), 10_000]


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("gaps", GAPS)
@pytest.mark.parametrize("kind", OWN_NOISES)
def test_several_tiles_have_the_moments_of_the_definition(
    tune, make_mixture, assert_same_moments, kind, gaps, covariance_type
):
    tune(noisy_rows=(17, 17))
    model = with_background(make_mixture(3, 3, covariance_type, spread=1.0))
    x, noise = noisy_cells(model, kind, 60)
    x = make_gaps(gaps, x, np.random.default_rng(0))
    group = one_group(x, noise, model.background)
    step = NoisyExpectation(group, 3, covariance_type)
    assert isinstance(step, PrunedExpectation)
    assert len(step.tiles) == 4
    assert_same_moments(step(model), e_step_by_definition(model, x, noise), rtol=RTOL)


@pytest.mark.parametrize("seed", range(4))
def test_covariances_at_the_limit_of_double_precision_are_bounded_too(seed):
    """Ratios of eigenvalues of 1e13 are let through by the floor."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(3, 6, 6)))[0]
    covariances = (basis * 10 ** rng.uniform(-4, 8.9, size=(3, 1, 6))) @ basis.transpose(0, 2, 1)
    covariances = 0.5 * (covariances + covariances.transpose(0, 2, 1))
    model = GaussianMixture(np.full(3, 1 / 3), rng.normal(size=(3, 6)), covariances)
    noise = 10 ** rng.uniform(-8, 3, size=(200, 6))
    x = model.sample(200, rng)[0] + np.sqrt(noise) * rng.normal(size=(200, 6))
    group = one_group(x, noise)
    everything = latent_moments(all_pairs(group, model).moments(None)[0], model)
    found = NoisyExpectation(group, 3, "full")(model)
    np.testing.assert_allclose(found.nk, everything.nk, atol=1e-6)
    assert found.log_likelihood == pytest.approx(everything.log_likelihood, rel=1e-9)


def test_noise_of_slightly_negative_eigenvalues_is_taken_for_what_it_rounds():
    """A covariance of rank one in float32 has eigenvalues of −1e-8 of the largest; the mixture's may be smaller."""
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(60, 3))
    noise = (1e6 * direction[:, :, None] * direction[:, None, :]).astype(np.float32)
    assert np.linalg.eigvalsh(noise.astype(float))[:, 0].min() < -1e-3
    x = 0.03 * rng.normal(size=(60, 3)) + 1e3 * direction * rng.normal(size=(60, 1))
    model = GaussianMixture([1.0], np.zeros((1, 3)), 1e-3 * np.eye(3)[None])
    for values in (noise, noise[0]):
        log_prob = model.log_prob(x[:1] if values.ndim == 2 else x, values)
        assert np.isfinite(log_prob).all()
