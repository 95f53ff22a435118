"""What scheduling costs: dry runs, reruns without a change, single patients and whole runs of many tiny patients.

    python benchmarks/dag.py [--patients 1000 5000] [--run 1000] [--output benchmarks/dag.md]

Patients of 60 cells with nine k each: 11 jobs a patient. The patient list comes from the cohort (a checkpoint) or from a
sample sheet. Whole runs take about 0.2 s a job. About an hour on two cores; Linux.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from reporting import ROOT, Line, circumstances, lines_table

#: Of a dry run of 1,000 patients (s, MB), a rerun without a change (s), one patient's target (s), a job on 2 cores (s).
TARGETS = {"dry": (20, 400), "nothing": 30, "one": 5, "job": 0.25}
CANDIDATES = list(range(1, 10))


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
        "gmm": {"k_comps": CANDIDATES},
        "qc": {"patient_figures": False, "umap": False},
    }
    (folder / "checkpoint.yaml").write_text(yaml.safe_dump(config))
    (folder / "sheet.yaml").write_text(yaml.safe_dump(config | {"patients": "sheet.tsv"}))
    return folder


def call(folder: Path, *arguments: str, source: str = "checkpoint") -> tuple[float, float]:
    """Seconds and peak MB of a call of Snakemake."""
    command = [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)),
        *("--configfile", str(folder / f"{source}.yaml"), "--cores", "2", *arguments),
    ]
    start = time.perf_counter()
    with open(folder / "out.log", "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit((folder / "out.log").read_text()[-3000:])
    return seconds, usage.ru_maxrss / 1024


def _line(what: str, seconds: float, memory: float, limit: float | None, most: float | None = None) -> Line:
    target = "" if limit is None else f"< {limit} s" + (f", < {most} MB" if most else "")
    met = None if limit is None else seconds < limit and (most is None or memory < most)
    return Line(what, f"{seconds:.1f} s", f"{memory:.0f} MB", "", target, met)


def dry_runs(folder: Path, n_patients: int) -> list[Line]:
    """Of a cohort that has not been run."""
    n = f"{n_patients:,} patients × {len(CANDIDATES)} k ({11 * n_patients + 9:,} jobs)"
    seconds, memory = TARGETS["dry"] if n_patients <= 1000 else (None, None)
    lines = [
        _line(f"{n}: dry run from a sample sheet", *call(folder, "-n", "-q", "all", source="sheet"), seconds, memory)
    ]
    call(folder, "results/patients.tsv")
    lines.append(_line(f"{n}: dry run once the cohort is split", *call(folder, "-n", "-q", "all"), seconds, memory))
    target = f"results/models/P{n_patients // 2:05d}.npz"
    one = call(folder, "-n", "-q", "all", "--", target)
    lines.append(_line(f"{n}: dry run of one patient", *one, TARGETS["one"]))
    batch = call(folder, "-n", "-q", "all", "--batch", "merge=1/10", "--", "results/cohort_gmm.h5ad")
    lines.append(_line(f"{n}: dry run of a batch (`--batch merge=1/10`)", *batch, None))
    return lines


def whole_run(folder: Path, n_patients: int) -> list[Line]:
    """A run from the split on, and what a call costs afterwards."""
    n_jobs = 11 * n_patients + 8
    seconds, memory = call(folder, "-q", "all")
    met = seconds / n_jobs < TARGETS["job"]
    what = f"{n_patients:,} patients: a whole run on 2 cores, {n_jobs:,} jobs"
    lines = [Line(what, f"{seconds / n_jobs:.3f} s a job", f"{seconds:.0f} s, {memory:.0f} MB", "", "< 0.25 s", met)]
    again = call(folder, "-q", "all")
    lines.append(_line(f"{n_patients:,} patients: a call with nothing to do", *again, TARGETS["nothing"]))
    return lines


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, nargs="*", default=[1000, 5000])
    parser.add_argument("--run", type=int, nargs="*", default=[1000])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "dag.md")
    options = parser.parse_args()
    load, lines, work = os.getloadavg()[0], [], Path(tempfile.mkdtemp(prefix="dag-"))
    try:
        for n in sorted({*options.patients, *options.run}):
            folder = project(work / str(n), n)
            lines += dry_runs(folder, n)
            lines += whole_run(folder, n) if n in options.run else []
            print(lines_table(lines), flush=True)
            head = f"`python benchmarks/dag.py`\n{circumstances(['snakemake'], load)}\n\n"
            options.output.write_text(head + lines_table(lines) + "\n")
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
