"""The files that a configuration names: where they are, and that none of them is one of the run's own results."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from cohortgmm.display import format_path
from cohortgmm.errors import ConfigError

#: Results that `python -m cohortgmm keep DIR` copies, which keep their names there.
KEPT = ("models/*.npz", "patients.tsv", "selection.tsv", "scores.tsv")

#: Folders of the results that no input is looked for in.
_LOGS = ("logs", "benchmarks")

#: So deep the folders of the results are nested, at most.
_DEEPEST = 10

#: So many links may lead from one to the next; the system follows no more either.
_MOST_LINKS = 40


def find_files(
    named: Mapping[str, str | None], source: str, workflow_dir: str | os.PathLike, *, refuse_results: bool = True
) -> dict[str, str]:
    """Paths of the files that a configuration names.

    A relative path is taken from the working directory or, where nothing is there, from the workflow's own folder. ``~``
    and variables such as ``$HOME`` are replaced where no file has that very name.

    Parameters
    ----------
    named
        What the configuration says, by key; None is left out.
    source
        The configuration, for messages.
    workflow_dir
        The workflow's own folder.
    refuse_results
        Whether files are refused that are results of the run in the working directory.

    Raises
    ------
    ConfigError
        All files that are not there or that are results of this run, one line each.
    """
    found, problems = {}, []
    for key, name in named.items():
        if name is None:
            continue
        paths = [encoded(name), os.path.expandvars(os.path.expanduser(encoded(name)))]
        places = [place / path for path in dict.fromkeys(paths) for place in (Path(), Path(workflow_dir))]
        existing = [place for place in places if place.is_file()]
        result = next(filter(None, map(result_of_run, [*paths, *existing[:1]])), "") if refuse_results else ""
        if result:
            problems.append(f"{source}: {key}: {name} {_refusal(result)}")
        elif existing:
            found[key] = str(existing[0])
        elif any(place.is_dir() for place in places):
            problems.append(f"{source}: {key}: {name} is a folder, not a file{_way_out_of_folder(name)}")
        else:
            problems.append(
                f"{source}: {key}: no such file: {name} (looked in {format_path(Path.cwd())}){_hint(paths)}"
            )
    if problems:
        raise ConfigError("\n".join(problems))
    return found


def _way_out_of_folder(name: str) -> str:
    is_zarr = Path(name).suffix == ".zarr" or any((Path(name) / part).exists() for part in (".zgroup", "zarr.json"))
    return f": write it as .h5ad, anndata.read_zarr({name!r}).write_h5ad('cohort.h5ad')" if is_zarr else ""


def encoded(name: str) -> str:
    """A file name of a text that is UTF-8, as the system knows it, whatever the locale."""
    return os.fsdecode(name.encode("utf-8", "surrogateescape"))


def _hint(paths: list[str]) -> str:
    """What else may be wrong with a file that is not there."""
    links = [path for path in paths if os.path.islink(path)]
    return f": a link to {format_path(os.readlink(links[0]))}, which is not there" if links else ""


def _refusal(result: str) -> str:
    kept = any(Path(result).match(pattern) and len(Path(result).parts) == len(Path(pattern).parts) for pattern in KEPT)
    way = (
        f"copy it out of results/ with `python -m cohortgmm keep DIR` and name DIR/{result}"
        if kept
        else "move or copy it out of results/ and name that file"
    )
    return f"is one of this run's own results (results/{result}), which the run removes and makes anew: {way}"


def result_of_run(path: str | os.PathLike, results: str | os.PathLike = "results") -> str:
    """Which result of a run a file is: by its name, through links, or as another name of the same file.

    Parameters
    ----------
    path
        The file, which need not exist.
    results
        The results folder of the run.

    Returns
    -------
    str
        Its path within the results; empty if it is none of them.
    """
    for step in _steps(os.fspath(path)):
        # The first by the names alone, the others by where they lead.
        for place, root in (
            (os.path.abspath(step), os.path.abspath(results)),
            (_without_links_above(step), os.path.realpath(results)),
        ):
            if place == root or place.startswith(root.rstrip(os.sep) + os.sep):
                return os.path.relpath(place, root)
    return _linked_result(path, results)


def _steps(path: str) -> Iterator[str]:
    """A path and, while it is a link, where that leads."""
    for _ in range(_MOST_LINKS):
        yield path
        if not os.path.islink(path):
            return
        path = os.path.join(os.path.dirname(path), os.readlink(path))


def _without_links_above(path: str) -> str:
    """The path with the links among its folders followed, but not the last one."""
    folder, name = os.path.split(os.path.abspath(path) if os.path.basename(path) in ("", ".", "..") else path)
    return os.path.join(os.path.realpath(folder), name)


def _linked_result(path: str | os.PathLike, results: str | os.PathLike) -> str:
    """The entry of the results that leads to a file: a link to it or to a folder it is in, or a second name of it."""
    real = os.path.realpath(path)
    try:
        stat = os.stat(real)
    except OSError:
        return ""
    # Tens of thousands of fits are looked at only where one may be a second name of the file.
    for entry in _entries(results, _DEEPEST if stat.st_nlink > 1 else 1):
        within = os.path.relpath(entry.path, results)
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            if real == target:
                return within
            if real.startswith(target + os.sep):
                return os.path.join(within, os.path.relpath(real, target))
        elif stat.st_nlink > 1 and entry.inode() == stat.st_ino and os.path.samefile(entry.path, real):
            return within
    return ""


def _entries(folder: str | os.PathLike, depth: int) -> Iterator[os.DirEntry]:
    """What is in the results and, to this depth, in their folders, but for logs; links are not followed."""
    waiting = [(os.fspath(folder), depth)]
    while waiting:
        path, depth = waiting.pop()
        try:
            with os.scandir(path) as entries:
                found = [entry for entry in entries if entry.name not in _LOGS]
        except OSError:
            continue
        yield from found
        if depth:
            waiting += [(entry.path, depth - 1) for entry in found if entry.is_dir(follow_symlinks=False)]
