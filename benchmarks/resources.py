"""What jobs ask for against what they need, from small cohorts to large ones.

    python benchmarks/resources.py [--only demo tiny large ...] [--output benchmarks/resources.md]

Every cohort goes through the pipeline on this machine; every job records what it used. On a cluster Snakemake runs
beside it, so that a job needs that much more (``SNAKEMAKE_MB``: read off the memory cgroups of jobs on the SLURM of
``tests/slurm``). About half an hour on two cores; Linux.
"""

import argparse
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from reporting import DEMO, ROOT, circumstances, markdown, snakemake_command

from cohortgmm.pipeline.job import SNAKEMAKE_MB, Usage
from cohortgmm.pipeline.usage import read_usage

#: Requests between these multiples of the need are good.
GOOD = (1.2, 3.0)

#: Time limits up to this are not judged: a cluster may need minutes until a job's first line of Python.
SHORT_SECONDS = 600


def embedded(folder: Path, n_patients: int, n_cells: int, d: int, **gmm) -> dict:
    """A cohort with an embedding: five groups of cells a patient, seen as the options of the fits say."""
    import anndata as ad
    import pandas as pd

    rng = np.random.default_rng(0)
    n = n_patients * n_cells
    means = rng.normal(0.0, 3.0, size=(5, d))
    x = (means[rng.integers(5, size=n)] + rng.normal(size=(n, d))).astype(np.float32)
    obs = pd.DataFrame({"patient": np.repeat([f"P{i}" for i in range(n_patients)], n_cells)})
    obs.index = [f"c{i}" for i in range(n)]
    obsm = {"X_pca": x}
    if "noise" in gmm:
        variances = rng.uniform(0.05, 0.5, size=(n, d)).astype(np.float32)
        obsm |= {"X_pca": x + np.sqrt(variances) * rng.normal(size=(n, d)).astype(np.float32), "variances": variances}
    if "missing" in gmm:
        x[rng.random(x.shape) < 0.2] = np.nan
    seen = x[:, 0] > 0 if "completeness" in gmm else np.ones(n, dtype=bool)
    cohort = ad.AnnData(np.zeros((n, 1), dtype=np.float32), obs=obs, obsm=obsm)[seen].copy()
    cohort.write_h5ad(folder / "cohort.h5ad")
    gmm = {"k_comps": [2, 10, 20]} | gmm
    return {"input": "cohort.h5ad", "patient_col": "patient", "preprocess": {"enabled": False}, "gmm": gmm}


def counts(folder: Path) -> dict:
    """A cohort of raw counts: 12 patients of 2,500 cells with 5,000 genes, one in ten of them seen."""
    import anndata as ad
    import pandas as pd
    import scipy.sparse as sp

    rng = np.random.default_rng(0)
    n, n_genes = 30_000, 5000
    rates = rng.gamma(0.3, 0.5, size=(6, n_genes))
    kinds = rng.integers(6, size=n)
    blocks = [sp.csr_matrix(rng.poisson(rates[kinds[i : i + 2000]]).astype(np.float32)) for i in range(0, n, 2000)]
    obs = pd.DataFrame({"patient": np.repeat([f"P{i}" for i in range(12)], n // 12)}, index=[f"c{i}" for i in range(n)])
    ad.AnnData(sp.vstack(blocks).tocsr(), obs=obs).write_h5ad(folder / "cohort.h5ad")
    return {"input": "cohort.h5ad", "patient_col": "patient", "gmm": {"k_comps": [2, 5]}}


def demo(folder: Path) -> dict:
    """The demo from raw counts."""
    return {"input": str(DEMO), "patient_col": "patient", "celltype_col": "cell_type", "gmm": {"k_comps": [2, 5, 8]}}


NOISE = {"noise": {"obsm": "variances"}}
GATE = {"completeness": {"gates": [{"inside": {"PC1": [0, None]}}]}}

COHORTS: dict[str, tuple[str, Callable[[Path], dict]]] = {
    "tiny": ("20 patients × 60 cells, D = 3", lambda folder: embedded(folder, 20, 60, 3)),
    "demo": ("the demo: 20 × 250 cells, counts to D = 20", demo),
    "noise": (
        "6 × 3,000 cells, D = 10, noise of their own",
        lambda folder: embedded(folder, 6, 3000, 10, **NOISE, k_comps=[2, 5]),
    ),
    "gate": (
        "4 × 6,000 cells, D = 10, a gate keeps some out",
        lambda folder: embedded(folder, 4, 6000, 10, **GATE, k_comps=[5, 10], refit="full"),
    ),
    "gaps": (
        "2 × 8,000 cells, D = 20, a fifth of the entries missing",
        lambda folder: embedded(folder, 2, 8000, 20, missing=True, k_comps=[5, 10], refit="full"),
    ),
    "long": (
        "2 × 24,000 cells, D = 10, noise of their own",
        lambda folder: embedded(folder, 2, 24_000, 10, **NOISE, k_comps=[10, 20], refit="full"),
    ),
    "wide": (
        "10 × 400 cells, D = 2,000, diagonal covariances",
        lambda folder: embedded(folder, 10, 400, 2000, covariance_type="diag", k_comps=[4, 8]),
    ),
    "wide, full": (
        "2 × 900 cells, D = 800",
        lambda folder: embedded(folder, 2, 900, 800, k_comps=[8]),
    ),
    "shallow": ("4 × 100,000 cells, D = 3", lambda folder: embedded(folder, 4, 100_000, 3)),
    "counts": ("12 × 2,500 cells, counts of 5,000 genes", counts),
    "large": ("4 × 200,000 cells, D = 50", lambda folder: embedded(folder, 4, 200_000, 50)),
}


def run(name: str) -> list[Usage]:
    """All jobs of one cohort."""
    import yaml

    folder = Path(tempfile.mkdtemp(prefix="resources-"))
    try:
        (folder / "config.yaml").write_text(yaml.safe_dump(COHORTS[name][1](folder)))
        subprocess.run(snakemake_command(folder, folder / "config.yaml", "-q", "all"), check=True)
        return read_usage(folder / "results" / "logs")
    finally:
        shutil.rmtree(folder)


def rows_of(name: str, jobs: list[Usage]) -> list[list[str]]:
    """A row for every rule."""
    rows = []
    for rule in sorted({job.rule for job in jobs}):
        own = [job for job in jobs if job.rule == rule]
        ratios = [job.memory_asked / job.need for job in own]
        needs, asked = [job.need for job in own], [job.memory_asked for job in own]
        seconds, limits = [job.seconds for job in own], [job.seconds_asked for job in own]
        rows.append(
            [
                *(COHORTS[name][0], rule, f"{len(own):,}"),
                *(_range(asked, 0), _range(needs, 0), _range(ratios, 2)),
                *(_range([limit / 60 for limit in limits], 0), _range(seconds, 1)),
            ]
        )
    return rows


def _range(values: list[float], digits: int) -> str:
    low, high = f"{min(values):,.{digits}f}", f"{max(values):,.{digits}f}"
    return low if low == high else f"{low}–{high}"


def verdict(jobs: list[Usage]) -> str:
    """How many requests are good."""
    ratios = np.array([job.memory_asked / job.need for job in jobs])
    good = float(np.mean((ratios >= GOOD[0]) & (ratios <= GOOD[1])))
    long = [job for job in jobs if job.seconds > SHORT_SECONDS / GOOD[1]]
    late = sum(job.seconds > job.seconds_asked for job in jobs)
    text = (
        f"Memory asked for is {GOOD[0]} to {GOOD[1]:.0f} × the need for {good:.1%} of {len(jobs):,} jobs (target: 95 %; "
        f"lowest {ratios.min():.2f} ×, highest {ratios.max():.2f} ×). {late} jobs ran over their time limit"
    )
    if long:
        times = [job.seconds_asked / job.seconds for job in long]
        text += f"; of the {len(long)} longer than 200 s it was {_range(times, 1)} × the time"
    return text + "."


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=COHORTS, default=list(COHORTS))
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "resources.md")
    options = parser.parse_args()
    load, rows, everything = os.getloadavg()[0], [], []
    for name in options.only:
        jobs = run(name)
        rows += rows_of(name, jobs)
        everything += jobs
        print(name, verdict(jobs), flush=True)
    heading = ["cohort", "rule", "jobs", "MB asked", "MB needed", "ratio", "limit, min", "used, s"]
    head = (
        f"`python benchmarks/resources.py`: needed is what the job used and {SNAKEMAKE_MB} MB for Snakemake, as on a "
        f"cluster.\n{circumstances(['numpy', 'scanpy', 'snakemake'], load)}"
    )
    options.output.write_text("\n\n".join([head, markdown(heading, rows), verdict(everything)]) + "\n")


if __name__ == "__main__":
    main()
