"""The cluster, and what an undisturbed run on this machine gives."""

import os
import shutil
import subprocess

import pytest
from clusters import CLUSTER, cluster, slurm_project
from projects import Project

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")


def _reason_against() -> str:
    """Why there can be no cluster here; empty if there can."""
    if os.geteuid() != 0:
        return "a SLURM of one node needs root"
    paths = f"{os.environ.get('PATH', '')}:/usr/sbin"
    missing = [name for name in PROGRAMS if not shutil.which(name, path=paths)]
    if missing:
        return f"no {', '.join(missing)} here: tests/install_system_packages.sh"
    try:
        cluster("up")
    except (subprocess.SubprocessError, OSError) as error:
        return f"{CLUSTER} up failed: {error}"
    return ""


@pytest.fixture(scope="session")
def one_node_cluster():
    """A SLURM of one node, for as long as the tests run."""
    reason = _reason_against()
    if reason:
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)
    yield
    cluster("down")


def results_of_local_run(directory, **options) -> dict[str, bytes]:
    """Results of a cohort of :func:`clusters.slurm_project` by a local run."""
    project = slurm_project(directory, **options)
    local = Project(project.directory, project.workflow)
    local.run()
    return local.results()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """Results of two patients by a local run."""
    return results_of_local_run(tmp_path_factory.mktemp("undisturbed") / "project")


@pytest.fixture(scope="session")
def undisturbed_patient(tmp_path_factory):
    """Results of one patient by a local run."""
    return results_of_local_run(tmp_path_factory.mktemp("undisturbed_patient") / "project", patients=("P1",))


@pytest.fixture
def project(tmp_path, one_node_cluster):
    """A cohort that has not been run, on the cluster."""
    return slurm_project(tmp_path / "project")
