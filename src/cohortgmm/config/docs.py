"""Writes the schemas in ``workflow/schemas`` and the page ``config/README.md`` from the models of the configuration.

Run as ``python -m cohortgmm.config.docs`` in the folder of the Snakefile.
"""

import json
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cohortgmm.config import Config, PatientRow
from cohortgmm.config.base import section_of

HEADER = """# The configuration

`config.yaml` is read when `snakemake` runs without `--configfile`; a file named there replaces it, nothing is merged.
Keys that are left out have their defaults. A key that is not in the tables, a wrong type or a value out of range stops the
run before any job starts, with one line per problem. JSON schemas with the same rules, for editors and other programs, are
in `workflow/schemas`.

| file | for |
|---|---|
| `config.yaml` | the default; as it stands, the demo cohort |
| `demo.yaml` | the demo (`make demo`) |
| `example_counts.yaml` | raw counts of several batches, corrected with Harmony |
| `example_embedding.yaml` | an existing embedding (scVI, an integrated PCA) |
| `example_corrections.yaml` | noise, missing features, sorted cells, debris |
| `example_sheet.yaml` | selected patients by a sample sheet |

This page is made from the models in `src/cohortgmm/config/sections.py` and `gmm.py` (`make docs`).
"""


def config_page() -> str:
    """The text of ``config/README.md``."""
    sections = [HEADER, _table("Keys", Config), *_sections(Config)]
    sections.append(_table("The sample sheet", PatientRow, PatientRow.__doc__ or ""))
    return "\n".join(sections)


def _sections(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Tables of all sections within a section, depth first."""
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is not None:
            yield _table(f"`{path}{name}:`", section, (section.__doc__ or "").strip())
            yield from _sections(section, f"{path}{name}.")


def schema_text(model: type[BaseModel]) -> str:
    """JSON schema of a model."""
    return json.dumps(model.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


#: Content by path, relative to the folder of the Snakefile.
PAGES: dict[str, Callable[[], str]] = {
    "config/README.md": config_page,
    "workflow/schemas/config.schema.json": lambda: schema_text(Config),
    "workflow/schemas/patients.schema.json": lambda: schema_text(PatientRow),
}


def _table(title: str, model: type[BaseModel], summary: str = "") -> str:
    rows = [
        f"| `{name}` | {_kind(field)} | {_default(field)} | {field.description} |"
        for name, field in model.model_fields.items()
        if field.description
    ]
    head = [f"## {title}", ""] + ([summary, ""] if summary else [])
    return "\n".join([*head, "| key | type | default | meaning |", "|---|---|---|---|", *rows, ""])


def _kind(field: FieldInfo) -> str:
    limits = [
        f"{sign} {getattr(rule, name):g}"
        for rule in field.metadata
        for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if hasattr(rule, name)
    ]
    return _type_name(field.annotation) + (" " + ", ".join(limits) if limits else "")


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(part) for part in arguments)
    if origin is list:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return f"feature to {_type_name(arguments[1])}"
    if section_of(annotation) is not None:
        return "section"
    names = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null"}
    return names[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if section_of(field.annotation) is not None and field.default is not None and not isinstance(field.default, list):
        return "as below"
    return f"`{json.dumps(field.default)}`" if not isinstance(field.default, str) else f"`{field.default}`"


def main() -> None:
    """Write the pages."""
    for name, page in PAGES.items():
        Path(name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
