"""Starts of EM: mixtures that are made from the data."""

from collections.abc import Callable

import numpy as np

from cohortgmm.mixture.density.parameters import Parameters
from cohortgmm.mixture.em.constraints import Constraints, Frozen
from cohortgmm.mixture.em.mstep import m_step
from cohortgmm.mixture.estep.moments import Moments
from cohortgmm.mixture.numerics.gaussian import floor_covariances
from cohortgmm.mixture.numerics.tuning import tuning
from cohortgmm.mixture.observations.cells import CellData

_MAX_LLOYD = 50

#: Lloyd's iterations end when no more than this share of the cells changes its cluster; EM refines the clusters later.
_STILL_MOVING = 0.01

#: The centres are searched among this many cells per cluster, and at least among ``tuning().seeding_cells``.
_SAMPLE_PER_CLUSTER = 128

#: Number of seedings that compete over a few iterations. With few cells there is one: EM costs less than a competition.
_SEEDINGS = 5
_TRIAL_LLOYD = 2
_TRIAL_PER_CLUSTER = 64
_TRIAL_SAMPLE = 512


def kmeans_labels(
    cells: CellData, n_components: int, rng: np.random.Generator, *, max_iter: int = _MAX_LLOYD
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster cells by k-means: greedy k-means++ seeding (Arthur & Vassilvitskii 2007), then Lloyd's iterations.

    The centres are computed from a sample of 128 cells per cluster (at least 2,048) if there are more cells than that.
    With more than 2,000 cells, five seedings compete over two iterations on 64 cells per cluster (at least 512).

    Parameters
    ----------
    cells
        At least ``n_components`` cells.
    n_components
        Number of clusters K.
    rng
        Source of the seeding.
    max_iter
        Largest number of Lloyd's iterations.

    Returns
    -------
    labels : ndarray of int
        (n,) cluster of every cell; no cluster is empty unless there are fewer distinct cells than clusters.
    centres : ndarray
        (K, D) centres the cells were assigned to.
    """
    n, size = len(cells), max(tuning().seeding_cells, _SAMPLE_PER_CLUSTER * n_components)
    sample = np.sort(rng.choice(n, size=size, replace=False, shuffle=False)) if n > size else slice(None)
    x = cells.rows(sample) - cells.mean
    if len(x) > tuning().competing_cells:
        n_few = min(len(x), max(_TRIAL_SAMPLE, _TRIAL_PER_CLUSTER * n_components))
        few = x[rng.choice(len(x), size=n_few, replace=False)]
        seedings = seed_centres(few, n_components, _SEEDINGS, rng)
        trials = [_lloyd(few, centres, min(max_iter, _TRIAL_LLOYD)) for centres in seedings]
        centres = min(trials, key=lambda trial: trial[2])[1]
    else:
        (centres,) = seed_centres(x, n_components, 1, rng)
    labels, centres, _ = _lloyd(x, centres, max_iter)
    if n > size:
        labels = _nearest(cells, centres)
    return labels, centres + cells.mean


def _nearest(cells: CellData, centres: np.ndarray) -> np.ndarray:
    def assign(tile: slice) -> np.ndarray:
        return _squared_distances(cells.rows(tile) - cells.mean, centres).argmin(axis=0).astype(np.int32)

    return np.concatenate(list(cells.map(assign, cells.tiles(max(cells.n_features, len(centres))))))


def _lloyd(x: np.ndarray, centres: np.ndarray, max_iter: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Labels, the centres they belong to, and the sum of squared distances to them."""
    norms = np.einsum("nd,nd->n", x, x)
    clusters = np.arange(len(centres))[:, None]
    labels = np.full(len(x), -1)
    for iteration in range(max_iter + 1):
        distances = _squared_distances(x, centres, norms)
        previous, labels = labels, distances.argmin(axis=0)
        _fill_empty_clusters(labels, distances)
        if iteration == max_iter or np.count_nonzero(labels != previous) <= _STILL_MOVING * len(x):
            break
        members = (labels == clusters).astype(float)
        counts = members.sum(axis=1)[:, None]
        centres = np.where(counts > 0, members @ x / np.maximum(counts, 1), centres)
    return labels, centres, float(distances[labels, np.arange(len(x))].sum())


def _squared_distances(x: np.ndarray, centres: np.ndarray, norms: np.ndarray | float = 0.0) -> np.ndarray:
    """(K, n) squared distances; if ``norms`` is not given, the squared norms of the cells are left out of them."""
    distances = (-2.0 * centres) @ x.T
    distances += np.einsum("kd,kd->k", centres, centres)[:, None]
    distances += norms
    return distances


def seed_centres(x: np.ndarray, n_components: int, n_seedings: int, rng: np.random.Generator) -> np.ndarray:
    """(S, K, D) seeds of S independent runs of greedy k-means++."""
    n_trials, n = 2 + int(np.log(n_components)), len(x)
    norms = np.einsum("nd,nd->n", x, x)
    seedings = np.arange(n_seedings)
    centres = np.empty((n_seedings, n_components, x.shape[1]))
    centres[:, 0] = x[rng.integers(n, size=n_seedings)]
    closest = np.maximum(_squared_distances(x, centres[:, 0], norms), 0.0)
    for k in range(1, n_components):
        cumulative = np.cumsum(closest, axis=1)
        draws = rng.random((n_seedings, n_trials)) * cumulative[:, -1:]
        picks = np.stack([np.searchsorted(*pair) for pair in zip(cumulative, draws, strict=True)])
        candidates = x[np.minimum(picks, n - 1)]
        distances = _squared_distances(x, candidates.reshape(-1, x.shape[1]), norms).reshape(n_seedings, n_trials, n)
        reduced = np.minimum(closest[:, None], np.maximum(distances, 0.0, out=distances))
        best = reduced.sum(axis=2).argmin(axis=1)
        centres[:, k], closest = candidates[seedings, best], reduced[seedings, best]
    return centres


def _fill_empty_clusters(labels: np.ndarray, distances: np.ndarray) -> None:
    """Give every empty cluster the cell farthest from its own centre, in place."""
    counts = np.bincount(labels, minlength=len(distances))
    if counts.all():
        return
    own = distances[labels, np.arange(len(labels))]
    for k in np.flatnonzero(counts == 0):
        own[counts[labels] < 2] = -1.0
        farthest = int(own.argmax())
        if own[farthest] <= 0.0:
            return
        counts[labels[farthest]] -= 1
        labels[farthest], counts[k], own[farthest] = k, 1, -1.0


def kmeans_start(
    cells: CellData, n_components: int, covariance_type: str, floor: float, rng: np.random.Generator
) -> Parameters:
    """Mixture of the k-means clusters: their shares, means and covariances."""
    labels, centres = kmeans_labels(cells, n_components, rng)
    return _mixture_of_clusters(cells, labels, centres, covariance_type, floor)


def seeded_start(
    cells: CellData, n_components: int, covariance_type: str, floor: float, rng: np.random.Generator
) -> Parameters:
    """Mixture of the cells that are nearest to the same seed of k-means++."""
    labels, centres = kmeans_labels(cells, n_components, rng, max_iter=0)
    return _mixture_of_clusters(cells, labels, centres, covariance_type, floor)


def _mixture_of_clusters(
    cells: CellData, labels: np.ndarray, centres: np.ndarray, covariance_type: str, floor: float
) -> Parameters:
    n_components = len(centres)

    def expect(tile: slice) -> Moments:
        x, own = cells.rows(tile), labels[tile]
        moments = Moments.zeros(n_components, cells.n_features, covariance_type)
        moments.nk[:], moments.n = np.bincount(own, minlength=n_components), len(x)
        for k in np.flatnonzero(moments.nk):
            moments.add_cells(k, x[own == k] - centres[k])
        return moments

    moments = Moments.sum(cells.map(expect, cells.tiles(max(1, cells.n_features // 4))))
    shape = moments.second.shape
    unit = np.broadcast_to(np.ones(shape[1:]) if covariance_type == "diag" else np.eye(shape[1]), shape)
    around = Parameters.from_factors(np.full(n_components, 1.0 / n_components), centres, unit)
    return m_step(moments, around, Constraints(floor, False, Frozen.from_argument(None, n_components)))[0]


def random_start(
    cells: CellData, n_components: int, covariance_type: str, floor: float, rng: np.random.Generator
) -> Parameters:
    """Mixture of equal weights around randomly chosen cells, all with the covariance of the data."""
    means = cells.rows(np.sort(rng.choice(len(cells), size=n_components, replace=False)))
    covariance = np.diag(cells.covariance) if covariance_type == "diag" else cells.covariance
    covariances = np.repeat(covariance[None], n_components, axis=0)
    covariances, factors, _ = floor_covariances(covariances, floor, strict=False)
    return Parameters.from_factors(np.full(n_components, 1.0 / n_components), means, covariances, factors)


def minmax_start(
    cells: CellData, n_components: int, covariance_type: str, floor: float, rng: np.random.Generator
) -> Parameters:
    """Mixture of equal weights with means drawn evenly from the box that holds the cells.

    Its covariances are spherical. Their standard deviation is half the edge of a cube with 1 / K of the box's volume.
    """
    low, high = cells.bounds
    means = low + rng.random((n_components, cells.n_features)) * (high - low)
    width = np.exp(np.mean(np.log(np.maximum(high - low, np.sqrt(floor))))) / n_components ** (1 / cells.n_features)
    variances = np.full((n_components, cells.n_features), (width / 2) ** 2)
    covariances = variances if covariance_type == "diag" else variances[:, :, None] * np.eye(cells.n_features)
    covariances, factors, _ = floor_covariances(covariances, floor, strict=False)
    return Parameters.from_factors(np.full(n_components, 1.0 / n_components), means, covariances, factors)


Start = Callable[[CellData, int, str, float, np.random.Generator], Parameters]

#: Values of ``init``.
STARTS: dict[str, Start] = {
    "kmeans": kmeans_start,
    "kmeans++": seeded_start,
    "random": random_start,
    "minmax": minmax_start,
}
