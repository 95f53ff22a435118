"""Reading the file of the configuration; errors are one line."""

import os
from pathlib import Path
from typing import Any

from cohortgmm.errors import ConfigError


def read_config_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Keys and values of a configuration file; none for an empty file.

    Raises
    ------
    ConfigError
        If the file cannot be read, is no YAML, or is not a mapping of keys to values.
    """
    import yaml  # only here: jobs, which import this package too, do not read the file

    if not Path(path).exists():
        raise ConfigError(f"no such configuration: {Path(path).absolute()}; name another with --configfile")
    try:
        # utf-8-sig: some editors write a byte order mark.
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no text in UTF-8: save it as such") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold keys with values, got a {type(values).__name__}")
    if _holds_itself(values, ()):
        raise ConfigError(f"{path} has an alias (*) that refers to a value around it: write out the keys instead")
    return values


def _holds_itself(value: Any, above: tuple[int, ...]) -> bool:
    """Whether a collection is among its own elements."""
    if not isinstance(value, (dict, list)):
        return False
    if id(value) in above:
        return True
    elements = value.values() if isinstance(value, dict) else value
    return any(_holds_itself(element, (*above, id(value))) for element in elements)
