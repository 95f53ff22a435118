"""A run in few SLURM jobs, in each of which Snakemake fits some of the patients (a shard) as local jobs.

The overhead of a SLURM job is about 6 s, and that of a local job of Snakemake 0.2 s. Shards therefore suit fits of less
than a minute. One SLURM job splits the cohort before the shards, and a final one runs the jobs of the whole cohort.
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

#: Environment variable that tells Snakemake in a shard which shard it is (``I/N``).
SHARD_VARIABLE = "COHORTGMM_SHARD"

#: Rules whose jobs concern one patient.
PATIENT_RULES = ("fit", "select", "refit")

#: Variable of the shell that holds the number of a shard in a batch script.
_TASK = "$SLURM_ARRAY_TASK_ID"

#: Folder of the batch scripts and of their output.
LOG_FOLDER = "results/logs/slurm"

#: Seconds until a file that one node has written is visible on another.
_LATENCY = 60


@dataclass(frozen=True)
class Allocation:
    """The resources that every SLURM job of a sharded run requests.

    Attributes
    ----------
    cpus
        CPUs.
    mem_mb
        Memory in MB, which limits the jobs that run at the same time.
    minutes
        Time limit.
    options
        Further options of sbatch, such as ``--partition=short``.
    whole_mb
        Memory in MB of the SLURM jobs that read the whole cohort, if this is more than ``mem_mb``.
    """

    cpus: int = 4
    mem_mb: int = 8000
    minutes: int = 240
    options: Sequence[str] = ()
    whole_mb: int = 0

    def of_script(self, name: str) -> "Allocation":
        """The allocation of one batch script."""
        return self if name == "shards" else replace(self, mem_mb=max(self.mem_mb, self.whole_mb))

    def local(self) -> list[str]:
        """Options that make Snakemake run its jobs locally within the allocation."""
        limits = ["--cores", str(self.cpus), "--resources", f"mem_mb={self.mem_mb}"]
        return ["--executor", "local", *limits, "--latency-wait", str(_LATENCY)]


def largest_request(config: Any) -> tuple[str, int]:
    """Of the rules that read the whole cohort, the one that requests most memory, and its request in MB.

    An allocation must have this much memory, because Snakemake silently lowers larger requests to the memory it has.

    Parameters
    ----------
    config
        The checked configuration. The size of its input is taken as the size of the preprocessed cohort too.
    """
    embedding = requests.embedding_parts(config.use_rep)
    elements = {"check_input": ("obs",), "qc_cells": embedding}
    if config.preprocess.enabled:
        elements["preprocess"] = ()
    if config.component_sharing == "global":
        elements["fit"] = embedding[1:]  # one fit reads the coordinates of all cells
    asked = {rule: requests.memory(rule, read)(None, [config.input], 1) for rule, read in elements.items()}
    asked["split"] = requests.split_memory("split", embedding)(None, [config.input], 1)
    if os.path.isfile(config.input):  # a missing input is reported by the job that reads it
        asked["merge"] = requests.most_merge_memory(config.input, embedding[1:], config.gmm)
    rule = max(asked, key=asked.__getitem__)
    return rule, asked[rule]


def shard_of_patients(sizes: Iterable[tuple[str, int]], shard: Shard) -> list[str]:
    """The patients of one shard. Every patient is in one shard, and shards have similar numbers of cells.

    Parameters
    ----------
    sizes
        File name and number of cells of every patient.
    shard
        The shard.
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
    """Files of the final mixtures of one shard.

    Raises
    ------
    CohortgmmError
        If the cohort has not been divided into patients yet.
    """
    if not Path(table).is_file():
        raise CohortgmmError(f"{table} does not exist: run snakemake {table} first, as `submit` does")
    rows = [(row["file"], row["n_cells"]) for row in read_patients(table, {"n_cells": int}) if row["status"] == "ok"]
    if component_sharing == "global":
        rows = [(COHORT, 1)]
    return [f"results/models/{name}.npz" for name in shard_of_patients(rows, shard)]


def snakemake_command(arguments: Iterable[str], workflow_dir: str | os.PathLike) -> list[str]:
    """A call of the Snakemake that this Python has installed."""
    return [sys.executable, "-m", "snakemake", "--snakefile", str(Path(workflow_dir) / "Snakefile"), *arguments]


def run_shard(shard: Shard, targets: Sequence[str], arguments: Sequence[str], workflow_dir: str | os.PathLike) -> int:
    """Make the mixtures of one shard with a separate call of Snakemake, and return its exit status.

    Only rules that concern one patient are allowed: otherwise, several shards might split the cohort at the same time.
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
    """Batch scripts by name (``split``, ``shards``, ``finish``), in the order in which they run.

    Parameters
    ----------
    n_shards
        Number of shards; with 0, there is only the script ``finish``, which runs all jobs.
    allocation
        The resources that each SLURM job requests.
    arguments
        Further options of Snakemake.
    workflow_dir
        Folder of the Snakefile.
    configfile
        The configuration.

    Raises
    ------
    CohortgmmError
        If an option of sbatch is not one line.
    """
    ours = ["--configfile", str(configfile)]
    whole = [*allocation.of_script("finish").local(), *arguments, *ours]
    commands = {"finish": snakemake_command(whole, workflow_dir)}
    if n_shards:
        split = snakemake_command([*whole, "--", "results/patients.tsv"], workflow_dir)
        shard = [sys.executable, "-m", "cohortgmm", "shard", f"{_TASK}/{n_shards}"]
        shard += ["--snakefile", str(Path(workflow_dir) / "Snakefile"), *ours, "--"]
        shard += [*allocation.of_script("shards").local(), *arguments]
        commands = {"split": split, "shards": shard} | commands
    return {
        name: _script(name, command, n_shards, allocation.of_script(name), workflow_dir)
        for name, command in commands.items()
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
    """An option for a batch script with its value in quotes, because sbatch splits unquoted values at spaces."""
    if option.splitlines() != [option]:
        raise CohortgmmError(f"an option of sbatch must be one line, got {option!r}")
    name, equals, value = option.partition("=")
    # For sbatch, unlike for a shell, a backslash within quotes is an escape character.
    return name + equals + shlex.quote(value).replace("\\", "\\\\") if equals else option


def submit(batch: dict[str, str]) -> dict[str, str]:
    """Submit batch scripts that run one after the other, and return the numbers of their SLURM jobs by name.

    ``finish`` runs even if a shard has failed: it makes the results that are still missing, and reports failures.

    Raises
    ------
    CohortgmmError
        If a script cannot be written, or if SLURM refuses one, reports no number or would never start it. Jobs that were
        submitted before are cancelled.
    """
    paths = {name: Path(LOG_FOLDER) / f"{name}.sh" for name in batch}
    numbers: dict[str, str] = {}
    for name, path in paths.items():
        with atomic_path(path) as temporary:
            temporary.write_text(batch[name], encoding="utf-8", errors="surrogateescape")  # paths may hold any bytes
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
