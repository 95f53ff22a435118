"""What a fit job, the demo's fits and `cohortgmm.fit_gmm` cost: the figures of the README.

    python benchmarks/pipeline.py [--repeats 5] [--output benchmarks/pipeline.md]

The comparison with ggml-ot needs its environment (`make ggml`, or COHORTGMM_GGML_PYTHON for its interpreter);
without it that row says so. Everything else runs in temporary directories with the project's own environment. Linux.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from reporting import DEMO, ROOT, Line, circumstances, lines_table, peer_python, spread

CONFIG = ROOT / "config" / "config.yaml"
KS = tuple(range(2, 9))
FIXED_K = 5
N_JOBS = 3 * len(KS)

# `fit` has the directives of the real rule that cost time. `peak` is `fit` with a line at the end of its script.
SNAKEFILE = """
OPTIONS = {options}
FIT = dict(options=OPTIONS, seed=0, default_range=False)


rule bare:
    output: "bare/{{i}}.txt"
    script: "bare.py"


rule fit:
    input: cells="cells.npz"
    output: model="fit/{{patient}}/k{{k}}.npz", score="fit/{{patient}}/k{{k}}.json"
    log: "logs/{{patient}}/k{{k}}.log"
    benchmark: "benchmarks/{{patient}}/k{{k}}.tsv"
    params: **FIT
    message: "Fitting {{wildcards.k}} components to {{wildcards.patient}}"
    script: {script!r}


rule peak:
    input: cells="cells.npz"
    output: model="peak/{{patient}}/k{{k}}.npz", score="peak/{{patient}}/k{{k}}.json"
    log: "logs/peak/{{patient}}/k{{k}}.log"
    params: **FIT
    script: "peak.py"
"""

BARE = """
import numpy
import scipy.linalg

with open(snakemake.output[0], "w") as file:
    file.write("done")
"""

# The kernel's own high-water mark of this process. Samples miss a job of 0.3 s, and ru_maxrss also counts what the
# process held before it became this program: a copy of Snakemake.
PEAK = """
with open("/proc/self/status") as status, open(snakemake.output.model + ".kb", "w") as file:
    file.write(next(line.split()[1] for line in status if line.startswith("VmHWM:")))
"""


def snakemake(directory: Path, *arguments: str | Path, cwd: Path = ROOT) -> float:
    """Run Snakemake and return its wall time in seconds."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    call = [sys.executable, "-m", "snakemake", "--directory", directory, "--scheduler", "greedy", "--quiet", "all"]
    started = time.perf_counter()
    done = subprocess.run(
        [*map(str, call), *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"snakemake failed in {directory}:\n{done.stderr[-3000:]}")
    return seconds


def split_demo(directory: Path) -> list[str]:
    """Run the pipeline up to the array files; returns their names."""
    snakemake(directory, "--configfile", CONFIG, "--cores", "2", "results/patients.tsv")
    return sorted(path.stem for path in (directory / "results" / "patients").glob("*.npz"))


def job_costs(cells: Path, repeats: int, scratch: Path) -> list[Line]:
    """A fit job against the smallest job that loads numpy and scipy; the fit's peak memory.

    Cost of a job: the wall time of N jobs and one small job, less that of the small job alone, by N. The fits are the
    candidates of the demo in equal parts.
    """
    write_jobs(cells, scratch)
    first, bare = "bare/first.txt", [f"bare/{i}.txt" for i in range(N_JOBS)]
    fits = [f"fit/{i}/k{k}.npz" for i in range(N_JOBS // len(KS)) for k in KS]
    run_jobs(scratch, [first, fits[0]])  # compiled files, caches
    seconds: dict[str, list[float]] = {"fit": [], "bare": []}
    for _ in range(repeats):
        base = run_jobs(scratch, [first])
        seconds["bare"].append((run_jobs(scratch, [first, *bare]) - base) / N_JOBS)
        seconds["fit"].append((run_jobs(scratch, [first, *fits]) - base) / N_JOBS)
        if any(json.loads(path.read_text())["status"] != "ok" for path in scratch.glob("fit/*/*.json")):
            raise SystemExit("a candidate was skipped, not fitted")
    fit, small = statistics.median(seconds["fit"]), statistics.median(seconds["bare"])
    run_jobs(scratch, [target.replace("fit/", "peak/") for target in fits])
    peak = max(int(path.read_text()) for path in scratch.glob("peak/*/*.kb")) / 1024
    return [
        Line(
            f"a `fit` job (wall, mean of k = {KS[0]}..{KS[-1]})",
            f"{fit:.3f} s {spread(seconds['fit'], 3)}",
            f"{small:.3f} s {spread(seconds['bare'], 3)}: a job that imports numpy and scipy.linalg and writes a file",
            f"{fit / small:.2f} ×",
            "≤ 1.5 ×",
            fit <= 1.5 * small,
        ),
        Line("its peak memory (largest of all k)", f"{peak:.0f} MB", "", "", "< 150 MB", peak < 150),
    ]


def write_jobs(cells: Path, scratch: Path) -> None:
    """The throw-away workflow of :func:`job_costs`."""
    sys.path.insert(0, str(ROOT / "src"))
    from cohortgmm.cohort.fit_options import fit_options
    from cohortgmm.config import GmmConfig

    script = ROOT / "scripts" / "fit.py"
    shutil.copyfile(cells, scratch / "cells.npz")
    (scratch / "Snakefile").write_text(SNAKEFILE.format(options=fit_options(GmmConfig()), script=str(script)))
    (scratch / "bare.py").write_text(BARE)
    (scratch / "peak.py").write_text(script.read_text() + PEAK)


def run_jobs(scratch: Path, targets: list[str]) -> float:
    """Wall time of making targets from nothing, one job at a time."""
    for folder in ("bare", "fit", "peak", "logs", "benchmarks", ".snakemake"):
        shutil.rmtree(scratch / folder, ignore_errors=True)
    return snakemake(scratch, "--cores", "1", *targets, cwd=scratch)


def all_fits(prepared: Path, names: list[str], repeats: int, scratch: Path) -> Line:
    """All fits, selections and refits of the demo on two cores, by the real workflow."""
    seconds, cpu = [], -children_cpu()
    for i in range(repeats):
        directory = scratch / f"run{i}"
        shutil.copytree(prepared, directory)
        targets = [f"results/models/{name}.npz" for name in names]
        seconds.append(snakemake(directory, "--configfile", CONFIG, "--cores", "2", *targets))
        if len(list(directory.glob("results/fits/*/*.npz"))) != len(KS) * len(names):
            raise SystemExit(f"{CONFIG} does not have the candidates {KS}")
        shutil.rmtree(directory)
    wall, n = statistics.median(seconds), len(names)
    cpu = (cpu + children_cpu()) / repeats
    what = f"the demo: {n * len(KS)} fits, {n} selections, {n} refits as jobs on 2 cores (wall)"
    measured = f"{wall:.1f} s {spread(seconds, 1)}"
    return Line(what, measured, f"{cpu:.0f} s of processor time", "", "< 75 s", wall < 75)


def children_cpu() -> float:
    """Processor seconds of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def against_peer(repeats: int) -> tuple[list[Line], str]:
    """`cohortgmm.fit_gmm` against ggml-ot's on the same cells; also ggml-ot's version."""
    what = f"`fit_gmm`, demo's X_pca, k = {KS[0]}..{KS[-1]}, refit full, one thread, in process"
    python = peer_python()
    if not python.is_file():
        reason = "no ggml-ot environment: run `make ggml`"
        return [Line(what, "", reason, "", "≥ 10 ×", None)], "not installed"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    call = [python, __file__, "--repeats", str(repeats), "--as-peer"]
    done = subprocess.run(list(map(str, call)), env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the comparison with ggml-ot failed:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    ours, theirs = (
        {name: statistics.median(run[name] for run in found[who]) for name in found[who][0]}
        for who in ("cohortgmm", "ggml-ot")
    )
    ratio = theirs["seconds"] / ours["seconds"]
    gains = {name: ours[name] - theirs[name] for name in ("log_likelihood", "at_fixed_k")}
    times = Line(
        what,
        f"{ours['seconds']:.2f} s {spread([run['seconds'] for run in found['cohortgmm']], 2)}",
        f"{theirs['seconds']:.2f} s {spread([run['seconds'] for run in found['ggml-ot']], 2)}: ggml-ot's `fit_gmm`",
        f"{ratio:.1f} × faster",
        "≥ 10 ×",
        ratio >= 10,
    )
    selected = Line(
        "the log-likelihood it reaches (nats per cell; mean k chosen)",
        f"{ours['log_likelihood']:.3f} (k {ours['k']:.2f})",
        f"{theirs['log_likelihood']:.3f} (k {theirs['k']:.2f}): ggml-ot",
        f"{gains['log_likelihood']:+.3f}",
        "≥ 0",
        gains["log_likelihood"] >= 0,
    )
    fixed = Line(
        f"the same at k = {FIXED_K} for every patient, all cells",
        f"{ours['at_fixed_k']:.3f}",
        f"{theirs['at_fixed_k']:.3f}: ggml-ot",
        f"{gains['at_fixed_k']:+.3f}",
        "≥ 0",
        gains["at_fixed_k"] >= 0,
    )
    return [times, selected, fixed], found["version"]


def run_as_peer(repeats: int) -> dict:
    """Both `fit_gmm` in turns, in ggml-ot's environment; only the calls themselves are timed."""
    import anndata
    import ggml_ot
    import torch
    from threadpoolctl import threadpool_limits

    import cohortgmm

    cohort = anndata.read_h5ad(DEMO)
    options = {"refit": "full", "verbose": False}

    def ours(adata, ks, seed):
        started = time.perf_counter()
        cohortgmm.fit_gmm(adata, patient_col="patient", use_rep="X_pca", k_comps=ks, random_state=seed, **options)
        return time.perf_counter() - started

    def theirs(adata, ks, seed):
        ggml_ot.settings.random_seed = seed
        dataset = ggml_ot.from_anndata(adata, patient_col="patient", label_col="condition", use_rep="X_pca")
        started = time.perf_counter()
        ggml_ot.gmm.fit_gmm(dataset, k_comps=ks, **options)
        return time.perf_counter() - started

    runs: dict[str, list[dict]] = {"cohortgmm": [], "ggml-ot": []}
    torch.set_num_threads(1)
    with threadpool_limits(1):
        for seed in range(-1, repeats):  # the first of each warms up
            for name, fit in (("cohortgmm", ours), ("ggml-ot", theirs)):
                selected, fixed = cohort.copy(), cohort.copy()
                seconds = fit(selected, list(KS), max(seed, 0))
                fit(fixed, FIXED_K, max(seed, 0))
                if seed >= 0:
                    at_fixed_k = {"at_fixed_k": quality(fixed)["log_likelihood"]}
                    runs[name].append({"seconds": seconds} | quality(selected) | at_fixed_k)
    return runs | {"version": version("ggml-ot")}


def quality(adata) -> dict[str, float]:
    """Mean log-likelihood of all cells under the mixtures that are stored, and mean k; by scipy, in double precision."""
    from scipy.special import logsumexp
    from scipy.stats import multivariate_normal

    stored = adata.uns["gmm_X_pca"]
    ids = adata.obs["patient"].astype(str).to_numpy()
    counts = np.asarray(stored["distribution_n_components"])
    total = 0.0
    for i, patient in enumerate(stored["weight_inference"]["distribution_ids"]):
        x = np.asarray(adata.obsm["X_pca"][ids == patient], dtype=float)
        mu, var = stored["model"]["mu"][i], stored["model"]["var"][i]
        parts = [multivariate_normal(mu[j], var[j]).logpdf(x) for j in range(counts[i])]
        weights = np.asarray(stored["distribution_weights"])[i, : counts[i]]
        total += logsumexp(np.stack(parts, axis=1), axis=1, b=weights).sum()
    return {"log_likelihood": total / adata.n_obs, "k": float(counts.mean())}


def report(lines: list[Line], peer_version: str, repeats: int, load: float) -> str:
    """The Markdown page."""
    return "\n".join(
        [
            "# Cost of the pipeline",
            "",
            f"`python benchmarks/pipeline.py --repeats {repeats}`: medians of {repeats} (and ranges), in turns.",
            circumstances(["numpy", "scipy", "snakemake"], load, ggml_ot=peer_version),
            "",
            lines_table(lines),
            "",
        ]
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "pipeline.md")
    parser.add_argument("--as-peer", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.as_peer:
        print(json.dumps(run_as_peer(args.repeats)))
        return
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="cohortgmm-") as folder:
        prepared, jobs, runs = (Path(folder) / name for name in ("prepared", "jobs", "runs"))
        for path in (prepared, jobs, runs):
            path.mkdir()
        names = split_demo(prepared)
        cells = prepared / "results" / "patients" / f"{names[0]}.npz"
        lines = job_costs(cells, args.repeats, jobs)
        lines.append(all_fits(prepared, names, args.repeats, runs))
    compared, peer_version = against_peer(args.repeats)
    text = report([*lines, *compared], peer_version, args.repeats, load)
    args.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
