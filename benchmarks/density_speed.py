"""Time and memory of fits of noisy cells, beside pyGMMis."""

import multiprocessing
import os
import resource
import statistics
import time

import numpy as np

from cohortgmm import GaussianMixture, fit_mixture
from cohortgmm.mixture.estep.choose import choose_estep
from cohortgmm.mixture.observations.measurements import Measurements


def noisy_cells(n: int, k: int, d: int, seed: int = 0) -> tuple[GaussianMixture, np.ndarray, np.ndarray]:
    """Cells of k components, each with a covariance of its own noise, and a mixture somewhat off."""
    rng = np.random.default_rng(seed)
    means = rng.normal(0, 3, (k, d))
    factors = rng.normal(size=(k, d, d)) / np.sqrt(d)
    covariances = factors @ factors.transpose(0, 2, 1) + 0.3 * np.eye(d)
    x, _ = GaussianMixture(np.full(k, 1 / k), means, covariances).sample(n, rng)
    roots = rng.normal(size=(n, d, d)) * np.sqrt(0.5 / d)
    noise = roots @ roots.transpose(0, 2, 1) + 0.05 * np.eye(d)
    x += np.einsum("nij,nj->ni", np.linalg.cholesky(noise), rng.normal(size=(n, d)))
    start = GaussianMixture(np.full(k, 1 / k), means + rng.normal(0, 0.3, (k, d)), covariances)
    return start, x, noise


def speed(n_seeds: int) -> list[dict]:
    """Seconds per iteration of EM, the median over several."""
    results = []
    for n, k, d, cutoff, target in (
        (100_000, 10, 10, None, 20),
        (100_000, 10, 2, None, 5),
        (100_000, 50, 5, 5.0, 1),
    ):
        start, x, noise = noisy_cells(n, k, d)
        row = {"n": n, "k": k, "d": d, "cutoff": cutoff, "target": target}
        row |= {"ours_s": _ours(start, x, noise, cutoff), "theirs_s": _theirs(start, x, noise, cutoff)}
        print(row, flush=True)
        results.append(row)
    return results


def _ours(start: GaussianMixture, x: np.ndarray, noise: np.ndarray, cutoff: float | None) -> float:
    from cohortgmm.mixture.em.constraints import Constraints, Frozen
    from cohortgmm.mixture.em.mstep import m_step

    cells = Measurements(x, noise, n_threads=2)
    constraints = Constraints(1e-4, False, Frozen.from_argument(None, start.n_components))
    expect, model, seconds = choose_estep(cells, start.n_components, "full", cutoff).begin(start), start, []
    for _ in range(5):
        begun = time.perf_counter()
        model, _ = m_step(expect(model), model, constraints)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:])  # the first one also looks through the noise


def _theirs(start: GaussianMixture, x: np.ndarray, noise: np.ndarray, cutoff: float | None) -> float:
    np.in1d = np.isin  # gone from NumPy 2
    import pygmmis

    gmm = pygmmis.GMM(K=start.n_components, D=start.n_features)
    gmm.amp[:], gmm.mean[:], gmm.covar[:] = start.weights, start.means, start.covariances
    seconds, step = [], pygmmis._EMstep

    def timed(*arguments, **options):
        begun = time.perf_counter()
        result = step(*arguments, **options)
        seconds.append(time.perf_counter() - begun)
        return result

    pygmmis._EMstep = timed
    try:
        pygmmis.fit(gmm, x, covar=noise, init_method="none", cutoff=cutoff, tol=1e-15, maxiter=4)
    finally:
        pygmmis._EMstep = step
    return statistics.median(seconds[1:])


def memory(n_seeds: int) -> dict:
    """Peak memory of a large fit, in a process of its own."""
    queue = multiprocessing.SimpleQueue()
    process = multiprocessing.get_context("spawn").Process(
        target=_large_fit, args=(path := f"/tmp/cohortgmm-{os.getpid()}.npz",)
    )
    del queue
    process.start()
    process.join()
    with np.load(path) as stored:
        result = {name: stored[name].item() for name in stored.files}
    os.unlink(path)
    print(result, flush=True)
    return result


def _large_fit(path: str) -> None:
    n, k, d = 1_000_000, 100, 5
    start, x, noise = noisy_cells(n, k, d)
    begun = time.perf_counter()
    fit = fit_mixture(x, k, noise=noise, initial=start, max_iter=10, n_threads=2)
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    data = (x.nbytes + noise.nbytes) >> 20
    np.savez(path, n=n, k=k, d=d, peak_mb=peak, data_mb=data, seconds=seconds, n_iter=fit.n_iter)
