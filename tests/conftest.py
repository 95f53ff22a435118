"""Fixtures that several test modules share."""

import shutil
from pathlib import Path

import pytest
from projects import REPOSITORY, Project, copy_workflow, make_cohort, new_project

#: Run by another environment; importing it here would fail.
collect_ignore = ["e2e/ggml_client.py"]


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """A folder with a copy of the workflow and a project that has been run."""
    root = tmp_path_factory.mktemp("finished")
    new_project(root / "project", copy_workflow(root / "workflow_copy"), make_cohort()).run()
    return root


@pytest.fixture
def finished(finished_run, tmp_path) -> Project:
    """A finished project of the test's own, with a copy of the workflow that it may edit."""
    shutil.copytree(finished_run, tmp_path / "run")
    return Project(tmp_path / "run" / "project", tmp_path / "run" / "workflow_copy")


@pytest.fixture
def project(tmp_path) -> Project:
    """A project that has not been run, on the repository's workflow."""
    return new_project(tmp_path / "project", REPOSITORY, make_cohort())
