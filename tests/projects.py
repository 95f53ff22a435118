"""A small cohort, and the pipeline run on it as a user would."""

import atexit
import fcntl
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
WORKFLOW_PARTS = ("workflow", "scripts", "src", "profiles", "envs")

#: What a small run is asked for: everything but the figures.
TARGETS = ("results/cohort_gmm.h5ad", "results/scores.tsv", "results/selection.tsv")


def make_cohort(patients=("P1", "P2", "P3"), n_cells=60, n_features=3, seed=0) -> ad.AnnData:
    """Cells of two well-separated groups per patient in ``obsm["X_pca"]``; each patient's do not depend on the others."""
    blocks, names = [], []
    for patient in patients:
        rng = np.random.default_rng([seed, *str(patient).encode()])
        group = np.arange(n_cells) % 2
        blocks.append(rng.normal(size=(n_cells, n_features)) + 6.0 * group[:, None])
        names += [f"{patient}:{i:03d}" for i in range(n_cells)]
    obs = pd.DataFrame(
        {
            "patient": np.repeat(np.array(patients, dtype=object), n_cells),
            "condition": np.repeat(np.where(np.arange(len(patients)) % 2, "sick", "well"), n_cells),
            "cell_type": np.tile(np.where(np.arange(n_cells) % 2, "T", "B"), len(patients)),
        },
        index=names,
    )
    x = np.concatenate(blocks)
    return ad.AnnData(np.zeros((len(x), 1), dtype=np.float32), obs=obs, obsm={"X_pca": x.astype(np.float32)})


@functools.cache
def snakemake_server() -> subprocess.Popen:
    """The process that imported Snakemake, as this takes longer than most of what the tests call it for."""
    server = Path(__file__).with_name("snakemake_server.py")
    process = subprocess.Popen([sys.executable, server], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    atexit.register(process.communicate)
    return process


def call_snakemake(arguments: Sequence[str], seconds: int) -> subprocess.CompletedProcess:
    """``python -m snakemake`` with these arguments; after so many seconds it is ended."""
    process = snakemake_server()
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder) / "stdout", Path(folder) / "stderr"
        request = {"arguments": arguments, "directory": os.getcwd(), "environment": os.environ | {"NO_COLOR": "1"}}
        request |= {"stdout": str(output), "stderr": str(errors), "seconds": seconds}
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        status = int(process.stdout.readline())
        return subprocess.CompletedProcess(arguments, status, output.read_text(), errors.read_text())


@dataclass
class Project:
    """A working directory with a configuration, and the workflow that runs in it."""

    directory: Path
    workflow: Path

    def configure(self, **changes) -> None:
        """Change keys of the configuration; a dict changes keys of a section."""
        path = self.directory / "config.yaml"
        config = yaml.safe_load(path.read_text())
        for key, value in changes.items():
            config[key] = config.get(key, {}) | value if isinstance(value, dict) else value
        path.write_text(yaml.safe_dump(config))

    def command(self, *arguments: str, cores: int = 2) -> list[str]:
        """A call of Snakemake."""
        return [
            *(sys.executable, "-m", "snakemake", "--snakefile", str(self.workflow / "Snakefile")),
            *("--directory", str(self.directory), "--configfile", str(self.directory / "config.yaml")),
            *("--cores", str(cores), *arguments),
        ]

    def call(self, *arguments: str, cores: int = 2, timeout: int = 300) -> subprocess.CompletedProcess:
        """Run Snakemake to its end, whatever that is."""
        return call_snakemake(self.command(*arguments, cores=cores)[3:], timeout)

    def run(self, *arguments: str, cores: int = 2) -> Counter:
        """Run Snakemake, which must succeed; which jobs ran, as a count per rule or ``rule/patient``."""
        before = self.logs()
        result = self.call(*(arguments or TARGETS), cores=cores)
        assert result.returncode == 0, result.stdout + result.stderr
        return Counter(job for job, time in self.logs().items() if before.get(job) != time)

    def logs(self) -> dict[str, int]:
        """Times of the logs of all jobs."""
        folder = self.directory / "results" / "logs"
        paths = [path.relative_to(folder) for path in folder.rglob("*.log")]
        ours = [path for path in paths if path.parts[0] != "slurm"]
        return {str(path.with_suffix("")): (folder / path).stat().st_mtime_ns for path in ours}

    def results(self) -> dict[str, bytes]:
        """Content of the final tables and models by name; without the seconds, which no two runs share."""
        folder = self.directory / "results"
        paths = [folder / "selection.tsv", folder / "patients.tsv", folder / "cohort_gmm.h5ad"]
        contents = {path.name: path.read_bytes() for path in [*paths, *sorted((folder / "models").glob("*.npz"))]}
        scores = pd.read_csv(folder / "scores.tsv", sep="\t", dtype=str).drop(columns="seconds")
        return contents | {"scores.tsv": scores.to_csv().encode()}


def copy_workflow(target: Path) -> Path:
    """A copy of the workflow that nobody else edits."""
    for part in WORKFLOW_PARTS:
        shutil.copytree(REPOSITORY / part, target / part)
    shutil.copy2(REPOSITORY / "Snakefile", target)
    return target


def new_project(directory: Path, workflow: Path, cohort: ad.AnnData) -> Project:
    """A project on a cohort that has an embedding already."""
    directory.mkdir(parents=True)
    cohort.write_h5ad(directory / "cohort.h5ad")
    config = {
        "input": "cohort.h5ad",
        "patient_col": "patient",
        "label_col": "condition",
        "celltype_col": "cell_type",
        "preprocess": {"enabled": False},
        "gmm": {"k_comps": [1, 2]},
        "qc": {"umap": False},
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    return Project(directory, workflow)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder ``name`` that ``make`` fills, made by the first of the workers that asks for it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with folder.with_name(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            (folder / ".made").touch()
    return folder
