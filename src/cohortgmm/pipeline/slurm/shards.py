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
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cohortgmm.cohort.tables import read_patients
from cohortgmm.errors import CohortgmmError
from cohortgmm.pipeline import requests
from cohortgmm.pipeline.lock import Shard
from cohortgmm.pipeline.slurm.commands import SlurmError, never_starts, run_command, submit_script
from cohortgmm.storage.atomic import atomic_path
from cohortgmm.storage.names import COHORT

#: Environment variable that tells a run which shard it is.
SHARD_VARIABLE = "COHORTGMM_SHARD"

#: Rules that are run for one patient by itself.
PATIENT_RULES = ("fit", "select", "refit")

#: The number of a shard, for the shell that runs a batch script.
_TASK = "$SLURM_ARRAY_TASK_ID"

#: Where the scripts that are submitted, and what the allocations say, are kept.
LOG_FOLDER = "results/logs/slurm"

#: Seconds until a file that one node has written is visible on another.
_LATENCY = 60


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
    whole_mb
        Memory in MB of those that read the whole cohort, if that is more.
    """

    cpus: int = 4
    mem_mb: int = 8000
    minutes: int = 240
    options: Sequence[str] = ()
    whole_mb: int = 0

    def of(self, name: str) -> "Allocation":
        """That of one batch script."""
        return self if name == "shards" else replace(self, mem_mb=max(self.mem_mb, self.whole_mb))

    def local(self) -> list[str]:
        """Options of the Snakemake in it."""
        limits = ["--cores", str(self.cpus), "--resources", f"mem_mb={self.mem_mb}"]
        return ["--executor", "local", *limits, "--latency-wait", str(_LATENCY)]


def largest_request(config: Any) -> tuple[str, int]:
    """Which rule of those that read the whole cohort asks for most memory, and for how many MB.

    An allocation must hold it: Snakemake silently lowers what a job asks for to what there is.

    Parameters
    ----------
    config
        The checked configuration. Its input stands for what is made of it.
    """
    embedding = requests.embedding_parts(config.use_rep)
    parts = {"check_input": ("obs",), "qc_cells": embedding}
    if config.preprocess.enabled:
        parts["preprocess"] = ()
    if config.component_sharing == "global":
        parts["fit"] = embedding[1:]  # of all cells at once
    asked = {rule: requests.memory(rule, read)(None, [config.input], 1) for rule, read in parts.items()}
    asked["split"] = requests.split_memory("split", embedding)(None, [config.input], 1)
    if os.path.isfile(config.input):  # else its own job will tell
        asked["merge"] = requests.most_merge_memory(config.input, embedding[1:], config.gmm)
    rule = max(asked, key=asked.__getitem__)
    return rule, asked[rule]


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
    rows = [(row["file"], row["n_cells"]) for row in read_patients(table, {"n_cells": int}) if row["status"] == "ok"]
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

    Raises
    ------
    CohortgmmError
        If an option of sbatch is not one line.
    """
    ours = ["--configfile", str(configfile)]
    whole = [*allocation.of("finish").local(), *arguments, *ours]
    commands = {"finish": snakemake_command(whole, workflow_dir)}
    if n_shards:
        split = snakemake_command([*whole, "--", "results/patients.tsv"], workflow_dir)
        shard = [sys.executable, "-m", "cohortgmm", "shard", f"{_TASK}/{n_shards}"]
        shard += ["--snakefile", str(Path(workflow_dir) / "Snakefile"), *ours, "--"]
        shard += [*allocation.of("shards").local(), *arguments]
        commands = {"split": split, "shards": shard} | commands
    return {
        name: _script(name, command, n_shards, allocation.of(name), workflow_dir) for name, command in commands.items()
    }


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
            *(f"#SBATCH {_quoted(directive)}" for directive in directives),
            "set -euo pipefail",
            f'export PYTHONPATH={shlex.quote(str(source))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
            f"exec {quoted}",
            "",
        ]
    )


def _quoted(option: str) -> str:
    """An option as sbatch reads it in a script: split at spaces, unless its value is quoted."""
    if option.splitlines() != [option]:
        raise CohortgmmError(f"an option of sbatch must be one line, got {option!r}")
    name, equals, value = option.partition("=")
    # Unlike in a shell, a backslash also counts within quotes.
    return name + equals + shlex.quote(value).replace("\\", "\\\\") if equals else option


def submit(batch: dict[str, str]) -> dict[str, str]:
    """Submit batch scripts, each after the one before; the numbers of the SLURM jobs by name.

    ``finish`` also runs where a shard has failed: it tries once more what is missing and names what fails.

    Raises
    ------
    CohortgmmError
        If a script cannot be written, or SLURM refuses one, does not name its job or would never start it; all are
        cancelled.
    """
    paths, numbers = {name: Path(LOG_FOLDER) / f"{name}.sh" for name in batch}, {}
    for name, path in paths.items():
        with atomic_path(path) as temporary:
            temporary.write_text(batch[name], encoding="utf-8", errors="surrogateescape")  # names of any bytes
    for name, path in paths.items():
        after = [f"afterok:{numbers['split']}"] if "split" in numbers else []
        after += [f"afterany:{numbers['shards']}"] if "shards" in numbers else []
        dependency = [f"--dependency={','.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
        try:
            numbers[name] = submit_script(path, dependency)
            if reason := never_starts(f"--jobs={numbers[name]}"):
                raise CohortgmmError(
                    f"SLURM would never start {path} ({reason}): lower --minutes, --mem-mb or --cpus, or choose another "
                    "--partition"
                )
        except CohortgmmError:
            if numbers:
                with suppress(SlurmError):
                    run_command("scancel", *numbers.values())
            raise
    return numbers
