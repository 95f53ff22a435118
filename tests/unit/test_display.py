"""How messages show values, texts, paths and errors."""

import ast
import os
import subprocess
import sys

import numpy as np
import pytest
from hostile import TEXTS

from cohortgmm.display import format_error, format_path, format_repr, format_text, format_value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (True, "True"),
        (0.5, "0.5"),
        ("diag", "'diag'"),
        (10**30, str(10**30)),
        (np.float64(0.5), "np.float64(0.5)"),
        (np.bool_(True), "np.True_"),
        ("a" * 58, repr("a" * 58)),
        ("a" * 59, "str"),
        (10**80, "int"),
        ([1, 2], "list"),
        (np.zeros(3), "numpy.ndarray"),
        (np.array(0.5), "numpy.ndarray"),
    ],
    ids=ascii,
)
def test_values_are_written_where_they_are_short_and_named_by_type_elsewhere(value, text):
    assert format_value(value) == text


def test_values_are_shown_without_loading_numpy():
    code = "import sys; from cohortgmm.display import format_value; print(format_value([]), 'numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.split() == ["list", "False"]


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_texts_for_the_terminal_are_one_line_that_shows_all(text):
    shown = format_text(text)
    assert shown.isprintable()
    assert shown == text or ast.literal_eval(shown) == text
    assert shown.strip() == shown != ""


def test_paths_are_shown_in_utf8_and_what_is_none_by_its_bytes():
    assert format_path(os.fsdecode("é/ß".encode())) == "é/ß"
    assert format_path(os.fsdecode(b"a\xff")) == "a\\xff"


def test_what_others_say_is_one_line():
    assert format_repr(np.zeros((2, 2))) == "array([[0., 0.], [0., 0.]])"
    assert format_repr("a\nb") == repr("a\nb")
    assert format_error(ValueError("one\n  two")) == "ValueError: one two"
    assert format_error(KeyError()) == "KeyError"
