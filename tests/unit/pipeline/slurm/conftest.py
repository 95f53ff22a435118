"""A Python that tells how it was called, for the tests of shards."""

import stat
import sys

import pytest

#: A program that says how it was called: its arguments, where it looks for modules and which shard it is.
TELL = """#!/bin/sh
printf '%s\\0' "$@"
printf '\\001%s' "$PYTHONPATH" "${COHORTGMM_SHARD-}"
"""


@pytest.fixture
def python(tmp_path, monkeypatch):
    """A Python that only tells how it was called, in a folder with a space in its name."""
    path = tmp_path / "an environment" / "python"
    path.parent.mkdir()
    path.write_text(TELL)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(path))
    return path
