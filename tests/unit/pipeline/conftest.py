"""Programs that stand for those of SLURM."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Programs:
    """A folder that is the whole search path: what is not made here is not installed."""

    folder: Path

    def make(self, name: str, body: str = "") -> None:
        """A program of this shell script, which may use what the shell has built in."""
        path = self.folder / name
        path.write_text(f"#!/bin/sh\nIFS='|'\nprintf '%s\\n' \"{name}|$*\" >> '{self.folder}/calls'\n{body}\n")
        path.chmod(0o755)

    @property
    def calls(self) -> list[list[str]]:
        """Every call so far: name and arguments."""
        path = self.folder / "calls"
        return [line.split("|") for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def programs(tmp_path, monkeypatch) -> Programs:
    """The programs of SLURM, none at first."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return Programs(folder)


@pytest.fixture
def write(tmp_path) -> Callable[[str, str], Path]:
    """Factory: a file of this text below the temporary folder."""

    def make(name: str, text: str = "") -> Path:
        path = tmp_path / name
        os.makedirs(path.parent, exist_ok=True)
        path.write_text(text)
        return path

    return make
