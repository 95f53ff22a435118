"""Commands beside Snakemake: the progress of a run, copies of its models, and a run in few SLURM jobs.

python -m cohortgmm status
python -m cohortgmm keep DIR
python -m cohortgmm submit --shards 20
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cohortgmm
from cohortgmm.errors import CohortgmmError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    own, others = _at_dashes(list(sys.argv[1:] if arguments is None else arguments))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escape characters that the encoding of the terminal lacks
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(own)
    try:
        status = options.run(options, others)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the program that reads the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except CohortgmmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _at_dashes(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Divide arguments at ``--`` into those of the command and those for Snakemake."""
    if "--" not in arguments:
        return arguments, []
    i = arguments.index("--")
    return arguments[:i], arguments[i + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cohortgmm", description=__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=cohortgmm.__version__)
    commands = parser.add_subparsers(required=True, metavar="command")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--directory", type=Path, default=Path(), help="the folder of results/ (default: here)")
    common.add_argument(
        "--configfile",
        type=Path,
        help="the configuration (default: config/config.yaml here, else beside the Snakefile)",
    )
    common.add_argument(
        "--snakefile", type=Path, help="the Snakefile (default: the one here, else that of this package)"
    )

    status = commands.add_parser("status", parents=[common], help="show which fits are done, running or failed")
    status.set_defaults(run=_status)

    keep = commands.add_parser(
        "keep",
        parents=[common],
        help="copy the models of a finished run out of results/, so that later runs can name them",
    )
    keep.add_argument("target", type=Path, metavar="DIR", help="the new folder")
    keep.set_defaults(run=_keep)

    submit = commands.add_parser(
        "submit",
        parents=[common],
        help="run in few SLURM jobs, each with many fits",
        description="Submit the run as SLURM jobs in which Snakemake runs locally. Options after -- go to Snakemake.",
    )
    submit.add_argument(
        "--shards", type=int, default=0, metavar="N", help="jobs that divide the patients (0: one for all)"
    )
    submit.add_argument("--cpus", type=int, default=4, help="CPUs of each job (%(default)s)")
    submit.add_argument(
        "--mem-mb", type=int, help="memory of each job in MB (2,000 for every CPU, more where the whole cohort is read)"
    )
    submit.add_argument("--minutes", type=int, default=240, help="time limit of each job (%(default)s)")
    for name in ("partition", "account", "qos"):
        submit.add_argument(f"--{name}", help=f"{name} of SLURM")
    submit.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", help="another option of sbatch: --sbatch=--nice=100"
    )
    submit.add_argument("--print", action="store_true", help="print the batch scripts and submit nothing")
    submit.set_defaults(run=_submit)

    shard = commands.add_parser(
        "shard", parents=[common], help="run the patients of one shard, as the jobs of `submit` do"
    )
    shard.add_argument("shard", metavar="I/N")
    shard.set_defaults(run=_shard)
    return parser


def _place(options: argparse.Namespace) -> tuple[Path, Path]:
    """Change to the directory, and return absolute paths of the Snakefile's folder and of the configuration."""
    candidates = (
        [options.snakefile] if options.snakefile else [Path("Snakefile"), Path(__file__).parents[2] / "Snakefile"]
    )
    found = [path.resolve() for path in candidates if path.is_file()]
    if not found:
        raise CohortgmmError(f"no Snakefile: {candidates[-1]} does not exist; name it with --snakefile")
    if found[0].name != "Snakefile":
        raise CohortgmmError(f"{found[0]} must be called Snakefile")
    workflow_dir = found[0].parent
    # As in Snakemake, the configuration in the directory is preferred to the one beside the Snakefile.
    default = [place.resolve() / "config" / "config.yaml" for place in (options.directory, workflow_dir)]
    configfile = (
        options.configfile.resolve() if options.configfile else next(filter(Path.is_file, default), default[-1])
    )
    if not configfile.is_file():
        raise CohortgmmError(f"no such configuration: {configfile}")
    if not options.directory.is_dir():
        raise CohortgmmError(f"no such directory: {options.directory}")
    os.chdir(options.directory)
    return workflow_dir, configfile


def _config(configfile: Path, workflow_dir: Path) -> Any:
    from cohortgmm.config.file import read_config_file
    from cohortgmm.pipeline.settings import check_config_files, load_config

    check_config_files([configfile])
    return load_config(read_config_file(configfile), str(configfile), workflow_dir)


def _status(options: argparse.Namespace, others: Sequence[str]) -> int:
    from cohortgmm.pipeline.made_with import Expected
    from cohortgmm.pipeline.status import read_status

    workflow_dir, configfile = _place(options)
    config = _config(configfile, workflow_dir)
    print(read_status("results", config.gmm.candidates, config.component_sharing, Expected(config)))
    return 0


def _keep(options: argparse.Namespace, others: Sequence[str]) -> int:
    from cohortgmm.pipeline.keep import keep, keep_message

    target = options.target.absolute()  # before the working directory changes
    workflow_dir, configfile = _place(options)
    config = _config(configfile, workflow_dir)
    names = keep("results", target, config, configfile, workflow_dir)
    print(keep_message(target, names))
    return 0


def _submit(options: argparse.Namespace, others: Sequence[str]) -> int:
    from cohortgmm.pipeline.slurm import shards

    memory = 1 if options.mem_mb is None else options.mem_mb
    if options.shards < 0 or min(options.cpus, options.minutes, memory) < 1:
        raise CohortgmmError("--shards must be 0 or more; --cpus, --minutes and --mem-mb 1 or more")
    workflow_dir, configfile = _place(options)
    config = _config(configfile, workflow_dir)  # checked here, so that an error is not reported by every job instead
    chosen = ((name, getattr(options, name)) for name in ("partition", "account", "qos"))
    extra = [f"--{name}={value}" for name, value in chosen if value] + options.sbatch
    mem_mb, whole_mb = _memory(options, config)
    allocation = shards.Allocation(options.cpus, mem_mb, options.minutes, extra, whole_mb)
    batch = shards.scripts(options.shards, allocation, others, workflow_dir, configfile)
    if options.print:
        print("\n".join(batch.values()))
        return 0
    _clear_up()
    numbers = shards.submit(batch)
    print("submitted " + ", ".join(f"{name} as SLURM job {number}" for name, number in numbers.items()))
    print(f"scripts and output: {shards.LOG_FOLDER}; progress: python -m cohortgmm status")
    return 0


def _memory(options: argparse.Namespace, config: Any) -> tuple[int, int]:
    """MB of each job, and MB of jobs that read the whole cohort; warns if ``--mem-mb`` is less than a rule requests."""
    from cohortgmm.pipeline.slurm.shards import largest_request

    rule, asked = largest_request(config)
    if options.mem_mb is None:
        mem_mb = 2000 * options.cpus
        return (max(mem_mb, asked) if config.component_sharing == "global" else mem_mb), asked
    if options.mem_mb < asked:
        print(
            f"warning: {rule} requests {asked} MB and may run out of memory: give --mem-mb {asked}",
            file=sys.stderr,
        )
    return options.mem_mb, 0


def _clear_up() -> None:
    """End the jobs that a killed run has left behind, because shards do not: both would do the same work."""
    from cohortgmm.pipeline.lock import lock_results
    from cohortgmm.pipeline.settings import check_writable
    from cohortgmm.pipeline.slurm.orphans import clear_up, remove_unrecorded

    check_writable("results")
    lock = lock_results("results")
    try:
        cancelled = clear_up("results")
        remove_unrecorded()
    finally:
        for descriptor in lock:  # released here, because the jobs that are submitted next take the lock themselves
            os.close(descriptor)
    if cancelled:
        print(cancelled)


def _shard(options: argparse.Namespace, others: Sequence[str]) -> int:
    from cohortgmm.pipeline.lock import Shard
    from cohortgmm.pipeline.slurm import shards

    shard = Shard.read(options.shard)
    workflow_dir, configfile = _place(options)
    targets = shards.shard_targets(shard, _config(configfile, workflow_dir).component_sharing, "results/patients.tsv")
    return shards.run_shard(shard, targets, ["--configfile", str(configfile), *others], workflow_dir)


if __name__ == "__main__":
    sys.exit(main())
