"""The E-step and the M-step by themselves, and the tiles they work in."""

import numpy as np
import pytest

from cohortgmm.errors import SingularCovarianceError
from cohortgmm.mixture import tiles
from cohortgmm.mixture.em import fit_mixture
from cohortgmm.mixture.steps import Moments, expect, maximize

COVARIANCE_TYPES = ["full", "diag"]


def dense_moments(x, model):
    """The definition, with (n, K, D) temporaries and the responsibilities of the model."""
    resp = model.responsibilities(x)
    deviation = x[:, None, :] - model.means
    second = np.einsum("nk,nki,nkj->kij", resp, deviation, deviation)
    if model.covariance_type == "diag":
        second = np.diagonal(second, axis1=1, axis2=2)
    return Moments(resp.sum(axis=0), np.einsum("nk,nkd->kd", resp, deviation), second, model.log_prob(x).sum(), len(x))


def assert_same_moments(left, right, rtol):
    for name in ("nk", "first", "second"):
        scale = np.abs(getattr(right, name)).max()
        np.testing.assert_allclose(getattr(left, name), getattr(right, name), rtol=rtol, atol=rtol * scale)
    assert left.log_likelihood == pytest.approx(right.log_likelihood, rel=rtol)
    assert left.n == right.n


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("n_features", [1, 2, 10])
def test_expectation_is_its_definition(make_mixture, covariance_type, n_features):
    model = make_mixture(3, n_features, covariance_type)
    x = 3 * np.random.default_rng(0).normal(size=(500, n_features))
    # Whitening and back costs the condition number, here below 1e3.
    assert_same_moments(expect(x, model), dense_moments(x, model), rtol=1e-11)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_moments_of_parts_add_up(make_mixture, make_cells, covariance_type):
    model, x = make_mixture(3, 2, covariance_type), make_cells(300, 2)
    parts = [expect(part, model) for part in (x[:100], x[100:250], x[250:])]
    names = ("nk", "first", "second", "log_likelihood", "n")
    total = Moments(*(sum(getattr(part, name) for part in parts) for name in names))
    assert_same_moments(total, expect(x, model), rtol=1e-12)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_maximisation_is_the_weighted_mean_and_covariance(make_mixture, make_cells, covariance_type):
    model, x = make_mixture(3, 3, covariance_type), make_cells(400, 3)
    updated, floored = maximize(expect(x, model), model.means, 1e-9, strict=True)
    resp = model.responsibilities(x)
    np.testing.assert_allclose(updated.weights, resp.mean(axis=0), rtol=1e-12)
    for k in range(3):
        np.testing.assert_allclose(updated.means[k], np.average(x, axis=0, weights=resp[:, k]), rtol=1e-10)
        truth = np.cov(x, rowvar=False, bias=True, aweights=resp[:, k])
        np.testing.assert_allclose(
            updated.full_covariances[k] if covariance_type == "full" else np.diag(updated.covariances[k]),
            truth if covariance_type == "full" else np.diag(np.diag(truth)),
            rtol=1e-9,
            atol=1e-11,
        )
    assert not floored.any()


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_dead_component_loses_its_weight_and_stays_finite(covariance_type):
    second = np.array([4.0, 0.0])[:, None] * np.ones((2, 3))
    if covariance_type == "full":
        second = second[:, :, None] * np.eye(3)
    moments = Moments(np.array([4.0, 0.0]), np.zeros((2, 3)), second, -1.0, 4)
    means = np.arange(6.0).reshape(2, 3)
    model, floored = maximize(moments, means, 1e-3, strict=False)
    assert model.weights.tolist() == [1.0, 0.0]
    assert np.array_equal(model.means, means)
    np.testing.assert_allclose(model.full_covariances, [np.eye(3), 1e-3 * np.eye(3)], rtol=1e-14)
    assert floored.tolist() == [False, True]
    with pytest.raises(SingularCovarianceError, match="component 1 of 2"):
        maximize(moments, means, 1e-3, strict=True)


def test_a_component_out_of_reach_dies_and_does_not_come_back(make_cells, start_at_cells):
    x = make_cells(200, 2)
    start = start_at_cells(x, 3)
    start.means[1] = 1e6
    fit = fit_mixture(x, 3, initial=start, tol=0, max_iter=5)
    assert fit.model.weights[1] == 0
    assert fit.floored.tolist() == [False, True, False]
    assert fit.model.weights.sum() == pytest.approx(1, rel=1e-15)
    assert np.isfinite(fit.history).all()


@pytest.mark.parametrize("values", [1, 2_000, 10**9])
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 1000])
def test_tiles_cover_every_row_once(monkeypatch, values, n):
    monkeypatch.setattr(tiles, "_TILE_VALUES", values)
    rows = [row for piece in tiles.tile_slices(n, 7) for row in range(piece.start, piece.stop)]
    assert rows == list(range(n))


def test_tiles_hold_no_more_values_than_fit_the_cache():
    sizes = [piece.stop - piece.start for piece in tiles.tile_slices(1_000_000, 100)]
    assert max(sizes) * 100 <= tiles._TILE_VALUES
    assert len(sizes) > 1


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_results_do_not_depend_on_the_size_of_the_tiles(monkeypatch, make_mixture, make_cells, covariance_type):
    model, x = make_mixture(3, 4, covariance_type), make_cells(1000, 4)

    def results(values):
        monkeypatch.setattr(tiles, "_TILE_VALUES", values)
        fit = fit_mixture(x, 3, covariance_type=covariance_type, initial=model, tol=0, max_iter=10)
        return expect(x, model), model.log_prob(x), model.responsibilities(x), fit.history

    small, large = results(1), results(10**9)
    assert_same_moments(small[0], large[0], rtol=1e-12)  # sums of 1,000 terms in another order
    for a, b in zip(small[1:], large[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
