"""What Snakemake records of a job, changed where its records would be wrong; written for Snakemake 9.17 to 9.27."""

import os
from pathlib import Path
from typing import Any


def leave_records_to_run() -> None:
    """In the Snakemake of a job on a cluster: let the marks of its files stay until the run has seen that it has ended.

    That Snakemake records nothing itself but would remove the marks; a run that is killed meanwhile would leave files that
    are neither marked nor recorded, and they would count as results whatever the configuration is by then.
    """
    from snakemake.persistence import PersistenceBase

    async def finished(self: Any, job: Any) -> None:
        """Nothing is recorded here."""

    PersistenceBase.finished = finished


def record_parameters_at_the_end(rule: str) -> None:
    """Let Snakemake record the parameters of a rule's jobs as they are when a job has ended.

    It evaluates parameters when it plans the jobs and may record what they were then. The chosen k of a refit is only known
    once the scores of this run are there: recorded as it was planned, it would make the next run refit once more.

    Parameters
    ----------
    rule
        Name of the rule.
    """
    from snakemake.persistence import PersistenceBase

    planned = PersistenceBase._params

    def _params(self: Any, job: Any) -> list[Any]:
        if job.rule.name != rule:
            return planned(self, job)
        job._expand_params()
        return planned.__wrapped__(self, job)

    PersistenceBase._params = _params


def force_rule(workflow: Any, rule: str) -> None:
    """Let a rule run as with ``-R``; to be called while Snakemake looks for the inputs of that rule."""
    workflow.dag.forcerules.add(workflow.get_rule(rule))


def unrecorded_problem(workflow: Any, results: str | os.PathLike, config: Any) -> str:
    """That results, copied without Snakemake's records, are of another configuration; empty if they are not.

    Parameters
    ----------
    workflow
        Snakemake's workflow, with its rules and records.
    results
        The results folder of the run.
    config
        The checked configuration.
    """
    folder = Path(results)
    names = ("patients.tsv", "scores.tsv", "cohort_gmm.h5ad")
    there = [path for path in map(folder.joinpath, names) if path.exists()] + sorted(folder.glob("models/*.npz"))[:1]
    if folder / names[0] not in there:
        return ""
    from snakemake.io import IOFile

    from cohortgmm.pipeline.made_with import Expected
    from cohortgmm.pipeline.status import read_status

    rule = workflow.get_rule("all")
    if any(workflow.persistence.metadata(IOFile(str(path), rule=rule)) for path in there):
        return ""

    status = read_status(results, config.gmm.candidates, config.component_sharing, Expected(config))
    stale = "of another configuration"
    if not (status.stale or any(stale in states for states in status.fits.values())):
        return ""
    return (
        f"{folder}/ holds results of another configuration or version, and Snakemake's records of them are not there, so "
        f"that it would take them as they are: remove {folder}/, or copy the folder .snakemake beside it too"
    )
