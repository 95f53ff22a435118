"""Sizes that decide how a result is computed.

Most change only speed and memory, and the result by rounding. The numbers of cells of a start, of quadrature nodes and of
draws also change which cells, nodes and draws are used, within the accuracy that they give.
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
        Values in a tile of quadratic features; bytes of them that are kept between the iterations of EM.
    screened_values
        Fewest and most values in a tile of the screened E-step: with small tiles threads wait for the interpreter, with
        large ones for memory.
    noisy_rows, noisy_values
        Fewest and most rows in a tile of cells with noise of their own, and values of its factors.
    density_rows
        Rows in a tile of such cells where only densities are computed.
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
        Fewer cells with the same features and noise do not get matrices of their own.
    cells_per_noise
        Distinct noises are grouped if there is no more than one for so many cells.
    start_cells
        Cells with missing features that a start is made from.
    seeding_cells, competing_cells
        Cells among which the centres of k-means are searched; above the second number, several seedings compete.
    fewest_nodes, most_nodes
        Quadrature nodes of the unobserved part of a mixture.
    fewest_draws, most_draws
        Cells that are drawn at a time where only some pass a selection.
    hopeless_draws
        Cells that are drawn without one that passes the selection before that is an error.
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
    """The sizes that count here and now."""
    return _CURRENT.get(_DEFAULT)


@contextmanager
def tuned(**sizes: Any) -> Iterator[Tuning]:
    """Use other sizes meanwhile, to test or to measure another way of computing the same result."""
    token = _CURRENT.set(replace(tuning(), **sizes))
    try:
        yield tuning()
    finally:
        _CURRENT.reset(token)
