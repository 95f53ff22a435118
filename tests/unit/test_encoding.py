"""Every text is read and written as UTF-8, whatever the locale: no call leaves the encoding to the system."""

import ast
import re

import pytest
from projects import REPOSITORY

SOURCES = sorted(
    path
    for folder in ("src", "scripts", "workflow")
    for pattern in ("*.py", "*.smk")
    for path in (REPOSITORY / folder).rglob(pattern)
)

#: Which positional argument of a call is the mode, the first being 0; what has no mode is always about text.
_MODES = {"open": 1, "fdopen": 1, "read_text": None, "write_text": None, "NamedTemporaryFile": 0, "TextIOWrapper": None}
_PROCESSES = {"run", "Popen", "check_output", "check_call", "call", "getoutput"}


def is_text_without_encoding(call: ast.Call) -> bool:
    """Whether a call reads or writes text in the encoding of the locale."""
    is_method = isinstance(call.func, ast.Attribute)
    name = call.func.attr if is_method else getattr(call.func, "id", "")
    owner = ast.unparse(call.func.value) if is_method else ""
    given = {keyword.arg for keyword in call.keywords}
    if "encoding" in given or None in given:
        return False
    if name in _PROCESSES and owner == "subprocess":
        return name == "getoutput" or bool(given & {"text", "universal_newlines"})
    if name not in _MODES or owner in ("os", "h5py", "zipfile", "archive", "np"):
        return False
    place = _MODES[name]
    if place is None:
        return True
    if is_method and name == "open" and owner != "io":
        place = 0  # of a path: its mode comes first
    mode = next((keyword.value for keyword in call.keywords if keyword.arg == "mode"), None)
    if mode is None and len(call.args) > place:
        mode = call.args[place]
    default = "w+b" if name == "NamedTemporaryFile" else "r"
    text = (
        mode.value if isinstance(mode, ast.Constant) else default if mode is None else "b"
    )  # a mode that is handed on
    return "b" not in str(text)


def calls_without_encoding(source: str) -> list[int]:
    """Lines of such calls."""
    tree = ast.parse(source)
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call) and is_text_without_encoding(node)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_text_has_an_encoding(path):
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".smk":  # no Python: calls are looked for by their names
        assert not re.findall(r"\b(?:open|read_text|write_text|check_output|Popen)\(|subprocess\.", source)
    else:
        assert calls_without_encoding(source) == []


@pytest.mark.parametrize(
    ("call", "is_found"),
    [
        ("open(path)", True),
        ("open(path, 'w')", True),
        ("open(path, mode='a')", True),
        ("open(path, 'rb')", False),
        ("open(path, encoding='utf-8')", False),
        ("path.open()", True),
        ("path.open('w', newline='')", True),
        ("path.open('rb')", False),
        ("path.read_text()", True),
        ("path.read_text(errors='replace')", True),
        ("path.read_text(encoding='utf-8')", False),
        ("path.write_text(text)", True),
        ("subprocess.run(command, text=True)", True),
        ("subprocess.run(command, text=True, encoding='utf-8')", False),
        ("subprocess.run(command, capture_output=True)", False),
        ("os.open(path, os.O_RDONLY)", False),
        ("tempfile.NamedTemporaryFile()", False),
        ("tempfile.NamedTemporaryFile('w')", True),
    ],
)
def test_what_counts_as_a_text_without_encoding(call, is_found):
    assert bool(calls_without_encoding(call)) == is_found
