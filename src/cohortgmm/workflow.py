"""What the Snakefile asks: the checked configuration, the jobs that follow from it, and what to say at start and end."""

import fcntl
import hashlib
import importlib.util
import os
import tokenize
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from cohortgmm import __version__
from cohortgmm.cohort.tables import read_rows
from cohortgmm.config import Config, read_config
from cohortgmm.errors import CohortgmmError, ConfigError
from cohortgmm.files import ALL_PATIENTS, COHORT, escape_id, unescape_id
from cohortgmm.log import ERROR_PREFIX, LEVEL_VARIABLE

_SILENT_TOKENS = {tokenize.COMMENT, tokenize.NL, tokenize.ENCODING}
# The end of a statement or a block is code, its width is not.
_LAYOUT_TOKENS = {tokenize.NEWLINE: "newline", tokenize.INDENT: "indent", tokenize.DEDENT: "dedent"}


def load_config(config: Mapping[str, Any], source: str, workflow_dir: str | os.PathLike) -> Config:
    """Check the configuration and find its files.

    Relative paths are taken from the working directory or, where nothing is there, from the workflow's own folder.

    Raises
    ------
    ConfigError
        All problems at once, one line each.
    """
    checked = read_config(config, source)
    found, problems = {}, []
    for key in ("input", "patients"):
        name = getattr(checked, key)
        if name is None:
            continue
        places = [Path(name), Path(workflow_dir) / name]
        existing = [place for place in places if place.is_file()]
        if existing:
            found[key] = str(existing[0])
        else:
            problems.append(f"{source}: {key}: no such file: {name} (looked in {Path.cwd()})")
    if problems:
        raise ConfigError("\n".join(problems))
    return checked.model_copy(update=found)


def prepare_jobs(source: str, *, verbose: bool) -> None:
    """Let the jobs, which inherit the environment of this process, find the package and know how much to log."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    os.environ[LEVEL_VARIABLE] = "INFO" if verbose else "WARNING"


def start_message(executor: str, planned: Mapping[str, int], has_results: bool) -> str:
    """What a run says before its first job: where it runs, how much, and if every patient is fitted again.

    Parameters
    ----------
    executor
        Name of Snakemake's executor.
    planned
        Jobs per rule that are known so far.
    has_results
        Whether an earlier run left scores.
    """
    n_jobs = sum(count for rule, count in planned.items() if rule != "all")
    more = ", more once the patients are known" if planned.get("split") else ""
    lines = [f"cohortgmm {__version__}: {n_jobs} jobs{more}, executor {executor}"]
    if planned.get("preprocess") and has_results:
        lines.append(
            "The embedding is computed again, from all patients together: it moves every patient, and all are fitted "
            "again. To add patients without that, use an embedding of your own with preprocess.enabled: false."
        )
    return "\n".join(lines)


def fingerprint(*modules: str) -> str:
    """Hash of the code of modules or packages, blind to comments, blank lines and layout.

    As a parameter of a rule it reruns the rule's jobs when the code that makes their results changes, wherever the
    package is installed, and only then.
    """
    digest = hashlib.sha256()
    for module in modules:
        spec = importlib.util.find_spec(module)
        origin = Path(spec.origin)
        for path in sorted(origin.parent.glob("*.py")) if origin.name == "__init__.py" else [origin]:
            digest.update(path.name.encode())
            with tokenize.open(path) as file:
                for token in tokenize.generate_tokens(file.readline):
                    if token.type not in _SILENT_TOKENS:
                        digest.update(_LAYOUT_TOKENS.get(token.type, token.string).encode() + b"\0")
    return digest.hexdigest()[:16]


def part_names(component_sharing: str, table: str | os.PathLike) -> list[str]:
    """File names of what is fitted: every kept patient of the table, or the whole cohort as one."""
    if component_sharing == "global":
        return [COHORT]
    return [row["file"] for row in read_rows(table) if row["status"] == "ok"]


def sheet_part_names(component_sharing: str, patients: Iterable[str]) -> list[str]:
    """As :func:`part_names`, from the patients of a sample sheet."""
    return [COHORT] if component_sharing == "global" else [escape_id(patient) for patient in patients]


def patient_name(name: str) -> str:
    """Patient id of a file name, as the report shows it."""
    return ALL_PATIENTS if name == COHORT else unescape_id(name)


def scaled(base: float, per_mb: float = 0.0) -> Callable[..., int]:
    """Resource function: ``base`` plus ``per_mb`` for every MB of input that exists, doubled by every further attempt."""

    def amount(wildcards, input, attempt) -> int:
        # Not input.size_mb: within an input function (a report, a checkpoint) Snakemake leaves it unevaluated.
        size = sum(os.path.getsize(path) for path in input if os.path.isfile(path)) / 1e6
        return int((base + per_mb * size) * 2 ** (attempt - 1))

    return amount


def check_results_folder(folder: str | os.PathLike) -> None:
    """Refuse a results folder that cannot be written to.

    Raises
    ------
    CohortgmmError
        If it is no folder or not writable.
    """
    path = Path(folder)
    place = path if path.exists() else path.absolute().parent
    reason = "is not a folder" if not place.is_dir() else "" if os.access(place, os.W_OK) else "is not writable"
    if reason:
        raise CohortgmmError(f"results cannot be written: {place.absolute()} {reason}; choose another with --directory")


def lock_results(folder: str | os.PathLike) -> int:
    """Keep a second run out of a results folder for as long as this process lives.

    The lock ends with the process, however it ends, so that a killed run needs no unlocking.

    Returns
    -------
    int
        The open file descriptor that holds the lock, or -1 where the file system knows no locks.

    Raises
    ------
    CohortgmmError
        If another run holds it, naming the process.
    """
    path = Path(folder) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        raise CohortgmmError(
            f"{Path(folder).resolve()} is in use by another run ({holder}): wait for it, or use --directory"
        ) from None
    except OSError:
        os.close(descriptor)
        return -1
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode())
    return descriptor


def failures(log_folder: str | os.PathLike, since: float) -> list[str]:
    """Last lines of the logs of failed jobs written after ``since`` (seconds since the epoch), with the log's path."""
    lines = []
    for path in sorted(Path(log_folder).rglob("*.log")):
        if path.stat().st_mtime >= since:
            last = path.read_text(errors="replace").rstrip().rsplit("\n", 1)[-1]
            if last.startswith(ERROR_PREFIX):
                lines.append(f"{last.removeprefix(ERROR_PREFIX)}  [{path}]")
    return lines
