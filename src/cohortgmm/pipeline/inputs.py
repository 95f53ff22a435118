"""The files that a configuration names: finding them, and refusing those that are results of the run itself."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from cohortgmm.display import format_path
from cohortgmm.errors import ConfigError

#: Results that `python -m cohortgmm keep DIR` copies under the same names.
KEPT = ("models/*.npz", "patients.tsv", "selection.tsv", "scores.tsv")

#: Folders within the results in which no input is looked for.
_LOGS = ("logs", "benchmarks")

#: Depth of folders to which the results are searched.
_DEEPEST = 10

#: Largest number of links that are followed one after the other; the limit of Linux is the same.
_MOST_LINKS = 40


def find_files(
    named: Mapping[str, str | None], source: str, workflow_dir: str | os.PathLike, *, refuse_results: bool = True
) -> dict[str, str]:
    """Paths of the files that a configuration names.

    A relative path is relative to the working directory or, if there is no such file, to the workflow's own folder.
    ``~`` and variables such as ``$HOME`` are replaced, unless a file exists whose name contains them literally.

    Parameters
    ----------
    named
        Path for every key of the configuration; keys with None are ignored.
    source
        Name of the configuration in messages.
    workflow_dir
        The workflow's own folder.
    refuse_results
        Whether a file that is a result of the run in the working directory is an error.

    Raises
    ------
    ConfigError
        All files that do not exist or that are results of this run, one line each.
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
    """A file name given as text, converted so that its bytes on the file system are UTF-8 in every locale."""
    return os.fsdecode(name.encode("utf-8", "surrogateescape"))


def _hint(paths: list[str]) -> str:
    """For a message that a file does not exist: the target, if the path is a link to a missing file; else empty."""
    links = [path for path in paths if os.path.islink(path)]
    return f": a link to {format_path(os.readlink(links[0]))}, which does not exist" if links else ""


def _refusal(result: str) -> str:
    kept = any(Path(result).match(pattern) and len(Path(result).parts) == len(Path(pattern).parts) for pattern in KEPT)
    way = (
        f"copy it out of results/ with `python -m cohortgmm keep DIR` and name DIR/{result}"
        if kept
        else "move or copy it out of results/ and name that file"
    )
    return f"is one of this run's own results (results/{result}), which the run removes and makes again: {way}"


def result_of_run(path: str | os.PathLike, results: str | os.PathLike = "results") -> str:
    """The result of a run that a path leads to, if any: directly, by symbolic links, or as a hard link to the file.

    Parameters
    ----------
    path
        The file, which need not exist.
    results
        The results folder of the run.

    Returns
    -------
    str
        Path of the result within the results folder; empty if the file is not a result.
    """
    for step in _steps(os.fspath(path)):
        # Compare the path as it is written, then the path in which the links of its folders are followed.
        for place, root in (
            (os.path.abspath(step), os.path.abspath(results)),
            (_without_links_above(step), os.path.realpath(results)),
        ):
            if place == root or place.startswith(root.rstrip(os.sep) + os.sep):
                return os.path.relpath(place, root)
    return _linked_result(path, results)


def _steps(path: str) -> Iterator[str]:
    """A path, then the target of the link if it is one, then the target of that, and so on."""
    for _ in range(_MOST_LINKS):
        yield path
        if not os.path.islink(path):
            return
        path = os.path.join(os.path.dirname(path), os.readlink(path))


def _without_links_above(path: str) -> str:
    """The path with the links of its folders followed; if the file itself is a link, that one is not followed."""
    folder, name = os.path.split(os.path.abspath(path) if os.path.basename(path) in ("", ".", "..") else path)
    return os.path.join(os.path.realpath(folder), name)


def _linked_result(path: str | os.PathLike, results: str | os.PathLike) -> str:
    """The result that leads to a file: a link to it, a link to a folder that contains it, or a hard link to it."""
    real = os.path.realpath(path)
    try:
        stat = os.stat(real)
    except OSError:
        return ""
    # The results may be tens of thousands of files, so all are compared only if the file has several hard links.
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
    """Entries of the results folder and its subfolders to a depth, without logs; links are not followed."""
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
