"""k-means and the starts of EM."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from cohortgmm.mixture import start as start_module
from cohortgmm.mixture.start import STARTS, kmeans_labels, kmeans_start, random_start

COVARIANCE_TYPES = ["full", "diag"]


def inertia(x, labels):
    return sum(((x[labels == k] - x[labels == k].mean(axis=0)) ** 2).sum() for k in np.unique(labels))


def test_kmeans_finds_clusters_far_apart(make_mixture):
    x, truth = make_mixture(4, 3, spread=100.0).sample(400, 0)
    labels = kmeans_labels(x, 4, np.random.default_rng(0))
    for k in range(4):
        assert len(set(labels[truth == k])) == 1
    assert len(set(labels)) == 4


@pytest.mark.parametrize("n_components", [1, 2, 5, 12])
@pytest.mark.parametrize("seed", range(3))
def test_kmeans_leaves_no_cluster_empty(make_cells, n_components, seed):
    labels = kmeans_labels(make_cells(60, 2), n_components, np.random.default_rng(seed))
    assert sorted(set(labels.tolist())) == list(range(n_components))


def test_kmeans_gives_every_cell_its_own_cluster_when_there_are_as_many():
    x = np.random.default_rng(0).normal(size=(9, 2))
    assert sorted(kmeans_labels(x, 9, np.random.default_rng(0)).tolist()) == list(range(9))


@pytest.mark.parametrize("n_distinct", [1, 2, 4])
def test_kmeans_with_fewer_distinct_cells_than_clusters_keeps_equal_cells_usable(n_distinct):
    x = np.repeat(np.arange(float(n_distinct))[:, None] * [1.0, -2.0], 10, axis=0)
    labels = kmeans_labels(x, 6, np.random.default_rng(0))
    assert labels.shape == (10 * n_distinct,)
    assert labels.min() >= 0
    assert labels.max() < 6
    assert inertia(x, labels) == 0


def test_kmeans_refills_clusters_that_lose_their_cells(monkeypatch):
    """Seeds far from every cell attract none: the cells farthest from their own seed take those clusters over."""
    x = np.concatenate([np.zeros((5, 1)), np.full((5, 1), 10.0), np.full((5, 1), 30.0)])
    seeds = np.array([[0.0], [1e6], [2e6]]) - x.mean()
    monkeypatch.setattr(start_module, "_seed_centres", lambda *_: seeds)
    labels = kmeans_labels(x, 3, np.random.default_rng(0))
    assert sorted(set(labels.tolist())) == [0, 1, 2]
    assert inertia(x, labels) < ((x - x.mean()) ** 2).sum() / 5


def test_kmeans_is_as_good_as_scikit_learns_on_average(make_cells):
    ours, theirs = [], []
    for seed in range(20):
        x = make_cells(200, 2, n_components=6, seed=seed, spread=2.5)
        ours.append(inertia(x, kmeans_labels(x, 6, np.random.default_rng(seed))))
        theirs.append(KMeans(6, n_init=1, random_state=seed).fit(x).inertia_)
    # Both are local optima from one random seeding each, ±5 % a run; the mean over 20 runs varies by about 1 %.
    assert np.mean(np.divide(ours, theirs)) < 1.03


def test_kmeans_is_deterministic_for_a_seed(make_cells):
    x = make_cells(300, 3)
    first, again = (kmeans_labels(x, 5, np.random.default_rng(4)) for _ in range(2))
    assert np.array_equal(first, again)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("n_features", [1, 3])
def test_kmeans_start_has_the_moments_of_the_clusters(make_cells, covariance_type, n_features):
    x = 1e3 + make_cells(300, n_features)
    labels = kmeans_labels(x, 4, np.random.default_rng(1))
    start = kmeans_start(x, 4, covariance_type, 1e-9, np.random.default_rng(1))
    assert start.covariance_type == covariance_type
    np.testing.assert_allclose(start.weights, np.bincount(labels) / len(x), rtol=1e-14)
    for k in range(4):
        cells = x[labels == k]
        truth = np.atleast_2d(np.cov(cells, rowvar=False, bias=True))
        np.testing.assert_allclose(start.means[k], cells.mean(axis=0), rtol=1e-14)
        if covariance_type == "diag":
            truth = np.diag(np.diag(truth))
        np.testing.assert_allclose(start.full_covariances[k], truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("n_features", [1, 3])
def test_random_start_is_cells_with_the_covariance_of_the_data(make_cells, covariance_type, n_features):
    x = make_cells(50, n_features)
    start = random_start(x, 4, covariance_type, 1e-9, np.random.default_rng(0))
    chosen = [int(np.flatnonzero((x == mean).all(axis=1))[0]) for mean in start.means]
    assert len(set(chosen)) == 4
    assert start.weights.tolist() == [0.25] * 4
    truth = np.atleast_2d(np.cov(x, rowvar=False, bias=True))
    if covariance_type == "diag":
        truth = np.diag(np.diag(truth))
    np.testing.assert_allclose(start.full_covariances, np.repeat(truth[None], 4, axis=0), rtol=1e-12)


def test_random_start_takes_no_cell_twice():
    x = np.random.default_rng(0).normal(size=(8, 2))
    start = random_start(x, 8, "full", 1e-9, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(start.means, axis=0), np.sort(x, axis=0))


@pytest.mark.parametrize("init", list(STARTS))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_starts_respect_the_floor(init, covariance_type):
    x = np.random.default_rng(0).normal(size=(40, 3)) * [1.0, 1.0, 0.0]
    start = STARTS[init](x, 3, covariance_type, 0.01, np.random.default_rng(0))
    assert np.linalg.eigvalsh(start.full_covariances).min() == pytest.approx(0.01, rel=1e-10)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_kmeans_start_gives_clusters_without_cells_no_weight(covariance_type):
    x = np.repeat([[0.0, 0.0], [5.0, 1.0]], 10, axis=0)
    start = kmeans_start(x, 4, covariance_type, 1e-3, np.random.default_rng(0))
    assert sorted(start.weights.tolist()) == [0.0, 0.0, 0.5, 0.5]
    assert np.array_equal(start.full_covariances, np.repeat(1e-3 * np.eye(2)[None], 4, axis=0))
