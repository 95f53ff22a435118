"""Split-and-merge moves out of a local optimum (Ueda, Nakano, Ghahramani & Hinton 2000, Neural Computation 12)."""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from cohortgmm.errors import FitError
from cohortgmm.mixture.density.evaluate import map_joint
from cohortgmm.mixture.density.parameters import Parameters
from cohortgmm.mixture.em.loop import EM, EMResult
from cohortgmm.mixture.numerics.gaussian import floor_covariances
from cohortgmm.mixture.numerics.posterior import responsibilities
from cohortgmm.mixture.observations.measurements import Measurements

#: Number of splits that are tried with every merger, and number of moves that are tried from one optimum.
_SPLITS_PER_MERGER = 2
_TRIED = 6


def split_and_merge(em: EM, cells: Measurements, result: EMResult, n_rounds: int) -> EMResult:
    """Rounds of split-and-merge moves from the end of a run of EM.

    A round tries moves in turn, each followed by EM, and keeps the first that ends at a higher log-likelihood. The rounds
    end when none does.
    """
    for _ in range(n_rounds if result.model.n_components > 2 else 0):
        for i, j, k in moves(cells, result.model):
            try:
                moved = em.run(move(result.model, (i, j), k, em.constraints.floor))
            except FitError:
                continue
            if moved.log_likelihood > result.log_likelihood:
                result = moved
                break
        else:
            break
    return result


def moves(cells: Measurements, model: Parameters) -> Iterator[tuple[int, int, int]]:
    """Moves worth trying, the most promising first.

    Parameters
    ----------
    cells
        The cells.
    model
        A mixture of at least three components.

    Yields
    ------
    tuple of int
        Two components to merge, with similar responsibilities (equation 14 of Ueda et al.), and one to split, with a
        large local Kullback-Leibler divergence (equation 15).
    """
    similarity, divergence = _criteria(cells, model)
    first, second = np.triu_indices(model.n_components, 1)
    mergers = np.argsort(-similarity[first, second], kind="stable")
    splits = np.argsort(-divergence, kind="stable")
    return islice(
        (
            (int(first[pair]), int(second[pair]), int(k))
            for pair in mergers
            for k in [k for k in splits if k not in (first[pair], second[pair])][:_SPLITS_PER_MERGER]
        ),
        _TRIED,
    )


def move(model: Parameters, merged: tuple[int, int], split: int, floor: float) -> Parameters:
    """The mixture with two components merged into one, and another one split along its longest axis.

    The merged component has the total weight, mean and covariance of the two that it replaces. The two new components
    together have those of the split one. ``floor`` is explained in
    :func:`cohortgmm.mixture.numerics.gaussian.floor_covariances`.
    """
    weights, means, covariances = (array.copy() for array in (model.weights, model.means, model.covariances))
    i, j = merged
    diagonal = model.covariance_type == "diag"
    share = weights[[i, j]] / max(weights[[i, j]].sum(), np.finfo(float).tiny)
    mean = share @ means[[i, j]]
    shift = means[[i, j]] - mean
    spread = shift**2 if diagonal else shift[:, :, None] * shift[:, None, :]
    covariances[i] = np.tensordot(share, covariances[[i, j]] + spread, 1)
    weights[i], means[i] = weights[[i, j]].sum(), mean

    if diagonal:
        offset = 0.5 * np.sqrt(covariances[split]) * (np.arange(len(mean)) == covariances[split].argmax())
        rest = covariances[split] - offset**2
    else:
        values, vectors = np.linalg.eigh(covariances[split])
        offset = 0.5 * np.sqrt(values[-1]) * vectors[:, -1]
        rest = covariances[split] - np.outer(offset, offset)
    covariances[[split, j]] = rest
    weights[[split, j]] = 0.5 * weights[split]
    means[[split, j]] = means[split] + np.stack([offset, -offset])
    covariances, factors, _ = floor_covariances(covariances, floor, strict=False)
    return Parameters.from_factors(weights, means, covariances, factors, model.background)


def _criteria(cells: Measurements, model: Parameters) -> tuple[np.ndarray, np.ndarray]:
    """Cosines between the components' responsibilities (K, K), and local divergences (K,) of the components."""
    alive = model.weights > 0
    log_weights = np.log(np.where(alive, model.weights, 1.0))[:, None]

    def sums(joint: np.ndarray, background: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        log_density = np.where(alive[:, None], joint - log_weights, 0.0)
        resp, _ = responsibilities(joint, background)
        gap = np.log(np.where(resp > 0, resp, 1.0)) - log_density
        return resp @ resp.T, (resp * gap).sum(axis=1), resp.sum(axis=1)

    parts = (part for _, part in map_joint(sums, cells, model))
    gram, gap, nk = (sum(parts) for parts in zip(*parts, strict=True))
    norms = np.sqrt(np.diagonal(gram))
    with np.errstate(divide="ignore", invalid="ignore"):
        similarity = gram / (norms[:, None] * norms)
        divergence = gap / nk - np.log(nk)
    # Merging a component without weight costs nothing, and splitting it gains nothing.
    return np.where(alive[:, None] & alive, similarity, np.inf), np.where(alive, divergence, -np.inf)
