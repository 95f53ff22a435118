"""How fast and how good the fits are, beside scikit-learn and ggml-ot: tables and a plot for docs/benchmarks.md.

    python benchmarks/engine.py [--seeds 5] [--only grid ggml ...] [--output benchmarks/engine.md]

Everything that is compared runs in turns in one process, on one thread unless it says otherwise. About 20 minutes on
two cores. The parts are kept in `benchmarks/engine.json`, so that `--only` measures some of them again and the page
and the plot show all. The comparison with ggml-ot needs its environment (`make ggml`). Linux.
"""

import argparse
import json
import os
import statistics
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import engine_parts as parts
import numpy as np
from reporting import ROOT, Line, circumstances, lines_table, markdown
from threadpoolctl import threadpool_limits

PARTS: dict[str, Callable[[int], dict]] = {
    "grid": parts.grid,
    "iteration": parts.iteration,
    "threads": parts.threads,
    "million": parts.million,
    "growth": parts.growth,
    "optima": parts.optima,
    "ggml": parts.against_ggml,
}


def grid_lines(points: list[dict]) -> list[Line]:
    """The summary of the grid."""
    lines = []
    for kind, target, worst_target in (("full", 10, 4), ("diag", 5, None)):
        chosen = [p for p in points if p["covariance_type"] == kind]
        ratios = [p["sklearn_s"] / p["ours_s"] for p in chosen]
        lines.append(
            Line(
                f"full fits, {kind}: median of {len(chosen)} points ({len(chosen[0]['gains'])} seeds each)",
                f"{statistics.median(ratios):.1f} × ({min(ratios):.1f}–{max(ratios):.1f})",
                "scikit-learn",
                f"{statistics.median(ratios):.1f} × faster",
                f"≥ {target} ×",
                statistics.median(ratios) >= target,
            )
        )
        if worst_target:
            worst = min((p["sklearn_s"] / p["ours_s"], label(p)) for p in chosen if p["d"] >= 30)
            text = f"{worst[0]:.1f} × faster"
            what = f"the worst of them with D ≥ 30: {worst[1]}"
            lines.append(Line(what, text, "scikit-learn", text, "≥ 4 ×", worst[0] >= worst_target))
        gain = statistics.median([g for p in chosen for g in p["gains"]])
        bad = [statistics.fmean(x for p in chosen for x in p[f"{who}_bad"]) for who in ("ours", "sklearn")]
        lines += [
            Line(
                f"their log-likelihood, {kind}: ours − theirs, median (nats per cell)",
                f"{gain:+.4f}",
                "scikit-learn",
                "",
                "≥ −0.001",
                gain >= -1e-3,
            ),
            Line(
                f"bad optima, {kind}: more than {parts.BAD} nats per cell below the other's on the same cells",
                f"{bad[0]:.0%}",
                f"{bad[1]:.0%}: scikit-learn",
                "",
                "≤ theirs",
                bad[0] <= bad[1],
            ),
        ]
    return lines


def iteration_lines(found: dict) -> list[Line]:
    """An iteration against the products it needs densely."""
    products = found["products_s"]
    lines = []
    for name, what, target in (("first", "first", 1.5), ("sparse", "mean of the later ones", 0.7)):
        ratio = found[f"{name}_s"] / products
        measured = f"{1e3 * found[f'{name}_s']:.0f} ms"
        other = f"{1e3 * products:.0f} ms: 4 N D² K operations at the {found['gflops']:.0f} Gflop/s of dgemm"
        what = f"an iteration at N = 20,000, D = 50, K = 20: the {what}"
        lines.append(Line(what, measured, other, f"{ratio:.2f} ×", f"≤ {target} ×", ratio <= target))
    return lines


def ggml_lines(found: dict) -> list[Line]:
    """Against ggml-ot."""
    lines = []
    for name, what, target in (
        ("demo", "demo cohort, k = 2..8, AIC, refit full, in process", 50),
        ("large", "one patient of 5,000 cells, D = 50, k = 10", 100),
    ):
        if not found:
            lines.append(Line(what, "", "no ggml-ot environment: run `make ggml`", "", f"≥ {target} ×", None))
            continue
        ours, theirs = (statistics.median(found[name][who]) for who in ("ours", "ggml-ot"))
        measured, other = f"{ours:.3f} s", f"{theirs:.2f} s: ggml-ot's `fit_gmm`"
        lines.append(
            Line(what, measured, other, f"{theirs / ours:.0f} × faster", f"≥ {target} ×", theirs / ours >= target)
        )
    return lines


def thread_lines(points: list[dict]) -> list[Line]:
    """Two threads against one."""
    lines = []
    for p in points:
        ratio = p["one_s"] / p["two_s"]
        what = f"2 threads against 1: {label(p)}"
        lines.append(
            Line(what, f"{p['two_s']:.2f} s", f"{p['one_s']:.2f} s", f"{ratio:.2f} ×", "≥ 1.7 ×", ratio >= 1.7)
        )
    return lines


def million_lines(found: dict) -> list[Line]:
    """The fit that does not fit comfortably in memory."""
    mapped, held, peer = found["mapped"], found["held"], found["sklearn"]
    what = "1,000,000 × 50, K = 30, float32, 2 threads: "
    limit = found["data_mb"] + 300
    peers = f"{peer['mb']:.0f} MB: scikit-learn on the mapped array"
    return [
        Line(
            what + "peak memory, mapped from a file", f"{mapped['mb']:.0f} MB", peers, "", "≤ 600 MB",
            mapped["mb"] <= 600,
        ),
        Line(
            what + "peak memory, held in memory", f"{held['mb']:.0f} MB", f"data {found['data_mb']:.0f} MB", "",
            f"≤ {limit:.0f} MB", held["mb"] <= limit,
        ),
        Line(
            what + "time to convergence (log-likelihood)",
            f"{mapped['s']:.1f} s ({mapped['log_likelihood']:.3f})",
            f"{peer['s']:.1f} s ({peer['log_likelihood']:.3f}): scikit-learn, 2 threads",
            f"{peer['s'] / mapped['s']:.1f} × faster",
            "converges",
            mapped["converged"],
        ),
    ]  # fmt: skip


def million_point(found: dict) -> dict:
    """The large fit as a point of the comparison of threads."""
    sizes = {"n": parts.N_LARGE, "d": parts.D_LARGE, "k": parts.K_LARGE, "covariance_type": "full, mapped from a file"}
    return {"data": "simulated", "one_s": found["single"]["s"], "two_s": found["mapped"]["s"]} | sizes


def growth_lines(found: dict) -> list[Line]:
    """Exponents of the growth, from the plot's points."""
    lines = []
    for name, target in (("N", 1.0), ("K", 1.0), ("D", 2.0)):
        curve = found[name]
        slope = np.polyfit(np.log(curve["x"]), np.log(curve["ours_s"]), 1)[0]
        theirs = np.polyfit(np.log(curve["x"]), np.log(curve["sklearn_s"]), 1)[0]
        what = f"growth of ten iterations in {name} ({curve['x'][0]:,} to {curve['x'][-1]:,}): exponent"
        # The slope of a handful of noisy points is known to about a tenth.
        lines.append(
            Line(
                what, f"{slope:.2f}", f"{theirs:.2f}: scikit-learn", "", f"≤ {target:.0f} (+0.1)", slope <= target + 0.1
            )
        )
    return lines


def label(p: dict) -> str:
    """A point in words."""
    return f"{p['data']}, N = {p['n']:,}, D = {p['d']}, K = {p['k']}, {p['covariance_type']}"


def grid_table(points: list[dict]) -> str:
    """All points."""
    rows = []
    for p in points:
        ours, theirs = 1e3 * p["ours_s"], 1e3 * p["sklearn_s"]
        rows.append(
            [
                p["covariance_type"], p["data"], f"{p['n']:,}", str(p["d"]), str(p["k"]), f"{ours:.1f}", f"{theirs:.1f}",
                f"{theirs / ours:.1f}", f"{p['ours_iter']:.0f} / {p['sklearn_iter']:.0f}",
                f"{statistics.median(p['gains']):+.4f}",
            ]
        )  # fmt: skip
    heading = ["Covariances", "Data", "N", "D", "K", "ours, ms", "scikit-learn, ms", "ratio", "iterations", "Δ log L"]
    return markdown(heading, rows)


def optima_table(found: list[dict]) -> str:
    """How often the starts find the best optimum known."""
    rows = [[o["name"], f"{o['reached']:.0%}", f"{o['gap']:.3f}", f"{o['ms']:.1f}"] for o in found]
    heading = ["Start", f"within {parts.REACHED} of the best known", "mean gap, nats per cell", "ms per fit"]
    return markdown(heading, rows)


def page(results: dict, seeds: int, load: float) -> str:
    """The Markdown page."""
    points = results["grid"]["points"]
    lines = [
        *grid_lines(points),
        *ggml_lines(results["ggml"]),
        *iteration_lines(results["iteration"]),
        *million_lines(results["million"]),
        *thread_lines([*results["threads"]["points"], million_point(results["million"])]),
        *growth_lines(results["growth"]),
    ]
    peers = {"ggml_ot": results["ggml"].get("version", "not installed")}
    return "\n".join(
        [
            "# Cost and quality of fits",
            "",
            f"`python benchmarks/engine.py --seeds {seeds}`: medians, in turns, one thread unless said otherwise.",
            circumstances(["numpy", "scikit-learn"], load, **peers),
            "",
            lines_table(lines),
            "",
            "## Which start finds the best optimum",
            "",
            f"The demo's {results['optima']['n_donors']} donors, all cells, k = {parts.OPTIMA_K}, "
            f"{results['optima']['n_seeds']} seeds; best known: of all fits of the donor.",
            "",
            optima_table(results["optima"]["starts"]),
            "",
            "## All points",
            "",
            "From the start to convergence: `tol` 1e-3, `max_iter` 100, `eps` (`reg_covar`) 1e-4, one start. Data: "
            "mixtures with random covariances, and the demo's 5,000 cells in the first D of 50 principal components.",
            "",
            grid_table(points),
            "",
        ]
    )


def plot(growth: dict, path: Path) -> None:
    """Ten iterations against N, K and D."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullLocator

    fig, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained", sharey=True)
    for ax, (name, slope) in zip(axes, (("N", 1), ("K", 1), ("D", 2)), strict=True):
        curve = growth[name]
        x = np.array(curve["x"], dtype=float)
        for who, color in (("sklearn", "#999999"), ("ours", "#0072B2")):
            shown = {"sklearn": "scikit-learn", "ours": "cohortgmm"}[who]
            ax.loglog(x, curve[f"{who}_s"], "o-", color=color, label=shown, markersize=4)
        guide = curve["ours_s"][0] * (x / x[0]) ** slope
        order = {1: "linear", 2: "quadratic"}[slope]
        ax.loglog(x, guide, ":", color="black", linewidth=1, label=order)
        ax.set(xlabel=f"{name}   ({curve['fixed']})")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticks(x, [f"{value:g}" if value < 1000 else f"{value / 1000:g}k" for value in x])
        ax.legend(frameon=False, fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("ten iterations (s), one thread")
    fig.savefig(path, dpi=150)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), help="measure these parts again")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "engine.md")
    parser.add_argument("--helper", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    warnings.simplefilter("ignore")  # scikit-learn's about convergence
    if args.helper:
        print(json.dumps(parts.HELPERS[args.helper[0]](*args.helper[1:])))
        return
    import sklearn.mixture  # noqa: F401  before the limit on threads, which binds only the libraries that are loaded

    store = args.output.with_suffix(".json")
    results = json.loads(store.read_text()) if args.only and store.exists() else {}
    load = os.getloadavg()[0]
    for name, measure in PARTS.items():
        if args.only and name not in args.only:
            continue
        print(f"measuring {name}", file=sys.stderr, flush=True)
        with threadpool_limits(1):
            results[name] = measure(args.seeds)
        store.write_text(json.dumps(results, indent=1) + "\n")
    text = page(results, args.seeds, load)
    args.output.write_text(text)
    plot(results["growth"], ROOT / "resources" / "readme" / "engine.png")
    print(text)


if __name__ == "__main__":
    main()
