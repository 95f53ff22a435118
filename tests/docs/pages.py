"""The code blocks of a page of Markdown, and how each is run.

A comment on the line before a block says what is special about it:

    <!-- not run: REASON -->    for the reader only
    <!-- file: PATH -->         the block is the content of this file
    <!-- ggml -->               Python that runs in the environment of ggml-ot
    <!-- release -->            run by ``make test-release`` only

A comment that begins with ``run`` and a language, such as ``<!-- run python``, holds code that readers do not see: it
prepares what the page takes for granted, or checks what it says. ``<!-- folder: NAME -->`` at the top of a page says where
its blocks run.
"""

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]

#: What a block may be that is no code, unless a comment says so.
TEXTS = ("text", "{math}", "{include}", "{eval-rst}", "{toctree}", "{figure}", "{image}", "{contents}")

_FENCE = re.compile(
    r"(?:<!-- (?P<mark>[a-z ]+?)(?:: (?P<detail>[^\n]*?))? -->\n)?^```(?P<language>\S*)[^\n]*\n(?P<code>.*?)^```$"
    r"|^<!-- run (?P<hidden>\w+)\n(?P<hidden_code>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes
    ----------
    language
        ``python``, ``sh``, ``yaml`` or ``r``.
    code
        Its text.
    line
        Line of the page that the text begins in.
    mark, detail
        What the comment before it says; empty if there is none.
    """

    language: str
    code: str
    line: int
    mark: str = ""
    detail: str = ""


def blocks_of(text: str) -> list[Block]:
    """All blocks of code of a page, in order."""
    blocks = []
    for found in _FENCE.finditer(text):
        if found["hidden"]:
            line = text.count("\n", 0, found.start("hidden_code")) + 1
            blocks.append(Block(found["hidden"], found["hidden_code"], line))
        elif found["language"] not in TEXTS or found["mark"]:
            line = text.count("\n", 0, found.start("code")) + 1
            blocks.append(Block(found["language"], found["code"], line, found["mark"] or "", found["detail"] or ""))
    return blocks


def folder_of(text: str) -> str:
    """What the page says of the folder that its blocks run in: ``empty``, ``clone`` or ``finished``."""
    found = re.search(r"^<!-- folder: (\w+) -->$", text, re.MULTILINE)
    return found[1] if found else "empty"
