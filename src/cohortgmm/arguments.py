"""Checks of arguments, which raise a ConfigError of one line for an invalid value."""

from collections.abc import Collection
from contextlib import suppress
from numbers import Integral, Real
from typing import Any

import numpy as np

from cohortgmm.display import format_value
from cohortgmm.errors import ConfigError

#: Types, besides integers, from which numpy can make a random generator.
_SOURCES = (np.random.Generator, np.random.BitGenerator, np.random.SeedSequence, np.random.RandomState)

#: Largest absolute value of a feature; products of the squares of larger values could overflow.
LARGEST = 1e100


def check_choice(name: str, value: Any, allowed: Collection[str]) -> None:
    """Raise a ConfigError for a value that is not among those allowed."""
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {format_value(value)}")


def check_count(name: str, value: Any, least: int) -> int:
    """An integer of Python or numpy of at least ``least``, as int."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral) or value < least:
        raise ConfigError(f"{name} is out of range: {format_value(value)}; give an integer of at least {least}")
    return int(value)


def check_number(name: str, value: Any, least: float, *, above: bool = False) -> float:
    """A finite number as float, of at least ``least`` or, with ``above``, larger than ``least``."""
    number = np.nan
    if isinstance(value, Real) and not isinstance(value, bool | np.bool_):
        with suppress(OverflowError):  # an integer beyond the range of floating-point numbers
            number = float(value)
    if not np.isfinite(number) or not (least < number if above else least <= number):
        bound = f"above {least:g}" if above else f"of at least {least:g}"
        raise ConfigError(f"{name} is out of range: {format_value(value)}; give a finite number {bound}")
    return number


def generator(source: Any, name: str = "random_state") -> np.random.Generator:
    """The random generator of a seed, or the given one.

    Parameters
    ----------
    source
        None for a random seed, an integer of at least 0 (of any size), a list of such integers, or a generator or seed
        sequence of numpy.
    name
        Name of the argument in messages.

    Raises
    ------
    ConfigError
        For anything else.
    """
    if source is None or isinstance(source, _SOURCES):
        return np.random.default_rng(source)
    numbers = np.atleast_1d(source) if isinstance(source, np.ndarray) else source
    numbers = list(numbers) if isinstance(numbers, list | tuple | np.ndarray) else [numbers]
    if numbers and all(isinstance(one, Integral) and not isinstance(one, bool) and int(one) >= 0 for one in numbers):
        return np.random.default_rng(numbers if len(numbers) > 1 else numbers[0])
    raise ConfigError(
        f"{name} must be an integer of at least 0, None, or a generator or seed sequence of numpy, got "
        f"{format_value(source)}"
    )
