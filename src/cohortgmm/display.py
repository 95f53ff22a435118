"""How messages show values, texts, paths and errors."""

import os
import sys
from numbers import Real

#: Longest value that :func:`format_value` shows.
_LONGEST = 60


def format_value(value: object) -> str:
    """A value as Python writes it if this is one short line, else the name of its type.

    Examples
    --------
    >>> print(format_value(0.5), format_value("diag"), format_value([1, 2]))
    0.5 'diag' list
    """
    if isinstance(value, str | bool | Real | type(None)) or _is_numpy_scalar(value):
        text = repr(value)
        if len(text) <= _LONGEST:
            return text
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def format_repr(value: object) -> str:
    """A value as Python writes it, however long, on one line."""
    text = repr(value)
    return " ".join(text.split()) if "\n" in text else text


def format_text(text: str) -> str:
    """A text for a line of a terminal: unchanged if all its characters are visible, else as Python writes it.

    Examples
    --------
    >>> print(format_text("P 1 é"), format_text("P\\n1"), format_text(" "))
    P 1 é 'P\\n1' ' '
    """
    return text if text.isprintable() and text == text.strip() and text else repr(text)


def format_path(path: str | os.PathLike[str]) -> str:
    """A path in UTF-8, as configurations and tables are written, whatever the locale."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def format_error(error: BaseException) -> str:
    """Type and message of an exception of another library, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def _is_numpy_scalar(value: object) -> bool:
    numpy = sys.modules.get("numpy")  # not imported here, because the start of a run does not need it
    return numpy is not None and isinstance(value, numpy.generic)
