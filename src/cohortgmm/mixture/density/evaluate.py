"""Densities and responsibilities of measured cells under a mixture."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import numpy as np

from cohortgmm.errors import DataError
from cohortgmm.mixture.density.noisy import noisy_densities
from cohortgmm.mixture.density.parameters import Parameters
from cohortgmm.mixture.numerics.posterior import normalize
from cohortgmm.mixture.numerics.tiles import range_slices
from cohortgmm.mixture.numerics.tuning import tuning
from cohortgmm.mixture.observations.measurements import Group, Measurements
from cohortgmm.mixture.observations.noise import Noise

_Result = TypeVar("_Result")


def map_joint(
    function: Callable[[np.ndarray, np.ndarray | None], _Result], cells: Measurements, model: Parameters
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
        The return value of the function.
    """
    all_rows = np.arange(len(cells.whole))
    for group in cells.groups:
        rows = all_rows[group.rows]
        evaluate, tiles = _evaluation(group, model)
        results = group.cells.map(partial(_apply, function, evaluate, group, model), tiles)
        for tile, result in zip(tiles, results, strict=True):
            yield rows[tile], result


def _apply(
    function: Callable[[np.ndarray, np.ndarray | None], _Result],
    evaluate: Callable[[slice], np.ndarray],
    group: Group,
    model: Parameters,
    tile: slice,
) -> _Result:
    return function(evaluate(tile), group.cells.background_at(tile, model.background))


def _evaluation(group: Group, model: Parameters) -> tuple[Callable[[slice], np.ndarray], list[slice]]:
    """A function from a tile to its joint log-densities (K, n), and the tiles."""
    if group.is_uniform:
        convolved = model.marginal(group.features, group.noise)

        def evaluate_uniform(tile: slice) -> np.ndarray:
            return convolved.joint_log_prob(group.cells.rows(tile) - convolved.means[:, None, :])

        return evaluate_uniform, group.cells.tiles(convolved.means.size)

    def evaluate_noisy(tile: slice) -> np.ndarray:
        densities = noisy_densities(group, tile, model)
        all_rows = np.arange(densities.x.shape[1])
        return np.stack([densities.evaluate(k, all_rows)[0] for k in range(model.n_components)])

    return evaluate_noisy, list(range_slices(len(group.cells), tuning().density_rows))


def log_prob(model: Parameters, x: np.ndarray, noise: np.ndarray | Noise | None = None) -> np.ndarray:
    """See :meth:`cohortgmm.GaussianMixture.log_prob`."""
    result = np.zeros(len(x))
    with np.errstate(over="ignore", invalid="ignore"):
        for rows, (_, values) in _normalized(model, x, noise):
            result[rows] = values
    return result


def responsibilities(model: Parameters, x: np.ndarray, noise: np.ndarray | Noise | None = None) -> np.ndarray:
    """See :meth:`cohortgmm.GaussianMixture.responsibilities`."""
    result = np.tile(model.weights, (len(x), 1))
    with np.errstate(over="ignore", invalid="ignore"):
        for rows, (resp, _) in _normalized(model, x, noise):
            result[rows] = resp.T
    return result


def _normalized(
    model: Parameters, x: np.ndarray, noise: np.ndarray | Noise | None
) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]]:
    """Responsibilities (K, n) and log-densities (n,) of all cells, tile by tile.

    Raises
    ------
    DataError
        If the log-density of a cell is not finite although a component has a positive weight.
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
