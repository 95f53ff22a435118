"""How well, and how fast, mixtures are found behind noise, gaps, selection and background, beside pyGMMis.

    python benchmarks/density.py [--seeds 9] [--only recovery starts speed memory] [--output benchmarks/density.md]

Cells are simulated from known mixtures (`density_cases.py`). Both programs get the same cells in the same process; ours
with the settings a user gets, pyGMMis from k-means with its own tolerance and with 1e-6. About an hour on two cores.
The parts are kept in `benchmarks/density.json`, so that `--only` measures some of them again. pyGMMis needs
`pip install pygmmis` (1.2.3). Linux.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from density_cases import CASES, HARD, Sample, divergence
from density_speed import memory, speed
from reporting import ROOT, Line, circumstances, lines_table, markdown
from threadpoolctl import threadpool_limits

from cohortgmm import fit_mixture
from cohortgmm.mixture.estep.truncated import Truncation, unobserved_moments
from cohortgmm.mixture.observations.completeness import Completeness

#: Seconds after which a fit of pyGMMis is given up.
PATIENCE = 300

#: A start has ended in a bad optimum if its likelihood is lower than the best known one by this, in nats per cell.
BAD = 1e-3


def ours(sample: Sample) -> dict:
    """Our fit, with nothing set."""
    start = time.perf_counter()
    fit = fit_mixture(sample.x, sample.truth.n_components, **sample.options)
    seconds = time.perf_counter() - start
    background = 0.0 if fit.model.background is None else fit.model.background.amp
    best = fit_mixture(sample.x, sample.truth.n_components, initial=sample.start, **sample.options)
    result = {"kl": divergence(sample.truth, fit.model), "best_kl": divergence(sample.truth, best.model)}
    if "completeness" in sample.options:
        result |= {name: truncated_likelihood(sample, f.model) for name, f in (("value", fit), ("best_value", best))}
    return result | {"seconds": seconds, "background": background}


def truncated_likelihood(sample: Sample, model) -> float:
    """Mean log-likelihood of seen cells, with the share of unseen ones by 2^17 quasi-random nodes for each component."""
    noise = sample.options.get("noise")
    selection = Truncation(Completeness(sample.options["completeness"]), noise, seed=987)
    nodes = selection.nodes(model, model.n_components << 17)
    share = unobserved_moments(model, nodes).nk.sum()
    return float(np.mean(model.log_prob(sample.x, noise)) - np.log1p(-share))


def theirs(sample: Sample, tol: float | None, seed: int) -> dict:
    """pyGMMis' fit in a process of its own, which can be given up."""
    queue = multiprocessing.SimpleQueue()
    process = multiprocessing.Process(target=_theirs, args=(queue, sample, tol, seed))
    process.start()
    process.join(PATIENCE)
    if process.is_alive():
        process.kill()
        return {"kl": None, "seconds": PATIENCE, "background": 0.0, "value": None}
    return queue.get() if not queue.empty() else {"kl": None, "seconds": None, "background": 0.0, "value": None}


def _theirs(queue, sample: Sample, tol: float | None, seed: int) -> None:
    np.in1d = np.isin  # gone from NumPy 2
    import pygmmis

    from cohortgmm import GaussianMixture

    rng, options = np.random.RandomState(seed), sample.options
    np.random.seed(seed)  # scipy's k-means draws from the global generator
    k, d = sample.truth.means.shape
    gmm, background = pygmmis.GMM(K=k, D=d), None
    arguments = {} if tol is None else {"tol": tol}
    noise = options.get("noise")
    if noise is not None:
        arguments["covar"] = (
            noise if (noise.shape[-2:] == (d, d) and noise.ndim != 2) or noise.shape == (d, d) else None
        )
        if arguments["covar"] is None:
            arguments["covar"] = noise[:, :, None] * np.eye(d)
    if "completeness" in options:
        arguments |= {"sel_callback": options["completeness"], "oversampling": 10}
        if noise is not None:
            from functools import partial

            arguments["covar_callback"] = partial(pygmmis.covar_callback_default, default=noise)
    if "background" in options:
        box = options["background"]
        background = pygmmis.Background(np.array([box.lower, box.upper]), amp=box.amp)
        arguments["background"] = background
    start = time.perf_counter()
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        pygmmis.fit(gmm, sample.x, init_method="kmeans", rng=rng, **arguments)
    seconds = time.perf_counter() - start
    amp = 0.0 if background is None else float(background.amp)
    result = {"kl": None, "seconds": seconds, "background": amp, "value": None}
    if np.isfinite(gmm.mean).all() and np.isfinite(gmm.covar).all():
        model = GaussianMixture(gmm.amp / gmm.amp.sum(), gmm.mean, 0.5 * (gmm.covar + gmm.covar.transpose(0, 2, 1)))
        with contextlib.suppress(np.linalg.LinAlgError):
            result["kl"] = divergence(sample.truth, model)
            if "completeness" in options:
                result["value"] = truncated_likelihood(sample, model)
    queue.put(result)


def recovery(n_seeds: int) -> dict:
    """Both programs on every case."""
    results = {}
    for name, case in CASES.items():
        rows = []
        for seed in range(n_seeds):
            sample = case.simulate(np.random.default_rng(seed))
            row = {"ours": ours(sample), "default": theirs(sample, None, seed), "tight": theirs(sample, 1e-6, seed)}
            rows.append(row)
            print(name, seed, {who: (r["kl"], round(r["seconds"] or 0, 2)) for who, r in row.items()}, flush=True)
        results[name] = rows
    return results


def starts(n_seeds: int) -> dict:
    """Single starts, and the default, that end in a bad optimum."""
    results = {}
    for name, case in (CASES | HARD).items():
        single, default = [], []
        for seed in range(n_seeds):
            sample = case.simulate(np.random.default_rng(seed))
            k = sample.truth.n_components
            if k == 1:
                continue

            def value(sample=sample, k=k, **options) -> float:
                fit = fit_mixture(sample.x, k, **sample.options, **options)
                if "completeness" in sample.options:
                    return truncated_likelihood(sample, fit.model)
                return fit.log_likelihood

            alone = [value(n_init=1, random_state=i) for i in range(10)]
            several = [value(random_state=i) for i in range(3)]
            best = max(*alone, *several, value(initial=sample.start))
            single += [best - v > BAD for v in alone]
            default += [best - v > BAD for v in several]
        if single:
            results[name] = {"single": float(np.mean(single)), "default": float(np.mean(default)), "n": len(default)}
            print(name, results[name], flush=True)
    return results


def _number(value: float | None) -> str:
    return "no fit" if value is None else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"


def _median(rows: list[dict], who: str, what: str = "kl") -> float | None:
    values = [row[who][what] for row in rows]
    if any(value is None for value in values):
        values = [value for value in values if value is not None]
        if len(values) < len(rows) / 2:
            return None
    return statistics.median(values)


def recovery_lines(results: dict) -> list[Line]:
    """One line a case."""
    lines = []
    for name, rows in results.items():
        case = CASES[name]
        kl, default, tight = (_median(rows, who) for who in ("ours", "default", "tight"))
        best = min((value for value in (default, tight) if value is not None), default=None)
        limit = _median(rows, "ours", "best_kl")
        other = f"{_number(tight)} (tol 1e-6); {_number(default)} (default); {_number(limit)}: ours from the truth"
        ratio = "" if best is None else f"{kl / best:.2f} ×"
        measured, target, met = _number(kl), "≤ pyGMMis", best is None or kl <= best
        if case.target is not None:
            target, met = f"≤ {case.target:g}", kl <= case.target
        elif "value" in rows[0]["ours"]:
            limit *= 1.15
            target, met = f"≤ {_number(limit)} (ours from the truth + 15 %)", kl <= limit
        if "background" in name:
            amps = [row["ours"]["background"] for row in rows]
            measured += f", background {statistics.median(amps):.3f}"
            other += f"; background {_median(rows, 'tight', 'background'):.3f}"
            met = met and all(abs(amp - 0.3) <= 0.02 for amp in amps)
            target += ", background 0.28–0.32"
        lines.append(Line(case.name, measured, other, ratio, target, met))
    return lines


def likelihood_lines(results: dict) -> list[Line]:
    """Truncated likelihoods."""
    lines = []
    for name, rows in results.items():
        if "value" not in rows[0]["ours"]:
            continue
        theirs = [[r for who in ("default", "tight") if (r := row[who]["value"]) is not None] for row in rows]
        gains = [row["ours"]["value"] - max(values) for row, values in zip(rows, theirs, strict=True) if values]
        behind = [row["ours"]["best_value"] - row["ours"]["value"] for row in rows]
        lines.append(
            Line(
                f"{CASES[name].name}: truncated log-likelihood, ours − the better of theirs (nats per cell)",
                f"{statistics.median(gains):+.4f} ({min(gains):+.4f} to {max(gains):+.4f})",
                f"from the truth: {statistics.median(behind):+.4f}",
                "",
                "≥ −0.001",
                statistics.median(gains) >= -0.001,
            )
        )
    return lines


def starts_table(results: dict) -> str:
    """Shares of bad optima."""
    rows = [
        [(CASES | HARD)[name].name, f"{r['single']:.0%}", f"{r['default']:.0%} of {r['n']}"]
        for name, r in results.items()
    ]
    return markdown(["Case", "one start", "the default (ten short starts)"], rows)


def speed_lines(results: list[dict]) -> list[Line]:
    """Seconds per iteration."""
    lines = []
    for r in results:
        cutoff = f", cutoff {r['cutoff']:g}" if r["cutoff"] else ""
        what = f"an iteration, full noise, n = {r['n']:,}, K = {r['k']}, D = {r['d']}{cutoff}"
        ratio = r["theirs_s"] / r["ours_s"]
        ours, other = f"{r['ours_s']:.3f} s", f"{r['theirs_s']:.2f} s: pyGMMis on 2 cores"
        lines.append(Line(what, ours, other, f"{ratio:.0f} × faster", f"≥ {r['target']:g} ×", ratio >= r["target"]))
    return lines


def memory_lines(r: dict) -> list[Line]:
    """The largest fit."""
    what = f"n = {r['n']:,}, K = {r['k']}, D = {r['d']}, full noise: peak memory ({r['n_iter']} iterations)"
    return [
        Line(
            what,
            f"{r['peak_mb']:,} MB",
            f"{r['seconds']:.0f} s, data {r['data_mb']:,} MB",
            "",
            "< 4,000 MB",
            r["peak_mb"] < 4000,
        )
    ]


PARTS: dict[str, Callable[[int], object]] = {"recovery": recovery, "starts": starts, "speed": speed, "memory": memory}


def page(results: dict, seeds: int, load: float) -> str:
    """The tables in Markdown, of the parts that have been measured."""
    parts = [
        f"`python benchmarks/density.py --seeds {seeds}`: KL(truth‖fit) in nats by 100,000 draws from the truth, medians "
        "over the seeds; pyGMMis from k-means. *From the truth*: our fit that starts there, as near as the maximum "
        "of the likelihood comes.\n" + circumstances(["numpy", "scipy", "pygmmis"], load)
    ]
    if "recovery" in results:
        parts.append(lines_table(recovery_lines(results["recovery"]) + likelihood_lines(results["recovery"])))
    costs = speed_lines(results.get("speed", [])) + (memory_lines(results["memory"]) if "memory" in results else [])
    if costs:
        parts.append(lines_table(costs))
    if "starts" in results:
        parts.append("Fits that end more than 0.001 nats per cell below the best known one of the same cells:")
        parts.append(starts_table(results["starts"]))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=9)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "density.md")
    options = parser.parse_args()
    load, store = os.getloadavg()[0], options.output.with_suffix(".json")
    results = json.loads(store.read_text()) if store.exists() else {}
    with threadpool_limits(1):
        for name in options.only:
            results[name] = PARTS[name](options.seeds)
            store.write_text(json.dumps(results, indent=1))
    options.output.write_text(page(results, options.seeds, load))


if __name__ == "__main__":
    main()
