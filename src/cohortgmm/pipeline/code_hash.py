"""Hash of the code that the results of a rule come from."""

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Modules that do not affect the numbers in the results, because they only report, lock or store.
_WITHOUT_RESULTS = {
    "cohortgmm.display",
    "cohortgmm.errors",
    "cohortgmm.pipeline.job",
    "cohortgmm.pipeline.lock",
    "cohortgmm.storage.atomic",
    "cohortgmm.storage.marks",
    "cohortgmm.storage.names",
    "cohortgmm.storage.npz",
}


@functools.cache
def code_of(script: str) -> str:
    """Hash of the code that a script's results come from: the script and every module of this package that it imports.

    As a parameter of a rule, the hash makes Snakemake rerun the rule's jobs if that code changes. Changes of comments,
    docstrings and layout do not change the hash. It does not depend on the version of Python or on where the package is
    installed.

    Parameters
    ----------
    script
        Path of the script.
    """
    digest = hashlib.sha256()
    for path in _imported_files(Path(script)):
        digest.update(_code_digest(path))
    return digest.hexdigest()[:16]


def _imported_files(script: Path) -> list[Path]:
    """The script and the files of all modules that it imports, directly or indirectly, in order of their names."""
    found, waiting = {"": script}, [script]
    while waiting:
        for name, path in _imported_modules(waiting.pop()).items():
            if name not in found and name not in _WITHOUT_RESULTS:
                found[name] = path
                waiting.append(path)
    return [found[name] for name in sorted(found)]


@functools.cache
def _imported_modules(path: Path) -> dict[str, Path]:
    """Modules of this package that a file imports, read from its syntax tree, because importing takes seconds.

    Some packages import their names only on first use (``_EXPORTS`` in ``__init__.py``). A name that is imported from
    such a package counts as the module that defines it, and the package itself does not count.
    """
    names = set()
    for node in _executed(_syntax_tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            exports = _lazy_exports(_module_file(node.module))
            # `from package import name` may import a module; names without a file of their own are removed below.
            names |= {node.module} | {exports.get(alias.name, f"{node.module}.{alias.name}") for alias in node.names}
    # Importing a module also runs the __init__.py of every package that contains it.
    names |= {".".join(name.split(".")[:i]) for name in names for i in range(1, name.count(".") + 1)}
    files = {name: _module_file(name) for name in names}
    return {name: file for name, file in files.items() if file is not None and not _lazy_exports(file)}


def _module_file(name: str) -> Path | None:
    """The file of a module or package within cohortgmm; None for any other name."""
    if not name.startswith("cohortgmm."):
        return None
    path = Path(__file__).parents[1].joinpath(*name.split(".")[1:])
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _lazy_exports(path: Path | None) -> dict[str, str]:
    """Names that a package imports only on first use, and the modules that define them."""
    for node in _syntax_tree(path).body if path is not None and path.name == "__init__.py" else ():
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_EXPORTS":
            return ast.literal_eval(node.value)
    return {}


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a syntax tree except those in blocks that only type checkers read (``if TYPE_CHECKING``)."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING"):
            yield from _executed(child)


@functools.cache
def _syntax_tree(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes())


@functools.cache
def _code_digest(path: Path) -> bytes:
    digest = hashlib.sha256()

    def visit(node: Any) -> None:
        # Empty fields are left out (ast.dump includes them), because versions of Python differ in which they have.
        if isinstance(node, ast.AST):
            digest.update(type(node).__name__.encode() + b"(")
            for name, value in ast.iter_fields(node):
                if value not in (None, []) and name not in ("kind", "type_comment"):
                    digest.update(name.encode() + b"=")
                    visit(_without_docstring(node, value) if name == "body" else value)
            digest.update(b")")
        elif isinstance(node, list):
            for item in node:
                visit(item)
        else:
            digest.update(repr(node).encode() + b";")

    visit(_syntax_tree(path))
    return digest.digest()


def _without_docstring(node: ast.AST, body: Any) -> Any:
    documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
    return body[1:] if documented and ast.get_docstring(node, clean=False) is not None else body
