"""What the sections of the configuration have in common: their base class and the types of their keys."""

from collections.abc import Callable
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WrapValidator


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1e-3 (no dot) as text.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _object_or(value: Any, validate: Callable[[Any], Any]) -> Any:
    """A value that YAML cannot hold, such as a function or an array, as it is; any other value is validated."""
    from_yaml = value is None or isinstance(value, str | bytes | bool | int | float | list | dict)
    return validate(value) if from_yaml else value


#: A number, which YAML may have read as text.
Number = Annotated[float, BeforeValidator(_number)]

#: Index of a component, from 0.
Component = Annotated[int, Field(ge=0)]

#: Name of a function, ``file.py:function`` or ``module:function``; a notebook may give the function itself.
Function = Annotated[Annotated[str, Field(pattern=r"^[^:]+:[A-Za-z_]\w*$")] | None, WrapValidator(_object_or)]

#: Path of a mixture; a notebook may give the mixture itself.
Mixture = Annotated[Annotated[str, Field(min_length=1)] | None, WrapValidator(_object_or)]

#: Dotted keys whose values exclude each other, and the reason.
Conflict = tuple[tuple[str, ...], str]


class Section(BaseModel):
    """A section of the configuration; it refuses unknown keys and converts no types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    def conflicts(self) -> list[Conflict]:
        """Keys whose values are each valid, but exclude each other."""
        return []


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section in a type annotation: the type itself, a member of a union, or the elements of a list; else None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(section_of, get_args(annotation))), None)
