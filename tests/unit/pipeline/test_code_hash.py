"""The hash of the code that results come from."""

import os
import shutil
import subprocess
import sys

import pytest
from projects import REPOSITORY

from cohortgmm.pipeline import code_hash

CODE = """
import os

def f(a):
    if a:
        b = "text"
        a = b
    return a
"""


def fresh_code_of(script) -> str:
    """The hash as a new process would find it."""
    for cached in (code_hash.code_of, code_hash._imported_modules, code_hash._syntax_tree, code_hash._code_digest):
        cached.cache_clear()
    return code_hash.code_of(str(script))


@pytest.fixture
def hash_of(tmp_path):
    """Factory: the hash of a script of this text."""

    def write(text):
        (tmp_path / "script.py").write_text(text)
        return fresh_code_of(tmp_path / "script.py")

    return write


def test_the_hash_is_blind_to_what_is_no_code(hash_of, tmp_path):
    first = hash_of(CODE)
    assert len(first) == 16
    assert int(first, 16) >= 0
    os.utime(tmp_path / "script.py", (0, 0))
    assert fresh_code_of(tmp_path / "script.py") == first
    for remark in (
        "# about the module\n" + CODE,
        '"""About the module."""\n' + CODE,
        CODE + "\n\n# the end\n",
        CODE.replace("if a:", "if a:  # why\n\n        # how"),
        CODE.replace("def f(a):", 'def f(a):\n    """What it does."""'),
        CODE.replace("\n    ", "\n  ").replace("\n      ", "\n    "),
        CODE.rstrip("\n"),
        CODE.replace("def f(a)", "def f(\n    a\n)"),
    ):
        assert hash_of(remark) == first


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"text"', '"texts"'),
        ("return a", "return b"),
        ("import os", "import io"),
        ("f(a)", "f(a=1)"),
        ("        a = b\n", "    a = b\n"),  # out of the block: the same words, another meaning
        ('b = "text"\n        a = b', 'b = "text"; a = b; c = a'),
    ],
)
def test_the_hash_sees_code(hash_of, old, new):
    assert CODE.count(old) == 1
    assert hash_of(CODE.replace(old, new)) != hash_of(CODE)


@pytest.mark.parametrize("script", sorted((REPOSITORY / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_the_hash_covers_every_module_that_a_job_imports(script, tmp_path):
    """What Python itself loads for the script's imports is what the hash reads, but for modules that make no results."""
    imports = "\n".join(line for line in script.read_text().split("\nwith ")[0].splitlines())
    # What methods of a mixture import when they are called, as it imports the mixture itself.
    late = "\nimport sys\nif 'cohortgmm.mixture.model' in sys.modules:\n"
    late += "    from cohortgmm.mixture.density import evaluate, sampling"
    listing = "\nprint(*sorted(name for name in sys.modules if name.startswith('cohortgmm.')))"
    loaded = subprocess.run(
        [sys.executable, "-c", imports + late + listing], capture_output=True, text=True, check=True
    ).stdout
    files = {code_hash._module_file(name) for name in set(loaded.split()) - code_hash._WITHOUT_RESULTS}
    files -= {file for file in files if code_hash._lazy_exports(file)}
    assert files == set(code_hash._imported_files(script)) - {script}


def test_a_change_in_an_imported_module_changes_the_hash(monkeypatch, tmp_path):
    package = tmp_path / "cohortgmm"
    shutil.copytree(REPOSITORY / "src" / "cohortgmm", package)
    monkeypatch.setattr(code_hash, "__file__", str(package / "pipeline" / "code_hash.py"))
    script = REPOSITORY / "scripts" / "fit.py"
    seen = [fresh_code_of(script)]
    for name in ("cohort/cells.py", "cohort/tables.py", "mixture/em/initialize.py", "mixture/numerics/tiles.py"):
        (package / name).write_text((package / name).read_text() + "\nchanged = 1\n")
        seen.append(fresh_code_of(script))
    assert len(set(seen)) == 5
    (package / "plots" / "style.py").write_text("")
    (package / "storage" / "names.py").write_text("")
    assert fresh_code_of(script) == seen[-1]


def test_a_name_of_the_lazy_face_counts_as_the_module_it_comes_from(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from cohortgmm.mixture import aic\n")
    package = REPOSITORY / "src" / "cohortgmm"
    found = set(code_hash._imported_files(script))
    assert package / "mixture" / "criteria.py" in found
    assert not {package / "mixture" / "__init__.py", package / "mixture" / "em" / "loop.py"} & found
