"""k-means and the starts of EM."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from cohortgmm.mixture.em import initialize as start_module
from cohortgmm.mixture.em.initialize import (
    STARTS,
    kmeans_labels,
    kmeans_start,
    minmax_start,
    random_start,
    seeded_start,
)
from cohortgmm.mixture.observations.cells import CellData

COVARIANCE_TYPES = ["full", "diag"]


def clusters(x, n_components, seed, **options):
    """Labels and centres of k-means."""
    return kmeans_labels(CellData(x), n_components, np.random.default_rng(seed), **options)


def nearest(x, centres):
    return ((x[:, None, :] - centres) ** 2).sum(axis=-1).argmin(axis=1)


def inertia(x, labels):
    return sum(((x[labels == k] - x[labels == k].mean(axis=0)) ** 2).sum() for k in np.unique(labels))


def test_kmeans_finds_clusters_far_apart(make_mixture):
    x, truth = make_mixture(4, 3, spread=100.0).sample(400, 0)
    labels, _ = clusters(x, 4, 0)
    for k in range(4):
        assert len(set(labels[truth == k])) == 1
    assert len(set(labels)) == 4


@pytest.mark.parametrize("n_components", [1, 2, 5, 12])
@pytest.mark.parametrize("seed", range(3))
def test_kmeans_leaves_no_cluster_empty(make_cells, n_components, seed):
    labels, _ = clusters(make_cells(60, 2), n_components, seed)
    assert sorted(set(labels.tolist())) == list(range(n_components))


def test_kmeans_gives_every_cell_its_own_cluster_when_there_are_as_many():
    x = np.random.default_rng(0).normal(size=(9, 2))
    labels, centres = clusters(x, 9, 0)
    assert sorted(labels.tolist()) == list(range(9))
    np.testing.assert_allclose(centres[labels], x, atol=1e-14)


@pytest.mark.parametrize("n_distinct", [1, 2, 4])
def test_kmeans_with_fewer_distinct_cells_than_clusters_keeps_equal_cells_usable(n_distinct):
    x = np.repeat(np.arange(float(n_distinct))[:, None] * [1.0, -2.0], 10, axis=0)
    labels, _ = clusters(x, 6, 0)
    assert labels.shape == (10 * n_distinct,)
    assert labels.min() >= 0
    assert labels.max() < 6
    assert inertia(x, labels) == 0


def test_kmeans_refills_clusters_that_lose_their_cells(monkeypatch):
    """Seeds far from every cell attract none: the cells farthest from their own seed take those clusters over."""
    x = np.concatenate([np.zeros((5, 1)), np.full((5, 1), 10.0), np.full((5, 1), 30.0)])
    seeds = np.array([[0.0], [1e6], [2e6]]) - x.mean()
    monkeypatch.setattr(start_module, "seed_centres", lambda *_: seeds[None])
    labels, _ = clusters(x, 3, 0)
    assert sorted(set(labels.tolist())) == [0, 1, 2]
    assert inertia(x, labels) < ((x - x.mean()) ** 2).sum() / 5


# From one seeding each the two are equal; from the best of five seedings ours is better.
@pytest.mark.parametrize(("few_cells", "most"), [(200, 1.03), (100, 1.0)])
def test_kmeans_is_as_good_as_scikit_learns_on_average(tune, make_cells, few_cells, most):
    tune(competing_cells=few_cells)
    ours, theirs = [], []
    for seed in range(20):
        x = make_cells(200, 2, n_components=6, seed=seed, spread=2.5)
        ours.append(inertia(x, clusters(x, 6, seed)[0]))
        theirs.append(KMeans(6, n_init=1, random_state=seed).fit(x).inertia_)
    # Both are local optima, ±5 % a run; the mean over 20 runs varies by about 1 %.
    assert np.mean(np.divide(ours, theirs)) < most


# 3,000 and 900 cells: the centres come from a sample of 2,048, or from all of them.
@pytest.mark.parametrize("n", [3000, 900, 300])
@pytest.mark.parametrize("max_iter", [0, 50])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_kmeans_gives_every_cell_to_the_nearest_centre(make_cells, n, max_iter, offset):
    x = offset + make_cells(n, 3, n_components=5)
    labels, centres = clusters(x, 5, 0, max_iter=max_iter)
    assert labels.shape == (n,)
    assert np.array_equal(labels, nearest(x, centres))
    means = np.array([x[labels == k].mean(axis=0) for k in range(5)])
    if max_iter == 0:
        assert (np.abs(x[:, None, :] - centres).max(axis=-1).min(axis=0) < 1e-9).all(), "seeds are cells"
    else:
        # One percent of the cells may still move, and a mean over a sample of 2,048 differs by 1/√400 deviations.
        np.testing.assert_allclose(centres, means, atol=1.0 if n > 2048 else 0.2)


def test_kmeans_on_a_sample_is_as_good_as_on_all_cells(tune, make_cells):
    x = make_cells(6000, 4, n_components=6)
    sampled = inertia(x, clusters(x, 6, 0)[0])
    tune(seeding_cells=6000)
    assert sampled < 1.02 * inertia(x, clusters(x, 6, 0)[0])


@pytest.mark.parametrize("n", [200, 300, 900, 3000])
def test_kmeans_is_deterministic_for_a_seed(make_cells, n):
    x = make_cells(n, 3)
    (labels, centres), (labels_again, centres_again) = clusters(x, 5, 4), clusters(x, 5, 4)
    assert np.array_equal(labels, labels_again)
    assert np.array_equal(centres, centres_again)
    assert not np.array_equal(centres, clusters(x, 5, 5)[1])


@pytest.mark.usefixtures("small_tiles")
def test_kmeans_does_not_depend_on_tiles_and_threads(monkeypatch, make_cells):
    x = make_cells(3000, 3)
    labels, centres = kmeans_labels(CellData(x, 3), 5, np.random.default_rng(4))
    monkeypatch.undo()
    labels_at_once, centres_at_once = clusters(x, 5, 4)
    assert np.array_equal(labels, labels_at_once)
    np.testing.assert_allclose(centres, centres_at_once, rtol=1e-12, atol=1e-12)  # the mean is another sum


@pytest.mark.parametrize(("start", "options"), [(kmeans_start, {}), (seeded_start, {"max_iter": 0})])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("n_features", [1, 3])
@pytest.mark.parametrize("n", [300, 3000])
@pytest.mark.usefixtures("small_tiles")
def test_starts_of_clusters_have_their_moments(make_cells, start, options, covariance_type, n_features, n):
    x = 1e3 + make_cells(n, n_features)
    labels, _ = clusters(x, 4, 1, **options)
    mixture = start(CellData(x), 4, covariance_type, 1e-9, np.random.default_rng(1))
    assert mixture.covariance_type == covariance_type
    np.testing.assert_allclose(mixture.weights, np.bincount(labels) / len(x), rtol=1e-14)
    for k in range(4):
        cells = x[labels == k]
        truth = np.atleast_2d(np.cov(cells, rowvar=False, bias=True))
        np.testing.assert_allclose(mixture.means[k], cells.mean(axis=0), rtol=1e-14)
        if covariance_type == "diag":
            truth = np.diag(np.diag(truth))
        np.testing.assert_allclose(mixture.full_covariances[k], truth, rtol=1e-10, atol=1e-12)


def test_a_seeded_start_is_not_that_of_the_converged_clusters(make_cells):
    x = CellData(make_cells(300, 3))
    seeded, converged = (start(x, 4, "full", 1e-9, np.random.default_rng(1)) for start in (seeded_start, kmeans_start))
    assert np.abs(seeded.means - converged.means).max() > 0.01


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("n_features", [1, 3])
def test_random_start_is_cells_with_the_covariance_of_the_data(make_cells, covariance_type, n_features):
    x = make_cells(50, n_features)
    start = random_start(CellData(x), 4, covariance_type, 1e-9, np.random.default_rng(0))
    chosen = [int(np.flatnonzero((x == mean).all(axis=1))[0]) for mean in start.means]
    assert len(set(chosen)) == 4
    assert start.weights.tolist() == [0.25] * 4
    truth = np.atleast_2d(np.cov(x, rowvar=False, bias=True))
    if covariance_type == "diag":
        truth = np.diag(np.diag(truth))
    np.testing.assert_allclose(start.full_covariances, np.repeat(truth[None], 4, axis=0), rtol=1e-12)


def test_random_start_takes_no_cell_twice():
    x = np.random.default_rng(0).normal(size=(8, 2))
    start = random_start(CellData(x), 8, "full", 1e-9, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(start.means, axis=0), np.sort(x, axis=0))


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("n_features", [1, 3, 30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_minmax_start_is_round_and_inside_the_box(make_cells, covariance_type, n_features, dtype):
    x = (50 + make_cells(100, n_features)).astype(dtype)
    start = minmax_start(CellData(x), 20, covariance_type, 1e-9, np.random.default_rng(0))
    low, high = x.min(axis=0).astype(float), x.max(axis=0).astype(float)
    assert ((start.means >= low) & (start.means <= high)).all()
    inside = (start.means - low) / (high - low)
    assert inside.min() < 0.2, "the whole box is drawn from"
    assert inside.max() > 0.8
    assert start.weights.tolist() == [0.05] * 20
    # Twenty cubes of the volume of the box; half their side is a standard deviation.
    volume = np.exp(np.log(high - low).sum() / n_features) / 20 ** (1 / n_features)
    expected = np.repeat((volume / 2) ** 2 * np.eye(n_features)[None], 20, axis=0)
    np.testing.assert_allclose(start.full_covariances, expected, rtol=1e-10)


@pytest.mark.parametrize("init", list(STARTS))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_starts_respect_the_floor(init, covariance_type):
    x = np.random.default_rng(0).normal(size=(40, 3)) * [1.0, 1.0, 0.0]
    start = STARTS[init](CellData(x), 3, covariance_type, 0.01, np.random.default_rng(0))
    smallest = np.linalg.eigvalsh(start.full_covariances).min()
    if init == "minmax":  # round, and the box is wide in two directions
        assert smallest >= 0.01
        start = STARTS[init](CellData(x), 3, covariance_type, 1e3, np.random.default_rng(0))
        assert np.linalg.eigvalsh(start.full_covariances).min() == pytest.approx(1e3, rel=1e-10)
    else:
        assert smallest == pytest.approx(0.01, rel=1e-10)


@pytest.mark.parametrize("init", list(STARTS))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_starts_are_valid_and_deterministic_for_a_seed(make_cells, init, covariance_type):
    x = make_cells(3000, 3)
    first, again, other = (
        STARTS[init](CellData(x), 4, covariance_type, 1e-6, np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    for name, array in first.arrays().items():
        assert np.array_equal(array, getattr(again, name)), name
    assert not np.array_equal(first.means, other.means)
    assert (first.n_components, first.covariance_type) == (4, covariance_type)
    assert first.weights.sum() == pytest.approx(1, rel=1e-12)
    np.testing.assert_allclose(
        2 * first.factors.half_log_det, np.linalg.slogdet(first.full_covariances)[1], rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_kmeans_start_gives_clusters_without_cells_no_weight(covariance_type):
    x = np.repeat([[0.0, 0.0], [5.0, 1.0]], 10, axis=0)
    start = kmeans_start(CellData(x), 4, covariance_type, 1e-3, np.random.default_rng(0))
    assert sorted(start.weights.tolist()) == [0.0, 0.0, 0.5, 0.5]
    assert np.array_equal(start.full_covariances, np.repeat(1e-3 * np.eye(2)[None], 4, axis=0))
