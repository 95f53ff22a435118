"""Cutting the rows of the data into pieces whose intermediate results stay in the cache."""

from collections.abc import Iterator

#: Values per intermediate array of a tile: 2 MB of doubles.
_TILE_VALUES = 1 << 18


def tile_slices(n: int, values_per_row: int) -> Iterator[slice]:
    """Slices that cover ``range(n)``, each of as many rows as keep ``values_per_row`` times them in the cache."""
    step = max(64, _TILE_VALUES // max(1, values_per_row))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))
