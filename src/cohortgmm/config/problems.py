"""What the sections of the configuration have in common."""

from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1e-3 (no dot) as text.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Number = Annotated[float, BeforeValidator(_number)]


#: How a function of the user is named.
FUNCTION = r"^[^:]+:[A-Za-z_]\w*$"

#: Dotted keys that do not go together, and why.
Conflict = tuple[tuple[str, ...], str]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    def conflicts(self) -> list[Conflict]:
        """Keys that are good by themselves and do not go together."""
        return []


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a type is, or may be, or holds a list of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(section_of, get_args(annotation))), None)
