"""Sizes that decide how a result is computed.

Most change only speed and memory, and the result by rounding errors. The numbers of cells of a start, of quadrature
nodes and of draws also decide which of these are used, and so change the result within its accuracy.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Tuning:
    """Sizes of tiles, and the limits between one way of computing a result and another.

    Attributes
    ----------
    tile_values
        Values per temporary array of a tile of rows; 2 MB of doubles stay in the processor's cache.
    quadratic_values, quadratic_bytes
        Values in a tile of quadratic features; largest size in bytes of all of them for which they are kept between the
        iterations of EM.
    screened_values
        Fewest and most values in a tile of the screened E-step: with small tiles threads wait for the interpreter, with
        large ones for memory.
    noisy_rows, noisy_values
        Fewest and most rows in a tile of cells with noise per cell, and number of values in its factors.
    density_rows
        Rows in a tile of cells with noise per cell if only densities are computed.
    listed_rows
        Rows in a tile of unsettled cells.
    few_features, few_products
        If D, or n D² K, is at most this, every component is evaluated for every cell.
    few_unsettled_products
        If K P m, for m unsettled cells with P quadratic features, is at most this, all components are evaluated for them.
    unsettled_share, unsettled_bytes
        Largest share of unsettled cells, and bytes of these, with which the E-step is incremental.
    incremental_rounding
        Largest rounding error of the incremental log-likelihood, in nats per cell.
    smallest_group
        Smallest number of cells with the same features and noise that form a group, which shares its matrices.
    cells_per_noise
        Cells are grouped by their noise if there are on average at least this many cells per distinct noise.
    start_cells
        Largest number of cells from which a start is made if features are missing.
    seeding_cells, competing_cells
        Cells among which the centres of k-means are searched; above the second number, several seedings compete.
    fewest_nodes, most_nodes
        Quadrature nodes of the unobserved part of a mixture.
    fewest_draws, most_draws
        Fewest and most cells that are drawn at a time if only some of them pass a selection.
    hopeless_draws
        If more than this many cells were drawn and none passed the selection, an error is raised.
    """

    tile_values: int = 1 << 18
    quadratic_values: int = 1 << 18
    quadratic_bytes: float = 1 << 26
    screened_values: tuple[int, int] = (1 << 18, 7 << 17)
    noisy_rows: tuple[int, int] = (128, 16384)
    noisy_values: int = 1 << 23
    density_rows: int = 1024
    listed_rows: int = 8192
    few_features: int = 18
    few_products: float = 6_000_000
    few_unsettled_products: float = 10_000_000
    unsettled_share: float = 0.6
    unsettled_bytes: int = 1 << 27
    incremental_rounding: float = 1e-9
    smallest_group: int = 32
    cells_per_noise: int = 64
    start_cells: int = 4096
    seeding_cells: int = 2048
    competing_cells: int = 2000
    fewest_nodes: int = 1 << 12
    most_nodes: int = 1 << 17
    fewest_draws: int = 1 << 10
    most_draws: int = 1 << 20
    hopeless_draws: int = 10_000_000


_DEFAULT = Tuning()
_CURRENT: ContextVar[Tuning] = ContextVar("tuning")


def tuning() -> Tuning:
    """The sizes that apply in the current context: the defaults, or those of :func:`tuned`."""
    return _CURRENT.get(_DEFAULT)


@contextmanager
def tuned(**sizes: Any) -> Iterator[Tuning]:
    """Use other sizes in a ``with`` block, to test or to measure another way of computing the same result."""
    token = _CURRENT.set(replace(tuning(), **sizes))
    try:
        yield tuning()
    finally:
        _CURRENT.reset(token)
