"""What the Snakefile asks: the checked configuration, the jobs that follow from it, and the code they run."""

import ast
import functools
import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cohortgmm.cohort.selection import select_k
from cohortgmm.cohort.tables import read_patients, read_scores
from cohortgmm.config import Config, read_config
from cohortgmm.display import format_path
from cohortgmm.errors import CohortgmmError, ConfigError
from cohortgmm.pipeline.inputs import find_files, result_of_run
from cohortgmm.pipeline.job import ATTEMPT_VARIABLE, LEVEL_VARIABLE
from cohortgmm.storage.names import COHORT, escape_id

PREFIX = "cohortgmm."

#: Modules that say and store things but make no results.
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


def load_config(
    config: Mapping[str, Any], source: str, workflow_dir: str | os.PathLike, *, refuse_results: bool = True
) -> Config:
    """Check the configuration and find its files, see :func:`cohortgmm.pipeline.inputs.find_files`.

    Parameters
    ----------
    config
        The parsed YAML.
    source
        The configuration file, for messages.
    workflow_dir
        The workflow's own folder.
    refuse_results
        Whether files are refused that are results of the run in the working directory.

    Raises
    ------
    ConfigError
        All problems at once, one line each.
    """
    checked = read_config(config, source)
    named = {"input": checked.input, "patients": checked.patients, **checked.gmm.files}
    found = find_files(named, source, workflow_dir, refuse_results=refuse_results)
    gmm = checked.gmm.with_files({key: path for key, path in found.items() if key.startswith("gmm.")})
    if gmm.reference is not None:
        from cohortgmm.mixture import GaussianMixture  # numpy, which the Snakefile can do without

        reference = GaussianMixture.load(gmm.reference)
        gmm = gmm.for_reference(reference.n_components, reference.covariance_type, source)
    tops = {key: path for key, path in found.items() if not key.startswith("gmm.")}
    return checked.model_copy(update={**tops, "gmm": gmm})


def check_config_files(files: Iterable[str | os.PathLike]) -> None:
    """Refuse files of the configuration that give a key twice, of which every reader would take the last.

    Raises
    ------
    ConfigError
        Naming file, key and lines.
    """
    for file in files:
        try:
            text = Path(file).read_text(encoding="utf-8")
            json.loads(text, object_pairs_hook=functools.partial(_check_pairs, str(file)))
        except (OSError, UnicodeDecodeError):
            continue  # whoever reads it says what is wrong with it
        except json.JSONDecodeError:
            _check_yaml(file, text)


def _check_pairs(file: str, pairs: Sequence[tuple[str, Any]]) -> None:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"{file}: the key {key} is given twice in the same place: remove one of them")


def _check_yaml(file: str | os.PathLike, text: str) -> None:
    import yaml  # here, as jobs need not look again

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return
    for path, first, second in _repeated_keys(node, (), set()):
        lines = f"line {first}" if first == second else f"lines {first} and {second}"
        raise ConfigError(f"{file}: the key {'.'.join(path)} is given twice, in {lines}: remove one of them")


def _repeated_keys(node: Any, path: tuple[str, ...], visited: set[int]) -> Iterator[tuple[tuple[str, ...], int, int]]:
    """Keys that a mapping of YAML, or one within it, has twice: path and the two lines."""
    if node is None or not isinstance(node.value, list) or id(node) in visited:
        return
    visited.add(id(node))  # what an alias repeats
    if node.id == "sequence":
        for i, item in enumerate(node.value):
            yield from _repeated_keys(item, (*path, str(i)), visited)
        return
    seen: dict[tuple[str, str], int] = {}
    for key, value in node.value:
        if isinstance(key.value, str):
            # Tags tell 1 from "1"; a merge key (<<) may come again.
            identity, line = (key.tag, key.value), key.start_mark.line + 1
            if identity in seen and not key.tag.endswith(":merge"):
                yield (*path, key.value), seen[identity], line
            seen.setdefault(identity, line)
        yield from _repeated_keys(value, (*path, str(key.value)), visited)


def prepare_jobs(source: str, *, verbose: bool) -> None:
    """Let the jobs, which inherit this environment, find the package, know how much to log and which attempt they are."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    os.environ[LEVEL_VARIABLE] = "INFO" if verbose else "WARNING"
    os.environ[ATTEMPT_VARIABLE] = _attempt(sys.argv)
    if sys.getfilesystemencoding() in ("utf-8", "ascii"):  # in others the names of files would read differently
        os.environ["PYTHONUTF8"] = "1"
    # A matplotlibrc or a backend that matplotlib cannot load would end a job at its imports; figures use neither.
    os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}


def check_surroundings(workflow_dir: str | os.PathLike) -> None:
    """Refuse what would end a run or its jobs with a traceback.

    That is a folder of the workflow whose name Snakemake takes for a pattern, packages that do not go together, or a
    matplotlibrc that is no text.

    Raises
    ------
    ConfigError
        Naming folder, packages or file.
    """
    if {"{", "}"} & set(str(workflow_dir)):
        raise ConfigError(
            f"the workflow's folder has braces in its name, which Snakemake takes for a pattern in the paths of scripts: "
            f"rename {str(workflow_dir)!r}"
        )
    versions = {}
    for name in ("anndata", "pandas"):
        with suppress(PackageNotFoundError):  # where jobs have environments of their own
            versions[name] = version(name)
    numbers = {name: tuple(map(int, re.findall(r"\d+", text)[:3])) for name, text in versions.items()}
    if numbers.get("pandas", (0,)) >= (3,) and numbers.get("anndata", (1,)) < (0, 12, 7):
        raise ConfigError(
            f"anndata {versions['anndata']} cannot write the texts of pandas {versions['pandas']}: install anndata 0.13 or "
            "newer, or pandas below 3"
        )
    settings = Path("matplotlibrc")  # of the working directory, which comes before all others
    try:
        text = settings.read_bytes() if settings.is_file() else b""
    except OSError:
        return
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{settings.absolute()}: matplotlib reads it and it is no UTF-8 ({error}): write it anew or remove it; the "
            "figures do not depend on it"
        ) from None


def _attempt(arguments: Sequence[str]) -> str:
    """Which attempt the Snakemake of a job on a cluster is for: it does not know yet when it reads the workflow."""
    return arguments[arguments.index("--attempt") + 1] if "--attempt" in arguments else "1"


@functools.cache
def code_of(script: str) -> str:
    """Hash of the code that a script's results come from: its own, and that of every module of ours it imports.

    As a parameter of a rule it reruns the rule's jobs when that code changes, wherever the package is installed, and only
    then: comments, docstrings and layout do not count, and the hash is the same for all versions of Python.

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
    """The script and, transitively, the files of the modules of ours it imports, in order of their names."""
    found, waiting = {"": script}, [script]
    while waiting:
        for name, path in _imported_modules(waiting.pop()).items():
            if name not in found and name not in _WITHOUT_RESULTS:
                found[name] = path
                waiting.append(path)
    return [found[name] for name in sorted(found)]


@functools.cache
def _imported_modules(path: Path) -> dict[str, Path]:
    """Modules of ours that a file imports; found by their files, as importing them here would cost seconds."""
    names = set()
    for node in _executed(_syntax_tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` imports a module, `from module import name` does not: both are tried.
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {_lazy_exports(node.module).get(alias.name, node.module) for alias in node.names}
    names |= {name.rpartition(".")[0] for name in names}  # packages, which Python loads before what is in them
    names |= {name.rpartition(".")[0] for name in names}
    root = Path(__file__).parents[1]
    files = {name: _module_file(root.joinpath(*name.split(".")[1:])) for name in names if name.startswith(PREFIX)}
    return {name: file for name, file in files.items() if file is not None}


def _module_file(path: Path) -> Path | None:
    """The file of a module or a package at this place; None for neither."""
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@functools.cache
def _lazy_exports(package: str) -> dict[str, str]:
    """Names that a package of ours imports when they are asked for, and the modules that they come from."""
    path = Path(__file__).parents[1].joinpath(*package.split(".")[1:], "__init__.py")
    if not (package.startswith(PREFIX) and path.is_file()):
        return {}
    for node in _syntax_tree(path).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_EXPORTS":
            return ast.literal_eval(node.value)
    return {}


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """A piece of code and all in it, but for what only type checkers read."""
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
        # ast.dump differs between versions of Python: fields that are empty come and go. Here they do not count.
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


def part_names(component_sharing: str, table: str | os.PathLike) -> dict[str, None]:
    """File names of what is fitted, in order: every kept patient of the table, or the whole cohort as one.

    Returns
    -------
    dict
        The names as keys, as every job asks whether its own is one of them.

    Raises
    ------
    CohortgmmError
        If an array file of the table is not beside it any more.
    """
    stat = os.stat(table)
    return _part_names(component_sharing, str(table), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1)
def _part_names(component_sharing: str, table: str, *version: int) -> dict[str, None]:
    # Cached for as long as the table stays the same: every job's input function asks.
    kept = [row["file"] for row in read_patients(table) if row["status"] == "ok"]
    names = [COHORT] if component_sharing == "global" else kept
    folder = Path(table).with_suffix("")
    there = {path.stem for path in folder.glob("*.npz")} if folder.is_dir() else set()
    lost = [name for name in names if name not in there]
    if lost:
        raise CohortgmmError(
            f"{len(lost)} array files are gone, the first is {folder / lost[0]}.npz: run once with -R split"
        )
    return dict.fromkeys(names)


def sheet_part_names(component_sharing: str, patients: Iterable[str], table: str | os.PathLike = "") -> dict[str, None]:
    """As :func:`part_names`, from the patients of a sample sheet, but those the table, if there, says were left out."""
    if component_sharing == "global":
        return {COHORT: None}
    rows = read_patients(table) if table and os.path.exists(table) else []
    dropped = {row["patient"] for row in rows if row["status"] == "dropped"}
    return dict.fromkeys(escape_id(patient) for patient in patients if patient not in dropped)


def chosen_k(table: str | os.PathLike, metric: str) -> int | str:
    """The k that a criterion chooses, from the table of a patient's scores; a text while there is no such table.

    As a parameter of the refit it reruns this one where another criterion chooses another k, and only there.
    """
    try:
        rows = read_scores(table)
        return select_k(rows, metric)["k"] if rows else "not chosen yet"
    except (OSError, CohortgmmError):  # a job will say what is wrong with the table
        return "not chosen yet"


def has_lost_patients(results: str | os.PathLike) -> bool:
    """Whether the table of patients or their positions are not there, and results that follow from them are.

    So are they where an earlier version, which wrote no positions, has divided the cohort.
    """
    folder = Path(results)
    split = [(folder / name).exists() for name in ("patients.tsv", "positions.npz")]
    behind = ("scores.tsv", "selection.tsv", "cohort_gmm.h5ad", "models", "fits")
    return not all(split) and (any(split) or any((folder / name).exists() for name in behind))


def check_targets(configfiles: Sequence[str | os.PathLike]) -> None:
    """Refuse targets that Snakemake has taken for configurations.

    Raises
    ------
    ConfigError
        If what follows ``--configfile FILE`` are results.
    """
    first, *others = configfiles or [""]
    for path in others:
        result = result_of_run(path)
        if result or Path(path).suffix not in (".yaml", ".yml", ".json"):
            target = f"results/{result}" if result else format_path(path)
            raise ConfigError(
                f"{target} was taken for a configuration: --configfile takes all that follows it, so put -- before "
                f"targets: snakemake --configfile {shlex.quote(format_path(first))} -- {shlex.quote(target)}"
            )


def check_results_folder(folder: str | os.PathLike) -> None:
    """Refuse a results folder that is something else.

    Raises
    ------
    CohortgmmError
        If it is no folder, or a link to one that is not there.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise _cannot_write(path, "is not a folder")
    if path.is_symlink() and not path.exists():
        target = format_path(os.readlink(path))
        raise CohortgmmError(
            f"results cannot be written: {format_path(path.absolute())} is a link to {target}, which is not there: make "
            "that folder, or remove the link"
        )


def check_writable(folder: str | os.PathLike) -> None:
    """Refuse a results folder that cannot be written to, or not be made.

    Raises
    ------
    CohortgmmError
        If it, or where it is to be, is not writable.
    """
    check_results_folder(folder)
    path = Path(folder)
    place = path if path.exists() else path.absolute().parent
    if not place.is_dir():
        raise _cannot_write(place, "is not a folder")
    if not os.access(place, os.W_OK):
        raise _cannot_write(place, "is not writable")


def _cannot_write(place: Path, reason: str) -> CohortgmmError:
    return CohortgmmError(
        f"results cannot be written: {format_path(place.absolute())} {reason}; choose another with --directory"
    )
