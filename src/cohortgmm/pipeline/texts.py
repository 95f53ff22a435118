"""Keeps Snakemake from replacing wildcards and variables in the paths, parameters and labels that users name."""

import hashlib
import os
import re
from collections.abc import Callable
from numbers import Number
from pathlib import Path
from typing import Any

from cohortgmm.errors import OutputError
from cohortgmm.pipeline.plugin_patches import escape_report_page

#: Folder of links with plain names to files whose own names Snakemake would change.
LINKS = Path(".snakemake") / "cohortgmm"

#: Parts of a path that Snakemake replaces (``{wildcard}``, ``<variable>``), takes for a remote address, or warns of.
_CHANGED = re.compile(r"[{}<>\x00-\x1f\x7f]|://|^\s|\s$")


def literal(value: Any) -> Callable[[Any], Any]:
    """A function that returns the value, for a parameter of a rule: Snakemake would change a text itself."""
    return lambda wildcards: value


def plain_path(path: str) -> str:
    """A path for the inputs of a rule: the file itself, or a link to it where Snakemake would change its name.

    Parameters
    ----------
    path
        The file, from the working directory.

    Returns
    -------
    str
        The same path if it is plain, else that of a link in ``.snakemake/cohortgmm``, which is made.

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
    """A text that is a number to Snakemake, which replaces wildcards in the texts of a label but not in numbers."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text

    __hash__ = object.__hash__


def report_labels(labels: Callable[[Any], dict[str, str]]) -> Callable[[Any], dict[str, Any]]:
    """The labels of an output in the report, with texts that Snakemake does not change.

    Parameters
    ----------
    labels
        Function from the wildcards to the labels; called when a report is made.
    """

    def unchanged(wildcards: Any) -> dict[str, Any]:
        escape_report_page()
        return {name: _Unchanged(text) for name, text in labels(wildcards).items()}

    return unchanged
