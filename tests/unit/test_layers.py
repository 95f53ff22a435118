"""The layers of the package: imports point downwards only, and files and functions stay small."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "cohortgmm"

#: Layers of the package, bottom up, by the first part of a module's name.
PACKAGE = (
    {"errors", "arguments", "arrays", "display", "memory", "columns", "config", "storage"},
    {"mixture"},
    {"cohort", "inputs"},
    {"compare"},
    {"plots", "report", "pipeline"},
    {"api", "__main__", "scripts", ""},
)

#: Layers of ``mixture``, bottom up; the empty name is its face, ``__init__``.
MIXTURE = (
    {"numerics", "settings"},
    {"observations"},
    {"density"},
    {"estep"},
    {"em"},
    {"model", "result", "criteria", "fit", "stacking"},
    {""},
)

#: Packages and modules that know the mixtures by the face of ``cohortgmm.mixture`` only.
OUTSIDE_MIXTURE = ("cohort", "inputs", "compare", "plots", "report", "pipeline", "api", "__main__", "scripts")

MOST_LINES_OF_FILE, MOST_LINES_OF_FUNCTION = 400, 60

#: Functions that are longer, with the reason.
LONG_FUNCTIONS: dict[str, str] = {}

#: What is still to be changed. An entry that is no longer true must be removed; in the end nothing is left.
LEFT: set[str] = set()


@functools.cache
def files() -> dict[str, Path]:
    """All modules of the package and the scripts, by name without ``cohortgmm.``; a package is its ``__init__``."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found | {f"scripts.{path.stem}": path for path in sorted((ROOT / "scripts").glob("*.py"))}


@functools.cache
def tree(name: str) -> ast.Module:
    return ast.parse(files()[name].read_bytes())


@functools.cache
def exports(name: str) -> dict[str, str]:
    """The names of a lazy face and the modules that they come from."""
    for node in tree(name).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "_EXPORTS" for target in targets):
            return {key: value.removeprefix("cohortgmm.") for key, value in ast.literal_eval(node.value).items()}
    return {}


def imported(name: str) -> Iterator[tuple[str, str]]:
    """What a module imports, also within functions and for type checkers: module as written, and where it comes from.

    The two differ for the names of a lazy face.
    """
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            ours = [alias.name for alias in node.names if alias.name.split(".")[0] == "cohortgmm"]
            yield from ((module, module) for module in (own.partition(".")[2] for own in ours) if module)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cohortgmm":
            assert not node.level
            written = node.module.partition(".")[2]
            for alias in node.names:
                below = f"{written}.{alias.name}".lstrip(".")
                if alias.name == "__version__":  # a constant, which loads nothing else
                    continue
                if below in files():
                    yield below, below
                else:
                    yield written, exports(written).get(alias.name, written)


@functools.cache
def edges() -> set[tuple[str, str]]:
    """Importing and imported module; the names of a face count as the modules that they come from."""
    found = {(name, origin) for name in files() for _, origin in imported(name)}
    return {(name, origin) for name, origin in found if name != origin}


def layer_of(name: str, layers: tuple[set[str], ...]) -> int | None:
    return next((i for i, layer in enumerate(layers) if name.split(".")[0] in layer), None)


def upward(within: str, layers: tuple[set[str], ...]) -> set[str]:
    """Imports that point upwards within a package, and modules of it that belong to no layer."""
    inner = {name: name for name in files()}
    if within:
        inner = {name: name[len(within) :].lstrip(".") for name in inner if f"{name}.".startswith(f"{within}.")}
    layer = {name: layer_of(short, layers) for name, short in inner.items()}
    found = {f"{name} is in no layer" for name in layer if layer[name] is None}
    for name, origin in edges():
        if None not in (layer.get(name), layer.get(origin)) and layer[name] < layer[origin]:
            found.add(f"{name} -> {origin}")
    return {f"{within or 'package'}: {entry}" for entry in found}


def circles() -> set[str]:
    """Modules that import themselves through others."""
    reach = {name: {origin for other, origin in edges() if other == name} for name in files()}
    for middle in reach:
        for name in reach:
            if middle in reach[name]:
                reach[name] |= reach[middle]
    return {f"circle: {name}" for name in reach if name in reach[name]}


def past_the_face() -> set[str]:
    """Modules outside of ``mixture`` that import a module within it."""
    return {
        f"past the face: {name}"
        for name in files()
        if name.split(".")[0] in OUTSIDE_MIXTURE
        for written, _ in imported(name)
        if written.startswith("mixture.")
    }


def long_files() -> set[str]:
    return {
        f"long file: {name}"
        for name, path in files().items()
        if len(path.read_bytes().splitlines()) > MOST_LINES_OF_FILE
    }


@functools.cache
def long_functions() -> set[str]:
    return {
        f"{name}.{node.name}"
        for name in files()
        for node in ast.walk(tree(name))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and _n_lines(node) > MOST_LINES_OF_FUNCTION
    }


def _n_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = function.body[0]
    documented = ast.get_docstring(function, clean=False) is not None
    return function.end_lineno - function.lineno + 1 - documented * (first.end_lineno - first.lineno + 1)


RULES = {
    "package": lambda: upward("", PACKAGE),
    "mixture": lambda: upward("mixture", MIXTURE),
    "circle": circles,
    "past the face": past_the_face,
    "long file": long_files,
    "long function": lambda: {f"long function: {name}" for name in long_functions() - set(LONG_FUNCTIONS)},
}


@pytest.mark.parametrize("rule", RULES)
def test_no_violation_but_those_that_are_left(rule):
    left = {entry for entry in LEFT if entry.startswith(f"{rule}: ")}
    found = RULES[rule]()
    assert sorted(found - left) == [], "new violations"
    assert sorted(left - found) == [], "these are gone: remove them from LEFT"


def test_every_exception_is_needed():
    assert {entry.split(": ")[0] for entry in LEFT} <= set(RULES)
    assert set(LONG_FUNCTIONS) <= long_functions()


def test_the_graph_is_that_of_the_package():
    """The imports are found: a function-level one, one of a package's module, and one through a lazy face."""
    assert ("__main__", "pipeline.status") in edges()
    assert ("scripts.fit", "pipeline.job") in edges()
    assert exports("")["fit_gmm"] == "api"
    assert not any(origin == "" for _, origin in edges())
