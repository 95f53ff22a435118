"""Collecting all problems of a configuration, and wording each in one line."""

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from cohortgmm.config.base import Section, section_of
from cohortgmm.display import format_repr
from cohortgmm.errors import ConfigError

_Model = TypeVar("_Model", bound=Section)

#: Position of a key in the configuration, such as ``("gmm", "tol")``.
_Path = tuple[str, ...]


def validated(model: type[_Model], values: Mapping[str, Any], source: str) -> _Model:
    """Check values and return them as a section of the configuration.

    Parameters
    ----------
    model
        The class of the section.
    values
        Value of every key that is given.
    source
        Name of the configuration in messages.

    Raises
    ------
    ConfigError
        For all problems at once, one line each, with the dotted path of the key.
    """
    # YAML reads a section whose keys are all commented out as null.
    values = {key: {} if value is None and _is_section(model, key) else value for key, value in values.items()}
    problems, faulty, misspelt = [], set(), set()
    try:
        result = model.model_validate(values)
    except ValidationError as error:
        items = _one_for_each_key(values, error.errors())
        problems = [_problem(model, item) for item in items]
        faulty = {tuple(map(str, item["loc"])) for item in items}
        misspelt = {".".join(map(str, item["loc"][:-1])) for item in items if item["type"] == "extra_forbidden"}
        # The valid keys are checked for conflicts too, so that all problems are reported together.
        result = model.model_validate(_without(values, faulty))
    problems += _conflicts(result, {".".join(path) for path in faulty}, misspelt)
    if len(problems) > 1:
        raise ConfigError("\n  ".join([f"{source}: {len(problems)} problems", *problems]))
    if problems:
        raise ConfigError(f"{source}: {problems[0]}")
    return result


def _conflicts(section: Section, faulty: Collection[str], misspelt: Collection[str]) -> Iterable[str]:
    """Conflicts among valid keys.

    A conflict is not reported if one of its keys, an element of such a key, or the section around it is faulty.
    It is not reported either if the section has a misspelt key, because this may be the key that is missing.
    """
    for keys, message in section.conflicts():
        if any("." in key and key.rpartition(".")[0] in misspelt for key in keys):
            continue
        pairs = ((f"{key}.", f"{bad}.") for key in keys for bad in faulty)
        if not any(key.startswith(bad) or bad.startswith(key) for key, bad in pairs):
            yield message


def _one_for_each_key(values: Mapping[str, Any], errors: Sequence[Any]) -> list[dict[str, Any]]:
    """Pydantic's errors, one per key; the paths are without the names that Pydantic gives to the members of a union."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for error in errors:
        value, path = values, []
        for part in error["loc"]:
            inside = part in value if isinstance(value, Mapping) else isinstance(part, int)
            if inside and isinstance(value, (Mapping, list, tuple)):
                value = value[part]
            elif error["type"] != "missing":
                continue
            path.append(part)
        first = found.setdefault(tuple(path), {**error, "loc": tuple(path)})
        if error["msg"] not in first["msg"]:
            first["msg"] = f"{first['msg']} or {error['msg'][0].lower()}{error['msg'][1:]}"
    deeper = {path[:i] for path in found for i in range(len(path))}
    return [error for path, error in found.items() if path not in deeper]


def _is_section(model: type[BaseModel], key: str) -> bool:
    field = model.model_fields.get(key)
    return field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _without(values: Mapping[str, Any], faulty: Collection[_Path]) -> dict[str, Any]:
    """The values without faulty keys; a required key that is missing gets a placeholder."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        inner = [path[1:] for path in faulty if path[0] == str(key)]
        if not inner:
            result[key] = value
        elif isinstance(value, Mapping) and all(inner):
            result[key] = _without(value, inner)
    return result | {path[0]: "missing" for path in faulty if path and path[0] in ("input", "patient_col")}


def _problem(model: type[BaseModel], item: Mapping[str, Any]) -> str:
    """The line about one faulty key."""
    names = [str(part) for part in item["loc"]]
    dotted = ".".join(names)
    if item["type"] == "extra_forbidden":
        for part in names[:-1]:
            if not part.isdigit():
                model = section_of(model.model_fields[part].annotation) or model
        close = difflib.get_close_matches(names[-1], model.model_fields, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(model.model_fields)}"
        return f"{dotted}: unknown key; {hint}"
    if item["type"] == "missing":
        return f"{dotted}: is required"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{dotted}: {message}" if dotted else message
    return f"{dotted}: {message[0].lower()}{message[1:]}, got {format_repr(item['input'])}"
