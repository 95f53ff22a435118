"""Split-and-merge moves: what they keep, which of them are tried, and what a fit gains from them."""

import itertools

import numpy as np
import pytest

from cohortgmm.errors import SingularCovarianceError
from cohortgmm.mixture.density.evaluate import log_prob, responsibilities
from cohortgmm.mixture.em import split_merge as run
from cohortgmm.mixture.em.initialize import STARTS
from cohortgmm.mixture.em.split_merge import move, moves
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.measurements import Measurements

COVARIANCE_TYPES = ["full", "diag"]


def joined(model, components):
    """Weight, mean and covariance (variances, for diagonal ones) of some components together."""
    weights = model.weights[components]
    share = weights / weights.sum()
    mean = share @ model.means[components]
    shift = model.means[components] - mean
    covariance = np.tensordot(share, model.full_covariances[components] + shift[:, :, None] * shift[:, None, :], 1)
    return weights.sum(), mean, covariance if model.covariance_type == "full" else np.diag(covariance)


def assert_same_joined(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("n_features", [1, 2, 7])
@pytest.mark.parametrize(("merged", "split"), [((0, 1), 2), ((1, 3), 0), ((0, 3), 2)])
def test_a_move_keeps_weight_mean_and_covariance_of_both_parts(
    make_mixture, covariance_type, n_features, merged, split
):
    model = make_mixture(4, n_features, covariance_type)
    before = {name: array.copy() for name, array in model.arrays().items()}
    moved = move(model, merged, split, 1e-9)
    i, j = merged
    assert_same_joined(joined(moved, [i]), joined(model, [i, j]))
    assert_same_joined(joined(moved, [split, j]), joined(model, [split]))
    (untouched,) = set(range(4)) - {i, j, split}
    assert_same_joined(joined(moved, [untouched]), joined(model, [untouched]))
    assert moved.covariance_type == covariance_type
    assert moved.weights.sum() == pytest.approx(1, rel=1e-14)
    assert np.linalg.eigvalsh(moved.full_covariances).min() > 0
    x = model.sample(50, 0)[0]
    refactored = GaussianMixture(**moved.arrays())
    np.testing.assert_allclose(log_prob(moved, x), refactored.log_prob(x), rtol=1e-11)
    for name, array in model.arrays().items():
        assert np.array_equal(array, before[name])


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_component_is_split_along_its_longest_axis(covariance_type):
    variances = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 16.0]])
    covariances = variances if covariance_type == "diag" else variances[:, :, None] * np.eye(2)
    moved = move(GaussianMixture([0.3, 0.3, 0.4], np.zeros((3, 2)), covariances), (0, 1), 2, 1e-9)
    np.testing.assert_allclose(np.abs(moved.means[[1, 2]]), [[0, 2], [0, 2]], atol=1e-14)
    np.testing.assert_allclose(moved.means[1], -moved.means[2], atol=1e-14)
    np.testing.assert_allclose(moved.weights, [0.6, 0.2, 0.2], rtol=1e-14)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_moved_mixtures_respect_the_floor(make_mixture, covariance_type):
    model = make_mixture(3, 4, covariance_type)
    moved = move(model, (0, 2), 1, 2.0)
    assert np.linalg.eigvalsh(moved.full_covariances).min() == pytest.approx(2.0, rel=1e-12)


def crossroads(order=(0, 1, 2, 3, 4), covariance_type="full"):
    """Five round clusters, and a mixture of which two components share one of them and one has two."""
    centres = np.array([[0.0, 0.0], [12.0, 0.0], [12.0, 8.0], [-15.0, 15.0], [0.0, -20.0]])
    rng = np.random.default_rng(0)
    x = np.concatenate([centre + rng.normal(size=(60, 2)) for centre in centres])
    means = np.array([[-0.3, 0.0], [0.3, 0.0], [12.0, 4.0], [-15.0, 15.0], [0.0, -20.0]])
    variances = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 17.0], [1.0, 1.0], [1.0, 1.0]])
    covariances = variances if covariance_type == "diag" else variances[:, :, None] * np.eye(2)
    order = list(order)
    model = GaussianMixture(np.array([0.1, 0.1, 0.4, 0.2, 0.2])[order], means[order], covariances[order])
    return x, model, (order.index(0), order.index(1), order.index(2))


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (2, 0, 3, 1, 4), (4, 3, 2, 1, 0)])
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.usefixtures("small_tiles")
def test_the_first_move_merges_the_two_on_one_cluster_and_splits_the_one_on_two(covariance_type, order, n_threads):
    x, model, (i, j, k) = crossroads(order, covariance_type)
    assert next(moves(Measurements(x, n_threads=n_threads), model)) == (min(i, j), max(i, j), k)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("seed", range(5))
def test_moves_come_in_the_order_of_the_criteria(make_mixture, covariance_type, seed):
    """Equations 14 and 15 of Ueda et al. as they are printed, but for the cosine that keeps large components apart."""
    x = make_mixture(6, 3, seed=seed, spread=1.0).sample(300, seed)[0]
    model = fit_mixture(x, 6, covariance_type=covariance_type, tol=1e-9, max_iter=5000).model
    resp = responsibilities(model, x).T
    norms = np.linalg.norm(resp, axis=1)
    similarity = resp @ resp.T / norms[:, None] / norms
    local = resp / resp.sum(axis=1, keepdims=True)
    log_density = model.joint_log_prob(x - model.means[:, None, :]) - np.log(model.weights)[:, None]
    divergence = np.where(local > 0, local * (np.log(np.maximum(local, 1e-300)) - log_density), 0.0).sum(axis=1)
    pairs = sorted(itertools.combinations(range(6), 2), key=lambda pair: -similarity[pair])
    splits = sorted(range(6), key=lambda k: -divergence[k])
    expected = [(i, j, k) for i, j in pairs[:3] for k in [k for k in splits if k not in (i, j)][:2]]
    assert list(moves(Measurements(x), model)) == expected


def test_moves_are_few_and_possible(make_mixture):
    model = make_mixture(6, 3)
    tried = list(moves(Measurements(model.sample(300, 0)[0]), model))
    assert len(tried) == len(set(tried)) == 6
    for i, j, k in tried:
        assert 0 <= i < j < 6
        assert k not in (i, j)
        assert 0 <= k < 6
    assert len(list(moves(Measurements(model.sample(300, 0)[0]), make_mixture(3, 3)))) == 3


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_moves_free_a_fit_from_a_local_optimum(covariance_type):
    x, initial, _ = crossroads(covariance_type=covariance_type)
    options = {"covariance_type": covariance_type, "max_iter": 500, "tol": 1e-6}
    stuck = fit_mixture(x, 5, initial=initial, **options)
    freed = fit_mixture(x, 5, initial=initial, split_merge=3, **options)
    best = fit_mixture(x, 5, n_init=10, **options)
    assert stuck.log_likelihood < best.log_likelihood - 0.1
    assert freed.log_likelihood == pytest.approx(best.log_likelihood, abs=1e-4)
    np.testing.assert_allclose(freed.model.weights, 0.2, atol=0.01)
    assert freed.log_likelihood == pytest.approx(freed.model.log_prob(x).mean(), abs=1e-10)
    assert len(freed.history) == freed.n_iter + 1


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("init", list(STARTS))
def test_moves_never_end_below_the_fit_without_them(make_cells, assert_sound, covariance_type, init):
    gains = []
    for seed in range(4):
        x = make_cells(200, 2, n_components=6, seed=seed, spread=2.0)
        options = {"covariance_type": covariance_type, "init": init, "random_state": seed}
        without, moved = (fit_mixture(x, 5, split_merge=n, **options) for n in (0, 3))
        assert_sound(moved, x)
        gains.append(moved.log_likelihood - without.log_likelihood)
    assert min(gains) >= 0
    assert max(gains) > 1e-3, "or this shows nothing"


@pytest.mark.parametrize("rounds", [1, 2])
def test_every_round_makes_one_move(monkeypatch, make_cells, rounds):
    asked = []

    def spy(cells, model):
        asked.append(model)
        return moves(cells, model)

    monkeypatch.setattr(run, "moves", spy)
    x = make_cells(300, 2, n_components=8, spread=2.0)
    fit_mixture(x, 7, init="random", split_merge=rounds)
    assert len(asked) == rounds


def test_rounds_end_without_a_gain(monkeypatch, make_cells):
    asked = []

    def none_better(cells, model):
        asked.append(model)
        return iter([])

    monkeypatch.setattr(run, "moves", none_better)
    fit_mixture(make_cells(100, 2), 3, split_merge=5)
    assert len(asked) == 1


@pytest.mark.parametrize("n_components", [1, 2])
def test_fewer_than_three_components_make_no_moves(monkeypatch, make_cells, assert_bit_identical, n_components):
    x = make_cells(100, 2)
    without = fit_mixture(x, n_components)
    monkeypatch.setattr(run, "moves", None)
    assert_bit_identical(fit_mixture(x, n_components, split_merge=3), without)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("dead", [[1], [0, 2]])
def test_dead_components_are_moved_without_harm(make_mixture, covariance_type, dead):
    model = make_mixture(5, 3, covariance_type)
    weights = np.where(np.isin(np.arange(5), dead), 0.0, model.weights)
    model = GaussianMixture(weights / weights.sum(), model.means, model.covariances)
    x = model.sample(200, 0)[0]
    tried = list(moves(Measurements(x), model))
    assert len(tried) == 6
    assert all(i in dead or j in dead for i, j, _ in tried[:4]), "to merge them costs nothing"
    assert not any(k in dead for _, _, k in tried), "there is nothing to split in them"
    for i, j, k in [*tried, (0, 2, 1), (0, 1, 2), (1, 2, 0)]:
        moved = move(model, (i, j), k, 1e-6)  # NaN would be refused
        assert moved.weights.sum() == pytest.approx(1, rel=1e-14)
        assert np.isfinite(log_prob(moved, x)).all()


def test_a_dead_component_is_put_to_use_again(make_cells, make_mixture):
    truth = make_mixture(3, 2, spread=10.0)
    x = truth.sample(300, 0)[0]
    dead = GaussianMixture([0.5, 0.5, 0.0], truth.means[[0, 1, 1]], truth.covariances)
    without, moved = (fit_mixture(x, 3, initial=dead, split_merge=n) for n in (0, 3))
    assert without.model.weights.min() == 0
    assert moved.model.weights.min() > 0.1
    assert moved.log_likelihood > without.log_likelihood


@pytest.mark.parametrize("handling", ["strict", "guarded"])
def test_a_move_that_ends_in_a_singular_covariance_is_skipped(monkeypatch, make_cells, assert_bit_identical, handling):
    """Its second component holds no cell but one."""
    x = make_cells(200, 2, spread=5.0)
    started = []

    def on_one_cell(model, merged, split, floor):
        started.append(merged)
        means, covariances = model.means.copy(), model.covariances.copy()
        means[1], covariances[1] = x[0], 1e-6 * np.eye(2)
        return GaussianMixture(model.weights, means, covariances)

    options = {"singularity_handling": handling, "eps": 1e-4}
    without = fit_mixture(x, 3, **options)
    monkeypatch.setattr(run, "move", on_one_cell)
    moved = fit_mixture(x, 3, split_merge=1, **options)
    assert started
    if handling == "strict":
        assert len(started) == 3
        assert_bit_identical(moved, without)
        with pytest.raises(SingularCovarianceError):
            fit_mixture(x, 3, initial=on_one_cell(without.model, None, None, None), **options)
    else:
        assert moved.log_likelihood >= without.log_likelihood
