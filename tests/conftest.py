"""Fixtures that several test modules share, and how the tests are divided among workers."""

import shutil
from pathlib import Path

import pytest
from projects import REPOSITORY, Project, copy_workflow, made_once, make_cohort, new_project

from cohortgmm.errors import ConvergenceWarning

# Modules of helpers whose assertions say what was compared.
pytest.register_assert_rewrite("combinations")

#: Run by another environment; importing it here would fail.
collect_ignore = ["e2e/ggml_client.py"]


def _rank(item: pytest.Item) -> int:
    """Place of a test in a divided run: what takes longest without a break begins first, and single runs fill the end."""
    if item.get_closest_marker("slurm"):
        return 0
    if item.get_closest_marker("pipeline"):
        return 1 if item.get_closest_marker("xdist_group") else 3
    return 2


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the tests for ``pytest -n 2 --dist loadgroup --no-loadscope-reorder``; a serial run keeps their order.

    All tests on the SLURM cluster go to one worker, and so do the unit tests of a file.
    """
    if not hasattr(config, "workerinput"):
        return
    items.sort(key=_rank)
    for item in items:
        if item.get_closest_marker("slurm"):
            item.add_marker(pytest.mark.xdist_group("slurm"))
        elif not item.get_closest_marker("pipeline"):
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


@pytest.fixture
def stops_early():
    """For a test whose fits end without converging, as its assertions hold after few iterations too."""
    with pytest.warns(ConvergenceWarning):
        yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """A folder with a copy of the workflow and a project that has been run."""

    def make(root: Path) -> None:
        new_project(root / "project", copy_workflow(root / "workflow_copy"), make_cohort()).run()

    return made_once(tmp_path_factory, "finished", make)


@pytest.fixture
def finished(finished_run, tmp_path) -> Project:
    """A finished project of the test's own, with a copy of the workflow that it may edit."""
    shutil.copytree(finished_run, tmp_path / "run")
    return Project(tmp_path / "run" / "project", tmp_path / "run" / "workflow_copy")


@pytest.fixture
def project(tmp_path) -> Project:
    """A project that has not been run, on the repository's workflow."""
    return new_project(tmp_path / "project", REPOSITORY, make_cohort())
