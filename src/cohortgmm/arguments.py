"""Arguments of users: what they may be, refused with one line where they are not."""

from collections.abc import Collection
from contextlib import suppress
from numbers import Integral, Real
from typing import Any

import numpy as np

from cohortgmm.display import format_value
from cohortgmm.errors import ConfigError

#: What numpy makes generators of, besides whole numbers.
_SOURCES = (np.random.Generator, np.random.BitGenerator, np.random.SeedSequence, np.random.RandomState)

#: Values of features beyond this are refused: their squares, and products of these with others, would overflow.
LARGEST = 1e100


def check_choice(name: str, value: Any, allowed: Collection[str]) -> None:
    """Refuse a name that is not among those allowed."""
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {format_value(value)}")


def check_count(name: str, value: Any, least: int) -> int:
    """A whole number of at least ``least``, of Python or numpy."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral) or value < least:
        raise ConfigError(f"{name} is out of range: {format_value(value)}; give an integer of at least {least}")
    return int(value)


def check_number(name: str, value: Any, least: float, *, above: bool = False) -> float:
    """A finite number of at least ``least``, or ``above`` it."""
    number = np.nan
    if isinstance(value, Real) and not isinstance(value, bool | np.bool_):
        with suppress(OverflowError):  # an integer beyond the range of floating-point numbers
            number = float(value)
    if not np.isfinite(number) or not (least < number if above else least <= number):
        bound = f"above {least:g}" if above else f"of at least {least:g}"
        raise ConfigError(f"{name} is out of range: {format_value(value)}; give a finite number {bound}")
    return number


def generator(source: Any, name: str = "random_state") -> np.random.Generator:
    """The generator that a seed stands for, or a given one.

    Parameters
    ----------
    source
        None for fresh entropy, an integer of at least 0 (of any size), several of them, or a generator or seed sequence
        of numpy.
    name
        What the message of an error calls it.

    Raises
    ------
    ConfigError
        For anything else.
    """
    if source is None or isinstance(source, _SOURCES):
        return np.random.default_rng(source)
    numbers = np.atleast_1d(source) if isinstance(source, np.ndarray) else source
    numbers = list(numbers) if isinstance(numbers, list | tuple | np.ndarray) else [numbers]
    if numbers and all(isinstance(one, Integral) and not isinstance(one, bool) and one >= 0 for one in numbers):
        return np.random.default_rng(numbers if len(numbers) > 1 else numbers[0])
    raise ConfigError(
        f"{name} must be an integer of at least 0, None, or a generator or seed sequence of numpy, got "
        f"{format_value(source)}"
    )
