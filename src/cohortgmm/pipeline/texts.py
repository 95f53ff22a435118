"""What users name, in Snakemake's hands: it looks for wildcards and variables in paths, parameters and labels."""

import hashlib
import inspect
import json
import os
import re
from collections.abc import Callable
from numbers import Number
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cohortgmm.errors import OutputError

#: Where links with plain names stand for files whose names Snakemake would change.
LINKS = Path(".snakemake") / "cohortgmm"

#: What Snakemake replaces in a path (``{wildcard}``, ``<variable>``), takes for a remote place, or warns of.
_CHANGED = re.compile(r"[{}<>\x00-\x1f\x7f]|://|^\s|\s$")


def literal(value: Any) -> Callable[[Any], Any]:
    """A function of the wildcards in the place of a parameter: only what a function gives back is left as it is."""
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


class _AsItIs(Number):
    """A text that is no ``str``: Snakemake replaces wildcards in the texts of a label, and takes numbers as they are."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text

    __hash__ = object.__hash__


def report_labels(labels: Callable[[Any], dict[str, str]]) -> Callable[[Any], dict[str, Any]]:
    """The labels of an output in the report, with texts that stay as they are.

    Parameters
    ----------
    labels
        Function from the wildcards to the labels; called when a report is made.
    """

    def as_they_are(wildcards: Any) -> dict[str, Any]:
        escape_page()
        return {name: _AsItIs(text) for name, text in labels(wildcards).items()}

    return as_they_are


def escape_page() -> None:
    """Let Snakemake write ``<`` in the data of a report's page so that no text there ends a script or begins a tag.

    It puts texts of JSON between ``<script>`` and ``</script>`` as they are. Made for Snakemake 9.17 to 9.27; where a
    later version is built otherwise, its page is left to it.
    """
    from snakemake.report import html_reporter

    for module in (html_reporter, *vars(getattr(html_reporter, "data", html_reporter)).values()):
        if inspect.ismodule(module) and getattr(module, "json", None) is json:
            module.json = SimpleNamespace(dumps=_dumps)


def _dumps(*args: Any, **kwargs: Any) -> str:
    return json.dumps(*args, **kwargs).replace("<", "\\u003c")
