"""What the benchmarks have in common: rows of a table, and a page of Markdown."""

import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "resources" / "demo" / "liu2021_covid_pbmc.h5ad"


@dataclass(frozen=True)
class Line:
    """A row of the table."""

    what: str
    ours: str
    other: str
    ratio: str
    target: str
    met: bool | None

    def cells(self) -> list[str]:
        met = {True: "yes", False: "no", None: "not measured"}[self.met]
        return [self.what, self.ours, self.other, self.ratio, self.target, met]


def spread(values: list[float], digits: int) -> str:
    """The range of repeated measurements: on a busy machine it says how far to trust the median."""
    return f"({min(values):.{digits}f}–{max(values):.{digits}f})"


def markdown(heading: list[str], rows: list[list[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [heading, ["---"] * len(heading), *rows])


def lines_table(lines: list[Line]) -> str:
    """The table of measurements and targets."""
    heading = ["What", "Measured", "Compared with", "Ratio", "Target", "Met"]
    return markdown(heading, [line.cells() for line in lines])


def circumstances(packages: list[str], load: float, **others: str) -> str:
    """Versions and machine."""
    names = {name: version(name) for name in packages} | {k.replace("_", "-"): v for k, v in others.items()}
    versions = ", ".join(f"{name} {number}" for name, number in names.items())
    cores = len(os.sched_getaffinity(0))
    return (
        f"Python {platform.python_version()}, {versions}; {cores} cores ({platform.machine()}), "
        f"load {load:.1f} at the start."
    )


def peer_python() -> Path:
    """The interpreter of ggml-ot's environment, whether it is there or not."""
    return Path(os.environ.get("COHORTGMM_GGML_PYTHON") or ROOT / ".venv-ggml" / "bin" / "python")


def snakemake_command(folder: Path, configfile: Path, *arguments: str) -> list[str]:
    """A call of this repository's workflow in a folder, on two cores."""
    return [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)),
        *("--configfile", str(configfile), "--cores", "2", *arguments),
    ]
