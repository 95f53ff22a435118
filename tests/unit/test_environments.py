"""The places that say which versions are used agree: pyproject.toml, the environment of conda, the tested sets."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA = yaml.safe_load((ROOT / "envs" / "cohortgmm.yaml").read_text(encoding="utf-8"))["dependencies"]

#: What a job does not import: the workflow itself, and what only tests and displays need.
NOT_IN_JOBS = {"snakemake", "pygments"}
#: conda's name of a package, where it differs.
CONDA_NAMES = {"matplotlib-base": "matplotlib"}
EXTRAS = ["harmony", "slurm", "progress", "docs", "test", "dev"]


def requirements(python, extras=()):
    """Range of versions of every package that is asked for directly, for one version of Python."""
    texts = [*PROJECT["dependencies"], *(t for extra in extras for t in PROJECT["optional-dependencies"][extra])]
    found = {}
    for requirement in map(Requirement, texts):
        name = canonicalize_name(requirement.name)
        if name != "cohortgmm" and (
            requirement.marker is None or requirement.marker.evaluate({"python_version": python})
        ):
            found[name] = found.get(name, SpecifierSet()) & requirement.specifier
    return found


def pins(path):
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"\S+==\S+", line) for line in lines)
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def conda_pins():
    found = dict(re.fullmatch(r"(\S+) =(\S+)", line).groups() for line in CONDA)
    return {CONDA_NAMES.get(name, name): version for name, version in found.items()}


def is_limited(specifier):
    return any(one.operator not in (">=", ">") for one in specifier)


def outside(ranges, versions):
    return {name: version for name, version in versions.items() if name in ranges and version not in ranges[name]}


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_tested_version_is_admitted(python):
    ranges = requirements(python, EXTRAS)
    versions = pins(ROOT / "envs" / f"constraints-py{python.replace('.', '')}.txt")
    assert set(ranges) <= set(versions)
    assert outside(ranges, versions) == {}


def test_the_versions_for_ggml_are_admitted_with_a_wider_scipy():
    versions = pins(ROOT / "envs" / "constraints-ggml.txt")
    # That environment reads files and computes no UMAP of many cells, for which scipy is limited.
    assert set(outside(requirements("3.11"), versions)) <= {"scipy"}


def test_conda_has_the_tested_versions_of_what_jobs_import():
    found = conda_pins()
    python = found.pop("python")
    ranges = requirements(python, ["harmony"])
    assert outside(ranges, found) == {}
    tested = pins(ROOT / "envs" / f"constraints-py{python.replace('.', '')}.txt")
    assert found == {name: tested[name] for name in found}
    # All that jobs import, and whatever is limited: conda would take the newest of it.
    assert set(found) == set(ranges) - NOT_IN_JOBS
    assert {name for name, specifier in ranges.items() if is_limited(specifier)} <= set(found)


@pytest.mark.parametrize("version", ["0.12.0", "0.12.1", "0.12.2", "0.12.3", "0.12.4", "0.12.5", "0.12.6"])
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_anndata_that_admits_pandas_3_and_cannot_write_is_left_out(python, version):
    assert version not in requirements(python)["anndata"]


def test_pandas_3_is_admitted_only_where_an_anndata_for_it_exists():
    assert "3.0.0" not in requirements("3.11")["pandas"]
    assert "3.1.1" in requirements("3.12")["pandas"]
    assert "0.13.0" in requirements("3.12")["anndata"]


def test_a_test_for_the_comparison_itself():
    ranges = {"a": SpecifierSet("<0.7"), "b": SpecifierSet(">=1,!=1.2")}
    assert outside(ranges, {"a": "0.6", "b": "1.2", "c": "9"}) == {"b": "1.2"}
    assert is_limited(ranges["a"])
    assert is_limited(ranges["b"])
    assert not is_limited(SpecifierSet(">=1"))
