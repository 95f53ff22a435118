"""What scheduling costs: dry runs, reruns without a change, single patients and whole runs of many tiny patients.

    python benchmarks/dag.py [--patients 1000 5000] [--run 1000] [--repeats 3] [--output benchmarks/dag.md]

Patients of 60 cells with nine k each: 11 jobs a patient. The patient list comes from the cohort (a checkpoint) or from a
sample sheet. Whole runs take about 0.2 s a job. About an hour and a half on two cores; Linux.
"""

import argparse
import os
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from reporting import ROOT, circumstances, markdown, snakemake_command, spread

from cohortgmm.pipeline.slurm.shards import PATIENT_RULES, SHARD_VARIABLE

#: Of a dry run of up to 1,000 patients (s, MB), of one patient's target, of a call with nothing to do, of a job (s).
DRY, ONE, NOTHING, JOB = (20, 400), (5, None), (30, None), 0.25
NO_TARGET = (None, None)

HEADING = ["patients", "what", "time", "peak MB", "target", "met"]


@dataclass(frozen=True)
class Calls:
    """Repeated calls of Snakemake."""

    seconds: list[float]
    megabytes: float

    def row(self, n_patients: int, what: str, target: tuple[float | None, float | None]) -> list[str]:
        """A row of the table."""
        seconds, megabytes = target
        met = seconds is None or (median(self.seconds) < seconds and self.megabytes < (megabytes or np.inf))
        wanted = "" if seconds is None else f"< {seconds} s" + (f", < {megabytes} MB" if megabytes else "")
        several = f" {spread(self.seconds, 1)}" if len(self.seconds) > 1 else ""
        took = f"{median(self.seconds):.1f} s{several}"
        return [f"{n_patients:,}", what, took, f"{self.megabytes:.0f}", wanted, ["no", "yes"][met] if wanted else ""]


def project(folder: Path, n_patients: int) -> Path:
    """A folder with a cohort of tiny patients, a sample sheet and both configurations."""
    import anndata as ad
    import pandas as pd
    import yaml

    folder.mkdir(parents=True)
    names = [f"P{i:05d}" for i in range(n_patients)]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60 * n_patients, 3)).astype(np.float32) + 6.0 * rng.integers(2, size=(60 * n_patients, 1))
    obs = pd.DataFrame({"patient": np.repeat(names, 60)}, index=[f"c{i}" for i in range(len(x))])
    cohort = ad.AnnData(np.zeros((len(x), 1), dtype=np.float32), obs=obs, obsm={"X_pca": x.astype(np.float32)})
    cohort.write_h5ad(folder / "cohort.h5ad")
    (folder / "sheet.tsv").write_text("\n".join(["patient", *names]) + "\n")
    config = {
        "input": "cohort.h5ad",
        "patient_col": "patient",
        "preprocess": {"enabled": False},
        "gmm": {"k_comps": list(range(1, 10))},
        "qc": {"patient_figures": False, "umap": False},
    }
    (folder / "checkpoint.yaml").write_text(yaml.safe_dump(config))
    (folder / "sheet.yaml").write_text(yaml.safe_dump(config | {"patients": "sheet.tsv"}))
    return folder


def call(folder: Path, *arguments: str, source: str = "checkpoint", repeats: int = 1, shard: str = "") -> Calls:
    """Calls of Snakemake: their seconds, and the highest peak of memory."""
    environment = os.environ | ({SHARD_VARIABLE: shard} if shard else {})
    seconds, megabytes = [], 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        with open(folder / "out.log", "w") as file:
            command = snakemake_command(folder, folder / f"{source}.yaml", *arguments)
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
            _, status, usage = os.wait4(process.pid, 0)
        seconds.append(time.perf_counter() - start)
        megabytes = max(megabytes, usage.ru_maxrss / 1024)
        if status:
            raise SystemExit((folder / "out.log").read_text()[-3000:])
    return Calls(seconds, megabytes)


def n_jobs(folder: Path) -> int:
    """Number of jobs by the last dry run."""
    return int(re.findall(r"^total +(\d+)", (folder / "out.log").read_text(), re.MULTILINE)[-1])


def dry_runs(folder: Path, n: int, repeats: int) -> tuple[list[list[str]], int]:
    """Rows of a cohort that has not been run, and the number of its jobs once it is split."""
    dry = ["-n", "-q", "rules"]
    target = DRY if n <= 1000 else NO_TARGET
    rows = []

    def measure(what: str, limit: tuple[float | None, float | None], *arguments: str, **options) -> None:
        calls = call(folder, *dry, *arguments, repeats=repeats, **options)
        rows.append(calls.row(n, what.format(n_jobs=n_jobs(folder)), limit))

    measure("dry run from a sample sheet ({n_jobs:,} jobs)", target, source="sheet")
    call(folder, "results/patients.tsv", "-q", "all")
    measure("dry run from the checkpoint, once the cohort is split ({n_jobs:,} jobs)", target)
    jobs = n_jobs(folder)
    measure("dry run of one patient ({n_jobs:,} jobs)", ONE, "--", f"results/models/P{n // 2:05d}.npz")
    merge = ["--", "results/cohort_gmm.h5ad"]
    measure("dry run of a batch, `--batch merge=1/10` ({n_jobs:,} jobs)", NO_TARGET, "--batch", "merge=1/10", *merge)
    shard = ["--allowed-rules", *PATIENT_RULES, "--", *(f"results/models/P{i:05d}.npz" for i in range(0, n, 20))]
    measure("dry run of one of 20 shards ({n_jobs:,} jobs)", NO_TARGET, *shard, shard="1/20")
    return rows, jobs


def whole_run(folder: Path, n: int, jobs: int, repeats: int) -> list[list[str]]:
    """Rows of a run from the split on, and of a call with nothing to do afterwards."""
    run = call(folder, "-q", "all")
    a_job = run.seconds[0] / jobs
    what = f"whole run on 2 cores ({jobs:,} jobs in {run.seconds[0] / 60:.1f} min)"
    met = "yes" if a_job < JOB else "no"
    row = [f"{n:,}", what, f"{a_job:.3f} s a job", f"{run.megabytes:.0f}", f"< {JOB} s a job", met]
    again = call(folder, "-q", "all", repeats=repeats)
    return [row, again.row(n, "call with nothing to do", NOTHING)]


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, nargs="*", default=[1000, 5000])
    parser.add_argument("--run", type=int, nargs="*", default=[1000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "dag.md")
    options = parser.parse_args()
    load, rows, work = os.getloadavg()[0], [], Path(tempfile.mkdtemp(prefix="dag-"))
    head = (
        f"`python benchmarks/dag.py`: medians of {options.repeats} calls of Snakemake and their range; whole runs once.\n"
        f"{circumstances(['snakemake'], load)}"
    )
    try:
        for n in sorted({*options.patients, *options.run}):
            folder = project(work / str(n), n)
            dry, jobs = dry_runs(folder, n, options.repeats)
            rows += dry + (whole_run(folder, n, jobs, options.repeats) if n in options.run else [])
            options.output.write_text(f"{head}\n\n{markdown(HEADING, rows)}\n")
            print(options.output.read_text(), flush=True)
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
