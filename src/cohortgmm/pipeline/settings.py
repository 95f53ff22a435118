"""Checks of the configuration and of the computing environment, which the Snakefile makes at the start of a run."""

import functools
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

from cohortgmm.config import Config, read_config
from cohortgmm.display import format_path
from cohortgmm.errors import CohortgmmError, ConfigError
from cohortgmm.pipeline.inputs import find_files, result_of_run
from cohortgmm.pipeline.job import ATTEMPT_VARIABLE, LEVEL_VARIABLE


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
        Whether a file that is a result of the run in the working directory is an error.

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
        from cohortgmm.mixture import GaussianMixture  # here, so that numpy is imported only if it is needed

        reference = GaussianMixture.load(gmm.reference)
        gmm = gmm.for_reference(reference.n_components, reference.covariance_type, source)
    tops = {key: path for key, path in found.items() if not key.startswith("gmm.")}
    return checked.model_copy(update={**tops, "gmm": gmm})


def check_config_files(files: Iterable[str | os.PathLike]) -> None:
    """Raise an error if a configuration file has a key twice, because readers silently take the last value.

    Raises
    ------
    ConfigError
        The message names the file, the key and the lines.
    """
    for file in files:
        try:
            text = Path(file).read_text(encoding="utf-8")
            json.loads(text, object_pairs_hook=functools.partial(_check_pairs, str(file)))
        except (OSError, UnicodeDecodeError):
            continue  # the function that reads the configuration reports the error
        except json.JSONDecodeError:
            _check_yaml(file, text)


def _check_pairs(file: str, pairs: Sequence[tuple[str, Any]]) -> None:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"{file}: the key {key} is given twice in the same place: remove one of them")


def _check_yaml(file: str | os.PathLike, text: str) -> None:
    import yaml  # here, because jobs do not make this check and need no yaml for it

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return
    for path, first, second in _repeated_keys(node, (), set()):
        lines = f"line {first}" if first == second else f"lines {first} and {second}"
        raise ConfigError(f"{file}: the key {'.'.join(path)} is given twice, in {lines}: remove one of them")


def _repeated_keys(node: Any, path: tuple[str, ...], visited: set[int]) -> Iterator[tuple[tuple[str, ...], int, int]]:
    """Every key that occurs twice in a YAML mapping or in one nested in it: its path and its two line numbers."""
    if node is None or not isinstance(node.value, list) or id(node) in visited:
        return
    visited.add(id(node))  # an alias refers to the same node again
    if node.id == "sequence":
        for i, item in enumerate(node.value):
            yield from _repeated_keys(item, (*path, str(i)), visited)
        return
    seen: dict[tuple[str, str], int] = {}
    for key, value in node.value:
        if isinstance(key.value, str):
            # Tags distinguish 1 from "1"; a merge key (<<) may be repeated.
            identity, line = (key.tag, key.value), key.start_mark.line + 1
            if identity in seen and not key.tag.endswith(":merge"):
                yield (*path, key.value), seen[identity], line
            seen.setdefault(identity, line)
        yield from _repeated_keys(value, (*path, str(key.value)), visited)


def prepare_jobs(source: str, *, verbose: bool) -> None:
    """Set the environment of the jobs: where the package is, how much to log, and the number of the attempt."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    os.environ[LEVEL_VARIABLE] = "INFO" if verbose else "WARNING"
    os.environ[ATTEMPT_VARIABLE] = _attempt(sys.argv)
    if sys.getfilesystemencoding() in ("utf-8", "ascii"):  # in other encodings, file names would be decoded differently
        os.environ["PYTHONUTF8"] = "1"
    # Not the user's matplotlibrc or backend: if matplotlib could not load them, importing it would end the job.
    os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}


def check_surroundings(workflow_dir: str | os.PathLike) -> None:
    """Raise an error in a computing environment in which a run or its jobs would end with a traceback.

    These are: a folder of the workflow whose name Snakemake takes for a pattern, versions of packages that do not work
    together, and a matplotlibrc that is not text.

    Raises
    ------
    ConfigError
        The message names the folder, the packages or the file.
    """
    if {"{", "}"} & set(str(workflow_dir)):
        raise ConfigError(
            f"the workflow's folder has braces in its name, which Snakemake takes for a pattern in the paths of scripts: "
            f"rename {str(workflow_dir)!r}"
        )
    versions = {}
    for name in ("anndata", "pandas"):
        with suppress(PackageNotFoundError):  # jobs may have environments of their own
            versions[name] = version(name)
    numbers = {name: tuple(map(int, re.findall(r"\d+", text)[:3])) for name, text in versions.items()}
    if numbers.get("pandas", (0,)) >= (3,) and numbers.get("anndata", (1,)) < (0, 12, 7):
        raise ConfigError(
            f"anndata {versions['anndata']} cannot write the texts of pandas {versions['pandas']}: install anndata 0.13 or "
            "newer, or pandas below 3"
        )
    settings = Path("matplotlibrc")  # the one in the working directory takes precedence
    try:
        text = settings.read_bytes() if settings.is_file() else b""
    except OSError:
        return
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{settings.absolute()}: matplotlib reads it, but it is not UTF-8 ({error}): write it again or remove it; the "
            "figures do not depend on it"
        ) from None


def _attempt(arguments: Sequence[str]) -> str:
    """Number of the attempt, read from the command line because Snakemake's own value is not set yet at this time."""
    return arguments[arguments.index("--attempt") + 1] if "--attempt" in arguments else "1"


def check_targets(configfiles: Sequence[str | os.PathLike]) -> None:
    """Raise an error if Snakemake has taken targets on the command line for configuration files.

    Raises
    ------
    ConfigError
        If targets follow ``--configfile FILE`` without ``--`` between them.
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
    """Raise an error if the path of the results exists and is not a folder.

    Raises
    ------
    CohortgmmError
        If the path is a file, or a link to a folder that does not exist.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise _cannot_write(path, "is not a folder")
    if path.is_symlink() and not path.exists():
        target = format_path(os.readlink(path))
        raise CohortgmmError(
            f"results cannot be written: {format_path(path.absolute())} is a link to {target}, which does not exist: "
            "make that folder, or remove the link"
        )


def check_writable(folder: str | os.PathLike) -> None:
    """Raise an error if the results folder cannot be written to or cannot be made.

    Raises
    ------
    CohortgmmError
        If the results folder is not writable; or, if it does not exist, if the folder that contains it is not writable.
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
