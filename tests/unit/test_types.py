"""What type checkers see: the names of the lazy faces, and the types in an installed package."""

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import cohortgmm
import cohortgmm.mixture

ROOT = Path(__file__).parents[2]


def names_for_type_checkers(path):
    """Names imported under ``if TYPE_CHECKING``, with the module they come from and the name they get."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            for statement in node.body:
                yield from ((alias.name, statement.module, alias.asname) for alias in statement.names)


@pytest.mark.parametrize("module", [cohortgmm, cohortgmm.mixture], ids=lambda module: module.__name__)
def test_type_checkers_see_the_names_that_are_imported_when_first_used(module):
    typed = {name: source for name, source, _ in names_for_type_checkers(Path(module.__file__))}
    assert typed == module._EXPORTS
    assert {name for name in module.__all__ if name != "__version__"} == set(typed)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_names_of_the_package_are_exported_to_strict_type_checkers():
    # Of an import without `as`, strict checkers say that the name is not exported.
    assert all(name == alias for name, _, alias in names_for_type_checkers(Path(cohortgmm.__file__)))


def test_a_wheel_says_that_it_has_types(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", tmp_path / "wheels", tmp_path], check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert "cohortgmm/py.typed" in archive.namelist()
        assert "cohortgmm/mixture/estep/noisy.py" in archive.namelist()
