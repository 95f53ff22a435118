"""Where EM starts: ways to make a first mixture from the data."""

from collections.abc import Callable

import numpy as np

from cohortgmm.mixture.gaussian import floor_covariances
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.steps import Moments, maximize

_MAX_LLOYD = 50


def kmeans_labels(x: np.ndarray, n_components: int, rng: np.random.Generator) -> np.ndarray:
    """Cluster cells by k-means: greedy k-means++ seeding (Arthur & Vassilvitskii 2007), then Lloyd's iterations.

    Parameters
    ----------
    x
        (n, D) cells, n ≥ n_components.
    n_components
        Number of clusters.
    rng
        Source of the seeding.

    Returns
    -------
    ndarray of int
        (n,) cluster of every cell; no cluster is empty unless there are fewer distinct cells than clusters.
    """
    centred = x - x.mean(axis=0)
    norms = np.einsum("nd,nd->n", centred, centred)
    centres = _seed_centres(centred, norms, n_components, rng)
    labels = np.full(len(x), -1)
    for _ in range(_MAX_LLOYD):
        distances = _squared_distances(centred, norms, centres)
        previous, labels = labels, distances.argmin(axis=0)
        _fill_empty_clusters(labels, distances)
        if np.array_equal(labels, previous):
            break
        members = labels == np.arange(n_components)[:, None]
        counts = members.sum(axis=1)
        centres = np.where(counts[:, None] > 0, members @ centred / np.maximum(counts, 1)[:, None], centres)
    return labels


def _squared_distances(x: np.ndarray, norms: np.ndarray, centres: np.ndarray) -> np.ndarray:
    distances = norms - 2.0 * (centres @ x.T) + np.einsum("kd,kd->k", centres, centres)[:, None]
    return np.maximum(distances, 0.0, out=distances)


def _seed_centres(x: np.ndarray, norms: np.ndarray, n_components: int, rng: np.random.Generator) -> np.ndarray:
    n_trials = 2 + int(np.log(n_components))
    centres = np.empty((n_components, x.shape[1]))
    centres[0] = x[rng.integers(len(x))]
    closest = _squared_distances(x, norms, centres[:1])[0]
    for k in range(1, n_components):
        cumulative = np.cumsum(closest)
        picks = np.searchsorted(cumulative, rng.random(n_trials) * cumulative[-1])
        candidates = x[np.minimum(picks, len(x) - 1)]
        reduced = np.minimum(closest, _squared_distances(x, norms, candidates))
        best = int(reduced.sum(axis=1).argmin())
        centres[k], closest = candidates[best], reduced[best]
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
    x: np.ndarray, n_components: int, covariance_type: str, floor: float, rng: np.random.Generator
) -> GaussianMixture:
    """Mixture of the k-means clusters: their shares, means and covariances."""
    labels = kmeans_labels(x, n_components, rng)
    d = x.shape[1]
    origin = x.mean(axis=0)
    nk = np.bincount(labels, minlength=n_components).astype(float)
    first = np.zeros((n_components, d))
    second = np.zeros((n_components, d) if covariance_type == "diag" else (n_components, d, d))
    means = np.repeat(origin[None], n_components, axis=0)
    for k in np.flatnonzero(nk):
        cells = x[labels == k]
        means[k] = cells.mean(axis=0)
        deviation = cells - means[k]
        second[k] = (deviation**2).sum(axis=0) if covariance_type == "diag" else deviation.T @ deviation
    return maximize(Moments(nk, first, second, np.nan, len(x)), means, floor, strict=False)[0]


def random_start(
    x: np.ndarray, n_components: int, covariance_type: str, floor: float, rng: np.random.Generator
) -> GaussianMixture:
    """Mixture of equal weights around randomly chosen cells, all with the covariance of the data."""
    means = x[rng.choice(len(x), size=n_components, replace=False)]
    covariance = x.var(axis=0) if covariance_type == "diag" else np.atleast_2d(np.cov(x, rowvar=False, bias=True))
    covariances, _ = floor_covariances(np.repeat(covariance[None], n_components, axis=0), floor, strict=False)
    return GaussianMixture(np.full(n_components, 1.0 / n_components), means, covariances)


Start = Callable[[np.ndarray, int, str, float, np.random.Generator], GaussianMixture]

#: Values of ``init``.
STARTS: dict[str, Start] = {"kmeans": kmeans_start, "random": random_start}
