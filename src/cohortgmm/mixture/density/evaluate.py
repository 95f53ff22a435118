"""Densities of measured cells under a mixture."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import numpy as np

from cohortgmm.errors import DataError
from cohortgmm.mixture.estep.noisy import pairs_of
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.numerics.posterior import normalize
from cohortgmm.mixture.numerics.tiles import range_slices
from cohortgmm.mixture.observations.measurements import Group, Measurements
from cohortgmm.mixture.observations.noise import Noise

#: Cells of a tile whose noise is their own.
_ROWS = 1024

_Result = TypeVar("_Result")


def map_joint(
    function: Callable[[np.ndarray, np.ndarray | None], _Result], cells: Measurements, model: GaussianMixture
) -> Iterator[tuple[np.ndarray, _Result]]:
    """Results of ``function`` on all cells, tile by tile.

    Parameters
    ----------
    function
        Gets log(weight × density) of every component (K, n), which it may overwrite, and that of the background (n,)
        or None.
    cells
        The cells.
    model
        The mixture.

    Yields
    ------
    rows : ndarray
        (n,) positions of the tile's cells in the data.
    result
        What the function returned.
    """
    everyone = np.arange(len(cells.whole))
    for group in cells.groups:
        rows = everyone[group.rows]
        evaluate, tiles = _evaluation(group, model)
        results = group.cells.map(partial(_look, function, evaluate, group, model), tiles)
        for tile, result in zip(tiles, results, strict=True):
            yield rows[tile], result


def _look(function: Callable, evaluate: Callable, group: Group, model: GaussianMixture, tile: slice):
    return function(evaluate(tile), group.cells.background_at(tile, model.background))


def _evaluation(group: Group, model: GaussianMixture) -> tuple[Callable[[slice], np.ndarray], list[slice]]:
    """What gives the joint log-densities (K, n) of a tile, and the tiles."""
    if group.is_uniform:
        seen = model.seen(group.features, group.noise)

        def evaluate(tile: slice) -> np.ndarray:
            return seen.joint_log_prob(group.cells.rows(tile) - seen.means[:, None, :])

        return evaluate, group.cells.tiles(seen.means.size)

    def evaluate_pairs(tile: slice) -> np.ndarray:
        pairs = pairs_of(group, tile, model)
        for k in range(model.n_components):
            pairs.evaluate(k, np.arange(pairs.joint.shape[1]))
            pairs.forget()
        return pairs.joint

    return evaluate_pairs, list(range_slices(len(group.cells), _ROWS))


def log_prob(model: GaussianMixture, x: np.ndarray, noise: np.ndarray | Noise | None) -> np.ndarray:
    """See :meth:`cohortgmm.GaussianMixture.log_prob`."""
    result = np.zeros(len(x))
    with np.errstate(over="ignore", invalid="ignore"):
        for rows, (_, values) in _normalized(model, x, noise):
            result[rows] = values
    return result


def responsibilities(model: GaussianMixture, x: np.ndarray, noise: np.ndarray | Noise | None) -> np.ndarray:
    """See :meth:`cohortgmm.GaussianMixture.responsibilities`."""
    result = np.tile(model.weights, (len(x), 1))
    with np.errstate(over="ignore", invalid="ignore"):
        for rows, (resp, _) in _normalized(model, x, noise):
            result[rows] = resp.T
    return result


def _normalized(model: GaussianMixture, x: np.ndarray, noise: np.ndarray | Noise | None) -> Iterator:
    """Responsibilities (K, n) and log-densities (n,) of all cells, tile by tile.

    Raises
    ------
    DataError
        Where a density underflows although a component could have made the cell.
    """
    has_components = bool(model.weights.any())
    cells = Measurements(x, noise, background=model.background)
    for rows, (resp, values) in map_joint(normalize, cells, model):
        bad = np.isnan(values) | (np.isinf(values) & has_components)
        if bad.any():
            raise DataError(
                f"cell {rows[np.argmax(bad)]} is so far from every component that its log-density overflows: rescale "
                "the data, or check that they are in the units of the mixture"
            )
        yield rows, (resp, values)
