"""The measurements of engine.py."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
from reporting import DEMO, ROOT, peer_python

sys.path.insert(0, str(ROOT / "src"))
from cohortgmm import GaussianMixture, fit_mixture

#: A fit is in a bad optimum this far below the other's of the same cells (nats per cell).
BAD = 0.05

#: A start has reached the best optimum known within this (nats per cell).
REACHED = 0.01
OPTIMA_K = 5
OPTIMA_SEEDS = 20

WAYS = ("mapped", "single", "held", "sklearn")
N_LARGE, D_LARGE, K_LARGE = 1_000_000, 50, 30


# ---- data ----------------------------------------------------------------------------------------------------------


def simulated_mixture(d: int, k: int, seed: int, spread: float = 2.0) -> GaussianMixture:
    """A mixture with random covariances; components overlap in 10 dimensions and are apart in 50."""
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(k, d, d)) / np.sqrt(d)
    covariances = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(d)
    return GaussianMixture(rng.dirichlet(np.full(k, 5.0)), spread * rng.normal(size=(k, d)), covariances)


def simulated(n: int, d: int, k: int, seed: int) -> np.ndarray:
    """Cells of such a mixture."""
    return simulated_mixture(d, k, seed).sample(n, seed)[0]


@cache
def demo_embedding() -> np.ndarray:
    """(5000, 50) principal components of the demo's cells."""
    import anndata
    import scanpy as sc

    adata = anndata.read_h5ad(DEMO)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.scale(adata, max_value=10)
    sc.pp.pca(adata, n_comps=50, random_state=0)
    return np.asarray(adata.obsm["X_pca"], dtype=np.float64)


def real(n: int, d: int, seed: int) -> np.ndarray:
    """Some of these cells, in the first components."""
    x = demo_embedding()
    return np.ascontiguousarray(x[np.random.default_rng(seed).permutation(len(x))[:n], :d])


# ---- scikit-learn beside ours --------------------------------------------------------------------------------------


def timed(function: Callable, *args, **kwargs) -> tuple[float, object]:
    started = time.perf_counter()
    result = function(*args, **kwargs)
    return time.perf_counter() - started, result


def sklearn_fit(x: np.ndarray, k: int, seed: int, covariance_type: str = "full", **options):
    """scikit-learn's fit with our defaults."""
    from sklearn.mixture import GaussianMixture as Peer

    options = {"reg_covar": 1e-4, "tol": 1e-3, "max_iter": 100} | options
    return Peer(k, covariance_type=covariance_type, random_state=seed, **options).fit(x)


def log_likelihood(fit, x: np.ndarray) -> float:
    """Mean log-likelihood per cell of a fit, ours or scikit-learn's, whose ``lower_bound_`` is one M-step old."""
    return float(fit.score(x) if hasattr(fit, "score") else fit.log_likelihood)


def grid(seeds: int) -> dict:
    """Full fits over the grid."""
    points = []
    for kind in ("full", "diag"):
        for data in ("simulated", "demo"):
            for n in (1000, 5000, 20000):
                if data == "demo" and n > len(demo_embedding()):
                    continue
                points += [grid_point(kind, data, n, d, k, seeds) for d in (10, 30, 50) for k in (5, 10, 20)]
    return {"points": points}


def grid_point(kind: str, data: str, n: int, d: int, k: int, seeds: int) -> dict:
    """One point: other data and another start for every seed, ours and theirs in turns."""
    ours, theirs, gains = [], [], []
    for seed in range(seeds):
        x = simulated(n, d, k, seed) if data == "simulated" else real(n, d, seed)
        if seed == 0:
            fit_mixture(x, k, covariance_type=kind, max_iter=1)  # imports and pages
            sklearn_fit(x, k, 0, kind, max_iter=1)
        ours.append(timed(fit_mixture, x, k, random_state=seed, covariance_type=kind))
        theirs.append(timed(sklearn_fit, x, k, seed, kind))
        gains.append(log_likelihood(ours[-1][1], x) - log_likelihood(theirs[-1][1], x))
    return {
        "covariance_type": kind, "data": data, "n": n, "d": d, "k": k,
        "ours_s": statistics.median(s for s, _ in ours),
        "sklearn_s": statistics.median(s for s, _ in theirs),
        "ours_iter": statistics.median(fit.n_iter for _, fit in ours),
        "sklearn_iter": statistics.median(peer.n_iter_ for _, peer in theirs),
        "gains": gains,
        "ours_bad": [float(gain < -BAD) for gain in gains],
        "sklearn_bad": [float(gain > BAD) for gain in gains],
    }  # fmt: skip


def iteration(seeds: int) -> dict:
    """Iterations at N = 20,000, D = 50, K = 20 against the matrix products that they need densely."""
    n, d, k = 20_000, 50, 20
    x = simulated_mixture(d, k, 0, spread=1.0).sample(n, 0)[0]
    a, w = x[:4096], np.random.default_rng(0).normal(size=(d, d))
    rate = 2 * len(a) * d * d / statistics.median(timed(np.matmul, a, w)[0] for _ in range(200))
    first, sparse = [], []
    for seed in range(seeds):
        options = {"initial": fit_mixture(x, k, random_state=seed, max_iter=1).model, "tol": 0.0}
        one, _ = min((timed(fit_mixture, x, k, max_iter=1, **options) for _ in range(3)), key=lambda run: run[0])
        many, fit = min((timed(fit_mixture, x, k, max_iter=31, **options) for _ in range(3)), key=lambda run: run[0])
        first.append(one / 2)  # two E-steps over everything
        sparse.append((many - one) / (fit.n_iter - 1))
    return {
        "gflops": rate / 1e9,
        "products_s": 4 * n * d * d * k / rate,
        "first_s": statistics.median(first),
        "sparse_s": statistics.median(sparse),
    }


def threads(seeds: int) -> dict:
    """Two threads against one."""
    points = []
    for n, d, k, kind in (
        (100_000, 30, 10, "full"),
        (200_000, 50, 20, "full"),
        (500_000, 10, 10, "full"),
        (500_000, 30, 10, "diag"),
    ):
        x = simulated(n, d, k, 0)
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for seed in range(seeds):
            for n_threads, found in seconds.items():
                found.append(timed(fit_mixture, x, k, covariance_type=kind, random_state=seed, n_threads=n_threads)[0])
        one, two = (statistics.median(found) for found in seconds.values())
        points.append(
            {"data": "simulated", "n": n, "d": d, "k": k, "covariance_type": kind, "one_s": one, "two_s": two}
        )
    return {"points": points}


def growth(seeds: int) -> dict:
    """Ten iterations against N, K and D."""
    curves = {
        "N": ([(n, 20, 10) for n in (1000, 3000, 10_000, 30_000, 100_000, 300_000)], "K = 10, D = 20"),
        "K": ([(20_000, 20, k) for k in (2, 4, 8, 16, 32, 64)], "N = 20,000, D = 20"),
        "D": ([(20_000, d, 10) for d in (5, 10, 20, 40, 80)], "N = 20,000, K = 10"),
    }
    found = {}
    for which, (name, (sizes, fixed)) in enumerate(curves.items()):
        curve = {"x": [size[(0, 2, 1)[which]] for size in sizes], "fixed": fixed, "ours_s": [], "sklearn_s": []}
        for n, d, k in sizes:
            x = simulated_mixture(d, k, 0, spread=1.0).sample(n, 0)[0]
            ours, theirs = [], []
            for seed in range(min(seeds, 3)):
                ours.append(timed(fit_mixture, x, k, random_state=seed, max_iter=10, tol=0.0)[0])
                theirs.append(timed(sklearn_fit, x, k, seed, max_iter=10, tol=0.0)[0])
            curve["ours_s"].append(statistics.median(ours))
            curve["sklearn_s"].append(statistics.median(theirs))
        found[name] = curve
    return found


# ---- optima --------------------------------------------------------------------------------------------------------


def optima(seeds: int) -> dict:
    """How often every start finds the best optimum known, on the demo's donors."""
    ways: dict[str, Callable] = {
        "cohortgmm, `kmeans`": lambda x, seed: fit_mixture(x, OPTIMA_K, random_state=seed),
        "cohortgmm, `kmeans++`": lambda x, seed: fit_mixture(x, OPTIMA_K, random_state=seed, init="kmeans++"),
        "cohortgmm, `random`": lambda x, seed: fit_mixture(x, OPTIMA_K, random_state=seed, init="random"),
        "cohortgmm, `minmax`": lambda x, seed: fit_mixture(x, OPTIMA_K, random_state=seed, init="minmax"),
        "cohortgmm, `kmeans`, `n_init` 10": lambda x, seed: fit_mixture(x, OPTIMA_K, random_state=seed, n_init=10),
        "cohortgmm, `kmeans`, `split_merge` 3": lambda x, seed: fit_mixture(
            x, OPTIMA_K, random_state=seed, split_merge=3
        ),
        "cohortgmm, `kmeans`, `n_init` 10, `split_merge` 3": lambda x, seed: fit_mixture(
            x, OPTIMA_K, random_state=seed, n_init=10, split_merge=3
        ),
        "scikit-learn, `kmeans`": lambda x, seed: sklearn_fit(x, OPTIMA_K, seed),
        "scikit-learn, `k-means++`": lambda x, seed: sklearn_fit(x, OPTIMA_K, seed, init_params="k-means++"),
        "scikit-learn, `kmeans`, `n_init` 10": lambda x, seed: sklearn_fit(x, OPTIMA_K, seed, n_init=10),
    }
    import anndata

    adata = anndata.read_h5ad(DEMO)
    ids, matrix = adata.obs["patient"].to_numpy(), np.asarray(adata.obsm["X_pca"], dtype=np.float64)
    donors = [np.ascontiguousarray(matrix[ids == donor]) for donor in np.unique(ids)]
    reached = {name: np.empty((len(donors), OPTIMA_SEEDS)) for name in ways}
    seconds = {name: [] for name in ways}
    for i, x in enumerate(donors):
        for seed in range(OPTIMA_SEEDS):
            for name, fit in ways.items():
                spent, found = timed(fit, x, seed)
                reached[name][i, seed] = log_likelihood(found, x)
                seconds[name].append(spent)
    best = np.max([values.max(axis=1) for values in reached.values()], axis=0)[:, None]
    starts = [
        {
            "name": name,
            "reached": float((best - values < REACHED).mean()),
            "gap": float((best - values).mean()),
            "ms": 1e3 * statistics.median(seconds[name]),
        }
        for name, values in reached.items()
    ]
    return {"n_donors": len(donors), "n_seeds": OPTIMA_SEEDS, "starts": starts}


# ---- other processes -----------------------------------------------------------------------------------------------


def million(seeds: int) -> dict:
    """A fit of 1,000,000 cells, every way in a process of its own, whose peak memory is the kernel's figure."""
    with tempfile.TemporaryDirectory(prefix="cohortgmm-") as folder:
        path = Path(folder) / "cells.npy"
        model = simulated_mixture(D_LARGE, K_LARGE, 0, spread=1.2)
        cells = np.lib.format.open_memmap(path, "w+", np.float32, (N_LARGE, D_LARGE))
        rng = np.random.default_rng(0)
        for start in range(0, N_LARGE, 50_000):
            cells[start : start + 50_000] = model.sample(50_000, rng)[0]
        cells.flush()
        found = {way: run_helper(sys.executable, "large", way, str(path)) for way in WAYS}
        return found | {"data_mb": cells.nbytes / 2**20}


def fit_large(way: str, path: str) -> dict:
    """In the process of its own: the fit, its time and memory."""
    x = np.load(path, mmap_mode=None if way == "held" else "r")
    if way == "sklearn":
        seconds, fit = timed(sklearn_fit, x, K_LARGE, 0)
        converged = fit.converged_
    else:
        seconds, fit = timed(fit_mixture, x, K_LARGE, random_state=0, n_threads=1 if way == "single" else 2)
        converged = fit.converged
    # The kernel's high-water mark of this program; ru_maxrss counts what the process held before it became this one.
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024
    return {"s": seconds, "mb": peak, "log_likelihood": log_likelihood(fit, x), "converged": bool(converged)}


def against_ggml(seeds: int) -> dict:
    """`fit_gmm` beside ggml-ot's, in its environment; nothing where there is none."""
    if not peer_python().is_file():
        return {}
    with tempfile.TemporaryDirectory(prefix="cohortgmm-") as folder:
        path = Path(folder) / "patient.npy"
        np.save(path, demo_embedding())
        return run_helper(str(peer_python()), "ggml", str(seeds), str(path), threads="1")


def fit_as_ggml(seeds: str, path: str) -> dict:
    """In ggml-ot's environment: both, in turns; only the calls are timed."""
    import anndata
    import ggml_ot
    import pandas as pd
    import torch
    from threadpoolctl import threadpool_limits

    import cohortgmm

    x = np.load(path)
    demo = anndata.read_h5ad(DEMO)
    large = anndata.AnnData(obs=pd.DataFrame({"patient": "P1", "condition": "A"}, index=list(map(str, range(len(x))))))
    large.obsm["X_pca"] = x
    torch.set_num_threads(1)
    found: dict = {"version": version("ggml-ot")}
    with threadpool_limits(1):
        for name, adata, ks, repeats in (("demo", demo, list(range(2, 9)), int(seeds)), ("large", large, 10, 3)):
            found[name] = {"ours": [], "ggml-ot": []}
            for seed in range(repeats):
                mine = adata.copy()
                options = {"k_comps": ks, "refit": "full", "verbose": False}
                spent, _ = timed(
                    cohortgmm.fit_gmm, mine, patient_col="patient", use_rep="X_pca", random_state=seed, **options
                )
                found[name]["ours"].append(spent)
                ggml_ot.settings.random_seed = seed
                dataset = ggml_ot.from_anndata(
                    adata.copy(), patient_col="patient", label_col="condition", use_rep="X_pca"
                )
                found[name]["ggml-ot"].append(timed(ggml_ot.gmm.fit_gmm, dataset, **options)[0])
    return found


HELPERS: dict[str, Callable[..., dict]] = {"large": fit_large, "ggml": fit_as_ggml}


def run_helper(python: str, *arguments: str, threads: str = "2") -> dict:
    """The result of one of :data:`HELPERS` in another process."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, threads) | {"PYTHONPATH": str(ROOT / "src")}
    call = [python, str(ROOT / "benchmarks" / "engine.py"), "--helper", *arguments]
    done = subprocess.run(call, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])
