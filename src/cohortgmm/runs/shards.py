"""A run in few SLURM jobs: each an allocation in which Snakemake runs the jobs of some patients by itself.

A SLURM job takes about 6 s, a job of Snakemake's on the same machine 0.2 s. Where fits take less than a minute, a run is
therefore divided into shards of the patients. The division of the cohort comes first and what concerns all patients last.
"""

import heapq
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cohortgmm.cohort.tables import read_rows
from cohortgmm.errors import CohortgmmError
from cohortgmm.files import COHORT
from cohortgmm.runs.lock import Shard

#: Environment variable that tells a run which shard it is.
SHARD_VARIABLE = "COHORTGMM_SHARD"

#: Rules that are run for one patient by itself.
PATIENT_RULES = ("fit", "select", "refit")

#: The number of a shard, for the shell that runs a batch script.
_TASK = "$SLURM_ARRAY_TASK_ID"

#: Where the scripts that are submitted, and what the allocations say, are kept.
LOG_FOLDER = "results/logs/slurm"


@dataclass(frozen=True)
class Allocation:
    """What every SLURM job of a sharded run asks for.

    Attributes
    ----------
    cpus
        CPUs.
    mem_mb
        Memory in MB, for as many jobs at a time as it holds.
    minutes
        Time limit.
    options
        Further options of sbatch, such as ``--partition=short``.
    """

    cpus: int = 4
    mem_mb: int = 8000
    minutes: int = 240
    options: Sequence[str] = ()


def shard_of_patients(sizes: Iterable[tuple[str, int]], shard: Shard) -> list[str]:
    """The patients of one shard: those of all shards together are all, each once, and as many cells in each as can be.

    Parameters
    ----------
    sizes
        File name and number of cells of every patient.
    shard
        Which.
    """
    loads = [(0, i) for i in range(1, shard.count + 1)]
    mine = []
    for name, n_cells in sorted(sizes, key=lambda item: (-item[1], item[0])):
        load, i = loads[0]  # the shard with the fewest cells so far
        heapq.heapreplace(loads, (load + n_cells, i))
        if i == shard.index:
            mine.append(name)
    return sorted(mine)


def shard_targets(shard: Shard, component_sharing: str, table: str | os.PathLike) -> list[str]:
    """Final mixtures that one shard makes.

    Raises
    ------
    CohortgmmError
        If the cohort has not been divided into patients yet.
    """
    if not Path(table).is_file():
        raise CohortgmmError(f"{table} is not there: run snakemake {table} first, as `submit` does")
    rows = [(row["file"], int(row["n_cells"])) for row in read_rows(table) if row["status"] == "ok"]
    if component_sharing == "global":
        rows = [(COHORT, 1)]
    return [f"results/models/{name}.npz" for name in shard_of_patients(rows, shard)]


def snakemake_command(arguments: Iterable[str], workflow_dir: str | os.PathLike) -> list[str]:
    """A call of Snakemake as this Python has it."""
    return [sys.executable, "-m", "snakemake", "--snakefile", str(Path(workflow_dir) / "Snakefile"), *arguments]


def run_shard(shard: Shard, targets: Sequence[str], arguments: Sequence[str], workflow_dir: str | os.PathLike) -> int:
    """Make the mixtures of one shard with a Snakemake of its own; its exit status.

    Only rules of single patients are looked at, so that shards never divide the cohort anew beside each other.
    """
    if not targets:
        print(f"shard {shard} has no patients", file=sys.stderr)
        return 0
    rules = ("--allowed-rules", *PATIENT_RULES)
    command = snakemake_command([*arguments, *rules, "--", *targets], workflow_dir)
    return subprocess.run(command, env=os.environ | {SHARD_VARIABLE: str(shard)}, check=False).returncode


def scripts(
    n_shards: int,
    allocation: Allocation,
    arguments: Sequence[str],
    workflow_dir: str | os.PathLike,
    configfile: str | os.PathLike,
) -> dict[str, str]:
    """Batch scripts by name, in the order they run in; ``finish`` alone does everything where there are no shards.

    Parameters
    ----------
    n_shards
        Number of shards; 0 for all in one allocation.
    allocation
        What each of them asks for.
    arguments
        Options of Snakemake.
    workflow_dir
        Where the Snakefile is.
    configfile
        The configuration.
    """
    local = ["--executor", "local", "--cores", str(allocation.cpus), "--resources", f"mem_mb={allocation.mem_mb}"]
    options = [*local, *arguments]
    whole = [*options, "--configfile", str(configfile)]
    commands = {"finish": snakemake_command(whole, workflow_dir)}
    if n_shards:
        split = snakemake_command([*whole, "--", "results/patients.tsv"], workflow_dir)
        ours = ["--snakefile", str(Path(workflow_dir) / "Snakefile"), "--configfile", str(configfile)]
        shard = [sys.executable, "-m", "cohortgmm", "shard", f"{_TASK}/{n_shards}", *ours, "--", *options]
        commands = {"split": split, "shards": shard} | commands
    return {name: _script(name, command, n_shards, allocation, workflow_dir) for name, command in commands.items()}


def _script(
    name: str, command: Sequence[str], n_shards: int, allocation: Allocation, workflow_dir: str | os.PathLike
) -> str:
    is_array = name == "shards"
    directives = [
        f"--job-name=cohortgmm-{name}",
        f"--output={LOG_FOLDER}/{name}-{'%A_%a' if is_array else '%j'}.log",
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={allocation.cpus}",
        f"--mem={allocation.mem_mb}",
        f"--time={allocation.minutes}",
        *([f"--array=1-{n_shards}"] if is_array else []),
        *allocation.options,
    ]
    source = Path(workflow_dir) / "src"
    quoted = " ".join(f'"{word}"' if word.startswith(f"{_TASK}/") else shlex.quote(word) for word in command)
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {directive}" for directive in directives),
            "set -euo pipefail",
            f'export PYTHONPATH={shlex.quote(str(source))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
            f"exec {quoted}",
            "",
        ]
    )


def submit(batch: dict[str, str]) -> dict[str, str]:
    """Submit batch scripts, each after the one before; the numbers of the SLURM jobs by name.

    ``finish`` also runs where a shard has failed: it tries once more what is missing and names what fails.

    Raises
    ------
    CohortgmmError
        If SLURM refuses one; those before are cancelled.
    """
    folder, numbers = Path(LOG_FOLDER), {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in batch.items():
        path = folder / f"{name}.sh"
        path.write_text(text)
        after = [f"afterok:{numbers['split']}"] if "split" in numbers else []
        after += [f"afterany:{numbers['shards']}"] if "shards" in numbers else []
        dependency = [f"--dependency={','.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
        command = ["sbatch", "--parsable", *dependency, str(path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            if numbers:
                subprocess.run(["scancel", *numbers.values()], check=False)
            said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            raise CohortgmmError(f"SLURM refused {path}: {said[-1] if said else error}") from None
        numbers[name] = done.stdout.strip().split(";")[0]
    return numbers
