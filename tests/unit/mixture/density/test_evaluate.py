"""Densities of measured cells: marginal over gaps, blurred by noise."""

import numpy as np
import pytest
from measured import GAPS, NOISES, make_gaps, make_noise, posterior_by_definition, with_background
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from cohortgmm.errors import DataError
from cohortgmm.mixture.density.evaluate import map_joint
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.measurements import Measurements

COVARIANCE_TYPES = ["full", "diag"]


@pytest.fixture(params=[False, True], ids=["one tile", "many tiles"])
def _tiles(tune, request):
    """Sixty cells in one tile, or in tiles of a few; in groups where that is possible."""
    tune(smallest_group=6)
    tune(cells_per_noise=20)
    if request.param:
        tune(density_rows=7)
        tune(tile_values=1)


def measured_cells(make_mixture, noise, gaps, covariance_type, *, n=60, spread=1.5):
    rng = np.random.default_rng([NOISES.index(noise), GAPS.index(gaps)])
    model = make_mixture(3, 3, covariance_type, spread=spread)
    x = model.sample(n, rng)[0] + rng.normal(size=(n, 3))
    return model, make_gaps(gaps, x, rng), make_noise(noise, n, 3, rng)


@pytest.mark.parametrize("has_background", [False, True])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("gaps", ["complete", "both"])
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.usefixtures("_tiles")
def test_densities_and_responsibilities_are_those_of_the_definition(
    make_mixture, noise, gaps, covariance_type, has_background
):
    model, x, values = measured_cells(make_mixture, noise, gaps, covariance_type)
    model = with_background(model) if has_background else model
    truth = posterior_by_definition(model, x, values)
    resp = model.responsibilities(x, values)
    # Condition numbers below 1e3 cost three of the sixteen digits.
    np.testing.assert_allclose(model.log_prob(x, values), truth.log_prob, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(resp, truth.responsibilities, rtol=1e-9, atol=1e-13)
    lacking = 1 - truth.responsibilities.sum(axis=1)
    np.testing.assert_allclose(model.background_probability(x, values), lacking, atol=1e-12)
    assert resp.shape == (60, 3)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("shape", [(2,), (2, 2), (200, 2), (200, 2, 2)])
def test_densities_through_noise_are_scipys(make_mixture, covariance_type, shape):
    model, rng = make_mixture(3, 2, covariance_type), np.random.default_rng(0)
    x = 3 * rng.normal(size=(200, 2))
    noise = rng.uniform(0.1, 3.0, size=shape)
    if shape[-2:] == (2, 2):
        noise = noise @ np.swapaxes(noise, -1, -2)
    own = np.broadcast_to(noise if shape[-2:] == (2, 2) else noise[..., None] * np.eye(2), (200, 2, 2))
    found = model.log_prob(x, noise)
    for i in range(0, 200, 5):
        joint = [
            np.log(w) + multivariate_normal(m, c + own[i]).logpdf(x[i])
            for w, m, c in zip(model.weights, model.means, model.full_covariances, strict=True)
        ]
        assert found[i] == pytest.approx(logsumexp(joint), rel=1e-11)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("has_background", [False, True])
def test_densities_of_some_features_are_those_of_the_marginal_mixture(make_mixture, covariance_type, has_background):
    model = make_mixture(3, 4, covariance_type, spread=1.0)
    model = with_background(model) if has_background else model
    x = model.sample(100, 0)[0]
    for features in ([0], [2, 3], [0, 1, 3]):
        gaps = np.full_like(x, np.nan)
        gaps[:, features] = x[:, features]
        marginal = GaussianMixture.from_parameters(model.marginal(np.array(features), None))
        assert marginal.n_features == len(features)
        np.testing.assert_allclose(model.log_prob(gaps), marginal.log_prob(x[:, features]), rtol=1e-12)
        np.testing.assert_allclose(model.responsibilities(gaps), marginal.responsibilities(x[:, features]), rtol=1e-10)


@pytest.mark.parametrize("noise", [None, np.array([0.5, 0.2])])
def test_the_density_of_some_features_is_the_integral_over_the_others(make_mixture, noise):
    model = with_background(make_mixture(2, 2, spread=1.0), amp=0.3)
    axis = np.linspace(-25, 25, 40_001)
    for place in (-1.0, 0.5):
        grid = np.column_stack([np.full_like(axis, place), axis])
        integral = np.trapezoid(np.exp(model.log_prob(grid, noise)), axis)
        # The box has edges on the grid if there is no noise.
        found = np.exp(model.log_prob(np.array([[place, np.nan]]), noise)[0])
        assert found == pytest.approx(integral, rel=1e-3 if noise is None else 1e-9)


@pytest.mark.parametrize("noise", [0.0, 0.7])
@pytest.mark.parametrize("amp", [0.0, 0.4])
def test_the_density_integrates_to_one(make_mixture, noise, amp):
    model = with_background(make_mixture(3, 1, spread=1.0), amp=amp)
    axis = np.linspace(-25, 25, 200_001)
    mass = np.trapezoid(np.exp(model.log_prob(axis[:, None], np.array([noise]))), axis)
    sharp = noise == 0 and amp > 0
    assert mass == pytest.approx(1.0, abs=1e-4 if sharp else 1e-9)


@pytest.mark.parametrize("has_background", [False, True])
@pytest.mark.parametrize("noise", [None, np.ones(3), np.ones((5, 3))])
def test_a_cell_without_features_tells_nothing(make_mixture, noise, has_background):
    model = make_mixture(2, 3)
    model = with_background(model, 0.25) if has_background else model
    x = np.vstack([np.full((1, 3), np.nan), model.sample(3, 0)[0], np.full((1, 3), np.nan)])
    assert model.log_prob(x, noise)[[0, 4]].tolist() == [0.0, 0.0]
    assert np.array_equal(model.responsibilities(x, noise)[[0, 4]], np.stack([model.weights] * 2))
    expected = 0.25 if has_background else 0.0
    np.testing.assert_allclose(model.background_probability(x, noise)[[0, 4]], expected, atol=1e-15)
    assert (model.log_prob(x, noise)[1:4] != 0).all()


def test_only_cells_without_features_have_no_densities(make_mixture):
    model = make_mixture(2, 3)
    assert model.log_prob(np.full((4, 3), np.nan)).tolist() == [0.0] * 4
    assert np.array_equal(model.responsibilities(np.full((4, 3), np.nan)), np.stack([model.weights] * 4))


@pytest.mark.parametrize("shape", [(2,), (2, 2), (0, 2), (0, 2, 2)])
def test_no_cells_have_no_densities_through_noise_either(make_mixture, shape):
    model = make_mixture(3, 2)
    assert model.log_prob(np.empty((0, 2)), np.ones(shape) if shape != (2, 2) else np.eye(2)).shape == (0,)
    assert model.responsibilities(np.empty((0, 2)), np.zeros(shape)).shape == (0, 3)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_an_infinite_variance_is_a_gap_and_a_huge_one_nearly(make_mixture, covariance_type):
    model = with_background(make_mixture(3, 3, covariance_type, spread=1.0))
    x = model.sample(80, 0)[0]
    missing = np.random.default_rng(0).random((80, 3)) < 0.3
    x[missing] = 5.0
    noise = np.random.default_rng(1).uniform(0.1, 1.0, size=(80, 3))
    gaps = np.where(missing, np.nan, x)
    for left, right in (
        (model.log_prob(gaps, noise), model.log_prob(x, np.where(missing, np.inf, noise))),
        (model.responsibilities(gaps, noise), model.responsibilities(x, np.where(missing, np.inf, noise))),
    ):
        np.testing.assert_allclose(left, right, rtol=1e-12)
    huge = np.where(missing, 1e12, noise)
    np.testing.assert_allclose(model.responsibilities(x, huge), model.responsibilities(gaps, noise), atol=1e-6)
    flat = norm.logpdf(0.0, scale=1e6) * missing.sum(axis=1)
    np.testing.assert_allclose(model.log_prob(x, huge) - flat, model.log_prob(gaps, noise), atol=1e-6)


@pytest.mark.parametrize("shape", [(3,), (3, 3), (60, 3), (60, 3, 3)])
def test_noise_of_zero_is_none(make_mixture, shape):
    for gaps in GAPS:
        model, x, _ = measured_cells(make_mixture, "none", gaps, "full")
        model = with_background(model)
        np.testing.assert_allclose(model.log_prob(x, np.zeros(shape)), model.log_prob(x), rtol=1e-12)


@pytest.mark.parametrize("gaps", GAPS)
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.usefixtures("_tiles")
def test_every_cell_is_looked_at_once_and_told_by_its_place(make_mixture, noise, gaps):
    model, x, values = measured_cells(make_mixture, noise, gaps, "full")
    model = with_background(model)
    cells = Measurements(x, values, 2, model.background)
    truth = posterior_by_definition(model, x, values)
    seen = np.zeros(60, dtype=int)
    for rows, (joint, background) in map_joint(lambda *both: both, cells, model):
        seen[rows] += 1
        np.testing.assert_allclose(joint, truth.joint[rows].T, rtol=1e-10)
        np.testing.assert_allclose(background, truth.background[rows], rtol=1e-11)
    assert np.array_equal(seen, (truth.n_observed > 0).astype(int))


def test_without_a_background_there_is_none_to_look_at(make_mixture):
    model, x, values = measured_cells(make_mixture, "own variances", "both", "full")
    assert all(background is None for _, background in map_joint(lambda *both: both[1], Measurements(x, values), model))


@pytest.mark.parametrize("noise", ["shared covariance", "own covariances"])
def test_many_cells_are_looked_at_in_pieces(make_mixture, noise):
    rng = np.random.default_rng(0)
    model = make_mixture(2, 3)
    x, values = rng.normal(size=(2500, 3)), make_noise(noise, 2500, 3, rng)
    pieces = [rows for rows, _ in map_joint(lambda joint, _: joint, Measurements(x, values), model)]
    assert np.array_equal(np.concatenate(pieces), np.arange(2500))
    assert [len(rows) for rows in pieces] == ([2500] if noise == "shared covariance" else [1024, 1024, 452])


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("kind", ["shared covariance", "own covariances", "own variances"])
def test_far_cells_and_large_offsets_keep_their_digits(make_mixture, covariance_type, kind):
    model = make_mixture(3, 3, covariance_type)
    rng = np.random.default_rng(0)
    noise = make_noise(kind, 40, 3, rng)
    shift = np.array([1e6, -2e6, 5e5])
    far = GaussianMixture(model.weights, model.means + shift, model.covariances)
    x = 100 * rng.normal(size=(40, 3)) + shift
    near = GaussianMixture(model.weights, far.means - shift, model.covariances)
    np.testing.assert_allclose(far.log_prob(x, noise), near.log_prob(x - shift, noise), rtol=1e-12)


def test_a_cell_that_nothing_could_have_made_has_no_density(make_mixture):
    model = with_background(make_mixture(2, 2), amp=1.0)
    x = np.vstack([model.background.upper + 1.0, model.means[0]])
    log_prob = model.log_prob(x)
    assert log_prob[0] == -np.inf
    assert log_prob[1] == pytest.approx(-np.log(model.background.upper - model.background.lower).sum())


@pytest.mark.parametrize("method", ["log_prob", "responsibilities", "background_probability"])
def test_noise_that_cannot_be_used_is_refused(make_mixture, method):
    model = with_background(make_mixture(2, 3))
    x = np.zeros((5, 3))
    with pytest.raises(DataError, match=r"noise must have shape .* n = 5 and D = 3, got \(4, 3\)"):
        getattr(model, method)(x, np.ones((4, 3)))
    noise = np.ones((5, 3))
    noise[3, 1] = -1.0
    with pytest.raises(DataError, match="the noise of cell 3 is no covariance"):
        getattr(model, method)(x, noise)
    with pytest.raises(DataError, match="1 infinite values, the first in cell 2"):
        getattr(model, method)(np.where(np.arange(15).reshape(5, 3) == 7, np.inf, x), np.ones(3))
