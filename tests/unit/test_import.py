"""What an import pays for: a fit job starts thousands of times and must not load what it does not use."""

import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
HEAVY = {"anndata", "pandas", "matplotlib", "scanpy", "pydantic", "sklearn"}


def modules_loaded_by(module):
    code = f"import sys; sys.path.insert(0, {str(SOURCE)!r}); import {module}; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def test_the_package_itself_loads_nothing_heavy():
    loaded = modules_loaded_by("cohortgmm")
    assert "cohortgmm" in loaded
    assert not loaded & (HEAVY | {"scipy", "numpy"})


@pytest.mark.parametrize(
    "module",
    ["cohortgmm.mixture.fit", "cohortgmm.cohort.selection", "cohortgmm.cohort.fitting", "cohortgmm.pipeline.job"],
)
def test_what_a_fit_job_imports_loads_nothing_heavy(module):
    loaded = modules_loaded_by(module)
    assert module in loaded
    assert not loaded & (HEAVY | {"scipy"})
