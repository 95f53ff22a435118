"""A cohort on a real SLURM cluster, with fits that can be held or made greedy from outside."""

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from projects import REPOSITORY, TARGETS, Project, make_cohort, new_project

CLUSTER = Path(__file__).with_name("cluster.sh")
PATIENTS = ("P1", "P2")

#: A user's completeness function: every cell was seen. It is called within the fits, so that a test can interfere: the
#: first fit that finds `hold` stays until `held` is gone, and every fit that finds `eat` takes as many MB as stand in it.
FUNCTION = """
import os, time
from pathlib import Path

import numpy as np


def seen(x):
    if Path("eat").exists():
        np.ones(int(Path("eat").read_text()) << 17).sum()
    try:
        os.rename("hold", "held")
    except FileNotFoundError:
        return np.ones(len(x))
    Path("held").write_text(os.environ.get("SLURM_JOB_ID", ""))
    while Path("held").exists():
        time.sleep(0.1)
    return np.ones(len(x))
"""


def cluster(*arguments: str) -> None:
    """Start or stop parts of the cluster."""
    subprocess.run([str(CLUSTER), *arguments], check=True, timeout=120)


def slurm(*command: str) -> str:
    """What a command of SLURM's says."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def wait_for(condition: Callable[[], object], what: str, seconds: float = 180) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.2)


@dataclass
class SlurmProject(Project):
    """A project whose jobs are SLURM's, through the profile."""

    profile: Path = REPOSITORY / "profiles" / "slurm"

    def command(self, *arguments: str, cores: int = 0) -> list[str]:
        # Ask when a job of a machine that is idle has just ended, and fewer times in vain.
        options = ["--profile", str(self.profile), "--slurm-init-seconds-before-status-checks", "7"]
        options += ["--slurm-status-attempts", "2"]
        local = super().command(*options, *arguments)
        i = local.index("--cores")
        return local[:i] + local[i + 2 :]

    def start(self, *arguments: str) -> subprocess.Popen:
        """Run Snakemake beside the test; its output is in ``out.log``."""
        with (self.directory / "out.log").open("w") as file:
            # Also where the tests run in the background, and so would everything they start, deaf to Ctrl-C.
            command = ["env", "--default-signal=INT", *self.command(*arguments)]
            return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)

    def output(self) -> str:
        """What :meth:`start`'s Snakemake has said."""
        path = self.directory / "out.log"
        return path.read_text() if path.exists() else ""

    def finish(self, process: subprocess.Popen, status: int = 0, seconds: float = 480) -> str:
        """Wait for :meth:`start`'s Snakemake; its output."""
        process.wait(timeout=seconds)
        assert process.returncode == status, self.output()
        return self.output()

    def hold(self) -> None:
        """Let the next fit stay until :meth:`release`."""
        (self.directory / "hold").touch()

    def wait_until_held(self) -> None:
        """Wait for the fit that stays."""
        wait_for((self.directory / "held").exists, f"a fit is held: {self.output()}")

    def start_held(self) -> subprocess.Popen:
        """:meth:`start`, until a fit is held."""
        self.hold()
        process = self.start(*TARGETS)
        self.wait_until_held()
        return process

    def release(self) -> None:
        """Let it go on."""
        (self.directory / "held").unlink()

    def held_job(self) -> str:
        """SLURM's number of the fit that stays."""
        wait_for(lambda: (self.directory / "held").read_text(), "the fit that is held names itself")
        return (self.directory / "held").read_text()


def slurm_project(directory: Path, workflow: Path = REPOSITORY, patients: Sequence[str] = PATIENTS) -> SlurmProject:
    """Patients, two k, with the function above."""
    project = new_project(directory, workflow, make_cohort(patients))
    (directory / "seen.py").write_text(FUNCTION)
    project.configure(gmm={"k_comps": [1, 2], "completeness": {"function": "seen.py:seen"}, "n_init": 2})
    return SlurmProject(project.directory, project.workflow)
