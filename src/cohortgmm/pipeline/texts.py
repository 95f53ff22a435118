"""Prevent Snakemake from replacing wildcards and variables in paths, parameters and labels that come from the user."""

import hashlib
import os
import re
from collections.abc import Callable
from numbers import Number
from pathlib import Path
from typing import Any

from cohortgmm.errors import OutputError
from cohortgmm.pipeline.plugin_patches import escape_report_page

#: Folder of links to files whose names Snakemake would change; the names of the links have no special characters.
LINKS = Path(".snakemake") / "cohortgmm"

#: Parts of a path that Snakemake replaces (``{wildcard}``, ``<variable>``), takes for a remote address, or warns of.
_CHANGED = re.compile(r"[{}<>\x00-\x1f\x7f]|://|^\s|\s$")


def literal(value: Any) -> Callable[[Any], Any]:
    """A function that returns the value. As a parameter of a rule, it is safe where Snakemake would change a text."""
    return lambda wildcards: value


def plain_path(path: str) -> str:
    """A path for the inputs of a rule: the file itself or, if Snakemake would change its name, a link to it.

    Parameters
    ----------
    path
        Path of the file, relative to the working directory or absolute.

    Returns
    -------
    str
        The same path, or the path of a link that this function makes in ``.snakemake/cohortgmm``.

    Raises
    ------
    OutputError
        If the link cannot be made.
    """
    if not _CHANGED.search(path):
        return path
    target = os.path.abspath(path)
    suffix = Path(path).suffix
    link = LINKS / (hashlib.sha256(os.fsencode(target)).hexdigest()[:16] + ("" if _CHANGED.search(suffix) else suffix))
    try:
        if not link.is_symlink() or os.readlink(link) != target:
            link.parent.mkdir(parents=True, exist_ok=True)
            temporary = link.with_name(f".{os.getpid()}.{link.name}")
            temporary.symlink_to(target)
            os.replace(temporary, link)
    except OSError as error:
        raise OutputError(
            f"{path!r}: Snakemake would take its name for a pattern, and no link to it can be made in {LINKS} "
            f"({os.strerror(error.errno or 0)}): rename it"
        ) from None
    return str(link)


class _Unchanged(Number):
    """A text of class ``Number``, because Snakemake replaces wildcards in labels that are texts but not in numbers."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text

    __hash__ = object.__hash__


def report_labels(labels: Callable[[Any], dict[str, str]]) -> Callable[[Any], dict[str, Any]]:
    """A function that returns the labels of an output in the report, whose texts Snakemake does not change.

    Parameters
    ----------
    labels
        Function from the wildcards to the labels; it is called when a report is made.
    """

    def unchanged(wildcards: Any) -> dict[str, Any]:
        escape_report_page()
        return {name: _Unchanged(text) for name, text in labels(wildcards).items()}

    return unchanged
