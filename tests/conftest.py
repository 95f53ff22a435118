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


#: Folders whose tests share a SLURM cluster, and the site that is built.
FOLDERS = ("tests/slurm", "tests/docs")
#: Files of the real pipeline whose tests share a process: a browser, a client; and a run with hostile names.
FILES = ("tests/e2e/test_report.py", "tests/e2e/test_texts.py", "tests/e2e/test_ggml_client.py")


def _group(nodeid: str) -> str:
    """Tests of one group run one after the other, in one process; so do the unit tests of a file."""
    path = nodeid.split("::")[0]
    for folder in FOLDERS:
        if path.startswith(f"{folder}/"):
            return folder
    return nodeid if path.startswith(("tests/workflow/", "tests/e2e/")) and path not in FILES else path


def _rank(item: pytest.Item) -> int:
    """Place of a test in a divided run: the longest groups begin first, and single runs of the pipeline fill the end."""
    order = (*FOLDERS, *FILES)
    group = _group(item.nodeid)
    return order.index(group) if group in order else len(order) + (group == item.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the tests where they are divided among processes; a serial run keeps their order."""
    if hasattr(config, "workerinput"):
        items.sort(key=_rank)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object):
    """Divide the tests by :func:`_group` for ``--dist loadscope``; the marks of ``loadgroup`` need an older pytest."""
    from xdist.scheduler import LoadScopeScheduling  # not installed where only a job's environment is

    class LoadByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return LoadByGroup(config, log) if config.getvalue("dist") == "loadscope" else None


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
