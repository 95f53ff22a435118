"""The probability that a cell is observed (completeness), and the measurement noise of cells at any place."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from cohortgmm.arrays import dense_array
from cohortgmm.display import format_error
from cohortgmm.errors import DataError
from cohortgmm.mixture.observations.noise import Noise

#: Largest number of cells that are named in an error.
_NAMED = 5

#: Measurement noise of a cell at any place, as users give it.
NoiseAt = Callable[[np.ndarray], np.ndarray | Noise] | np.ndarray | Noise


class Completeness:
    """A user's completeness function, whose return values are checked.

    Parameters
    ----------
    function
        Callable (m, D) → (m,) in [0, 1]: probability that a cell measured at each of these places is in the data.
    """

    def __init__(self, function: Callable[[np.ndarray], np.ndarray]) -> None:
        if not callable(function):
            raise DataError(f"completeness must be a callable (m, D) -> (m,), got {type(function).__name__}")
        self._function = function

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(m,) probability that a cell is observed at these places (m, D).

        The user's function is not called with an empty array.

        Raises
        ------
        DataError
            If the function fails, or returns another shape, NaN or numbers beyond [0, 1].
        """
        if not len(x):
            return np.empty(0)
        try:
            values = self._function(x.copy())
        except Exception as error:
            raise DataError(f"the completeness function failed on {len(x)} places: {format_error(error)}") from error
        try:
            values = np.asarray(dense_array(values, "they"), dtype=np.float64)
        except DataError as error:
            kind = type(values).__name__
            raise DataError(f"the completeness function returned {kind}, not numbers: {error}") from None
        if values.shape != (len(x),):
            raise DataError(f"the completeness function returned shape {values.shape} for {len(x)} places")
        bad = ~((values >= 0) & (values <= 1))
        if bad.any():
            i = int(np.argmax(bad))
            place = ", ".join(f"{value:.4g}" for value in x[i])
            raise DataError(f"the completeness function returned {values[i]:.4g} at ({place}): must be within [0, 1]")
        return values

    def check_cells(self, tiles: Iterable[tuple[slice, np.ndarray]], name_of: Callable[[int], str] = str) -> None:
        """Refuse observed cells whose completeness is zero or cannot be computed.

        Parameters
        ----------
        tiles
            Slices of rows, each with its cells (m, D), which are NaN where a feature is missing.
        name_of
            Function from the row of a cell to its name in an error.
        """
        impossible = []
        for tile, x in tiles:
            rows = np.flatnonzero(~np.isnan(x).all(axis=1))
            try:
                impossible += (tile.start + rows[self(x[rows]) == 0]).tolist()
            except DataError as error:
                hint = "; cells with missing features are among them" if np.isnan(x).any() else ""
                first, last = name_of(tile.start), name_of(tile.stop - 1)
                raise DataError(f"cells {first} to {last}: {error}{hint}") from error
        if impossible:
            shown = ", ".join(map(name_of, impossible[:_NAMED])) + (", ..." if len(impossible) > _NAMED else "")
            raise DataError(
                f"completeness is 0 for {len(impossible)} observed cells ({shown}): the function does not describe how "
                "these cells were chosen"
            )


def noise_of_places(points: np.ndarray, noise_at: NoiseAt, name: str = "noise_at") -> Noise:
    """Measurement noise of cells at places (m, D).

    Raises
    ------
    DataError
        If the function fails, returns another shape, or returns values that are not finite covariances.
    """
    m, d = points.shape
    noise = noise_at
    if callable(noise_at):
        try:
            noise = noise_at(points.copy())
        except Exception as error:
            raise DataError(f"{name} failed on {m} places: {format_error(error)}") from error
    try:
        if not isinstance(noise, Noise):
            noise = _noise_by_contract(noise, m, d, of_function=callable(noise_at))
        elif not (noise.is_shared or callable(noise_at)):
            raise DataError("noise of each cell says nothing of other places: give a function, or one for all")
        if not np.isfinite(noise.values).all():
            raise DataError("values that are not finite")
        return Noise.validated(noise, m, d)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None


def _noise_by_contract(values: Any, m: int, d: int, *, of_function: bool) -> Noise:
    """Make the noise at m places from what a function returned for them, or from an array that holds for all places."""
    values = dense_array(values, "the noise")
    if not of_function:
        shapes, kind = ((d,), (d, d)), "one for all"
    elif values.shape == (d,):
        return Noise.shared(values)
    else:
        shapes, kind = ((m, d), (m, d, d)), "one for each place"
    if values.shape not in shapes:
        hint = "; cohortgmm.Noise.shared(values) is one for all" if of_function else ""
        raise DataError(f"must be {kind}, of shape {shapes[0]} or {shapes[1]}, got {values.shape}{hint}")
    return Noise.per_cell(values) if of_function else Noise.shared(values)


def scaled_noise(points: np.ndarray, noise_at: NoiseAt, normal: np.ndarray) -> np.ndarray:
    """Draws of the noise (m, D) at places (m, D), made from standard normal numbers (m, D)."""
    return noise_of_places(points, noise_at).scale(normal)


class NoiseOfRandomCells:
    """Default noise of unobserved cells: the noise of an observed cell drawn at random, independently of the place.

    Parameters
    ----------
    noise
        (n, D) or (n, D, D) noise of the observed cells; only noise with finite values is drawn.
    seed
        Seed of the draw.

    Raises
    ------
    DataError
        If no cell has noise with finite values.
    """

    def __init__(self, noise: np.ndarray, seed: int) -> None:
        finite = np.isfinite(noise).all(axis=tuple(range(1, noise.ndim)))
        self._noise, self._seed = noise[finite], seed
        if not len(self._noise):
            raise DataError(
                "no cell has a finite noise in all features, which unobserved cells could have: give noise_at"
            )

    def __call__(self, x: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(self._seed)
        return self._noise[rng.integers(len(self._noise), size=len(x))]
