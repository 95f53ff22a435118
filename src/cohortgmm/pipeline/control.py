"""A run: what is checked while Snakemake plans its jobs, and what is done when the jobs begin and when they have ended.

The Snakefile holds one :class:`Run`. Where Snakemake would show a traceback, its methods stop Snakemake with one line.
"""

import functools
import logging
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from snakemake.exceptions import WorkflowError

from cohortgmm.cohort.tables import read_sheet
from cohortgmm.config import Config
from cohortgmm.display import format_path
from cohortgmm.errors import CohortgmmError
from cohortgmm.pipeline import closing, messages, plugin_patches, settings, units
from cohortgmm.pipeline.failures import Failure, JobErrors, write_failures
from cohortgmm.pipeline.header import check_header
from cohortgmm.pipeline.lock import Shard, lock_holders, lock_results
from cohortgmm.pipeline.made_with import Expected
from cohortgmm.pipeline.slurm import orphans
from cohortgmm.pipeline.slurm.commands import min_job_age
from cohortgmm.pipeline.slurm.shards import SHARD_VARIABLE
from cohortgmm.pipeline.status import read_status
from cohortgmm.pipeline.texts import plain_path
from cohortgmm.pipeline.versions import note_version, version_message, version_of
from cohortgmm.storage.names import patient_name

RESULTS = "results"
TABLE = f"{RESULTS}/patients.tsv"
SCORES = f"{RESULTS}/scores.tsv"
MERGED = f"{RESULTS}/cohort_gmm.h5ad"

_logger = logging.getLogger("snakemake.logging")


def say(message: object) -> None:
    """Print a message to the terminal, between empty lines."""
    print(f"\n{message}\n", file=sys.stderr)


@dataclass
class Run:
    """One call of Snakemake: that of a user, or in a job on a cluster.

    Attributes
    ----------
    workflow
        Snakemake's workflow.
    config
        The checked configuration, with its files found.
    sheet
        Patients of the sample sheet; None without a sheet.
    shard
        Which shard of the patients this call is for; None if it is for all of them.
    input_file, sheet_file, further_files
        The files of the configuration as inputs of rules (:func:`cohortgmm.pipeline.texts.plain_path`): the cohort, the
        sample sheet (an empty list without one), and those that the fits read.
    """

    workflow: Any
    config: Config
    sheet: Mapping[str, Any] | None = None
    shard: Shard | None = None
    input_file: str = ""
    sheet_file: str | list[str] = field(default_factory=list)
    further_files: list[str] = field(default_factory=list)
    _errors: JobErrors = field(default_factory=JobErrors)
    _lock: list[int] = field(default_factory=list)  # descriptors that hold the lock as long as they are open
    _checked: set[str] = field(default_factory=set)
    _is_whole: bool = False  # whether the run makes all results

    @classmethod
    def read(cls, workflow: Any, config: Mapping[str, Any]) -> "Run":
        """Check the surroundings and the configuration, and prepare the environment of the jobs.

        Parameters
        ----------
        workflow
            Snakemake's workflow, while it reads the Snakefile.
        config
            The configuration as Snakemake read it.

        Raises
        ------
        WorkflowError
            With one line for every problem.
        """
        messages.show_everything(_logger)
        try:
            settings.check_results_folder(RESULTS)
            settings.check_targets(workflow.overwrite_configfiles)
            is_main = workflow.is_main_process
            if is_main:
                settings.check_surroundings(workflow.basedir)
                settings.check_config_files(workflow.configfiles)
            source = ", ".join(map(format_path, workflow.configfiles)) or "config"
            # The process of a job on a cluster reads files that the run has already checked.
            checked = settings.load_config(config, source, workflow.basedir, refuse_results=is_main)
            sheet = read_sheet(checked.patients) if checked.patients else None
            shard = Shard.read(os.environ[SHARD_VARIABLE]) if SHARD_VARIABLE in os.environ else None
            sheet_file = plain_path(checked.patients) if checked.patients else []
            files = [plain_path(path) for path in (checked.input, *checked.gmm.files.values())]
        except CohortgmmError as error:
            raise WorkflowError(str(error)) from None
        settings.prepare_jobs(os.path.join(workflow.basedir, "src"), verbose=checked.gmm.verbose)
        plugin_patches.patch_snakemake(RESULTS, is_main_process=is_main, recorded_at_end="refit")
        if is_main and (message := plugin_patches.untested_message("snakemake")):
            say(message)
        return cls(workflow, checked, sheet, shard, files[0], sheet_file, files[1:])

    # While Snakemake plans

    @functools.cached_property
    def foreseen(self) -> dict[str, None]:
        """Units of fitting that a dry run expects by the sample sheet, before the split; empty without a sheet."""
        # Not known when the Snakefile is read: Snakemake does not know then that it is a dry run.
        if not (self.sheet and self.workflow.dryrun):
            return {}
        return units.sheet_unit_names(self.config.component_sharing, self.sheet, TABLE)

    def units(self, table_of_split: Callable[[], str]) -> dict[str, None]:
        """File names of the units of fitting: those that are foreseen, or those of the split cohort.

        Parameters
        ----------
        table_of_split
            Returns the table of patients, and makes Snakemake wait for the split if the table does not exist yet.
        """
        self.check_input()
        self._check_results()
        if self.foreseen:
            return self.foreseen
        self._remove_unrecorded()
        # A shard takes the table as it is. So does a call with Snakemake's --batch, which must know all inputs at once.
        is_split = self.shard or self.workflow.dag_settings.batch
        try:
            return units.unit_names(self.config.component_sharing, TABLE if is_split else table_of_split())
        except FileNotFoundError:
            options = messages.run_options(self.workflow.overwrite_configfiles, self.workflow.basedir)
            self.stop(f"{TABLE} does not exist: split the cohort first, snakemake {TABLE} --cores all{options}")
        except CohortgmmError as error:
            self.stop(str(error))

    def cells_file(self, name: str, known: Collection[str]) -> str:
        """The array file of a unit, or the table of patients as long as a foreseen unit has no array file yet."""
        if name not in known:
            self.stop(f"no patient {patient_name(name)!r}; {TABLE} lists them")
        path = f"{RESULTS}/patients/{name}.npz"
        return path if not self.foreseen or os.path.exists(path) else TABLE

    def check_input(self) -> None:
        """In a dry run, end the call if the input lacks columns or keys; in a run, its first job checks them."""
        if self._is_first("input") and self._is_users and self.workflow.dryrun:
            try:
                check_header(self.config)
            except CohortgmmError as error:
                self.stop(str(error).replace("\n", "\nerror: "))

    def split_again(self) -> None:
        """Run the split again if its table or positions are lost and later results, such as the models, are not.

        Without the table, Snakemake does not know from which files the merged one was made, and takes it for up to date.
        """
        if self._is_users and units.has_lost_patients(RESULTS):
            plugin_patches.force_rule(self.workflow, "split")

    def check_report(self) -> None:
        """End the call if a report is asked for while a run with this configuration would change results."""
        if self._is_first("report"):
            jobs = list(self.workflow.dag.needrun_jobs())
            if problem := messages.report_problem(jobs, self.workflow.overwrite_configfiles, self.workflow.basedir):
                self.stop(problem)

    def stop(self, message: str) -> NoReturn:
        """End the call with one line, because Snakemake would show a traceback for an error in an input function."""
        if self._has_begun:  # Snakemake must end the jobs
            raise WorkflowError(message)
        say(f"error: {message}")
        sys.exit(1)

    def _check_results(self) -> None:
        """End the call if the results are of another configuration and have no records. Snakemake would keep them."""
        if not self._is_first("results") or not self._is_users or self._has_begun:
            return
        try:
            problem = unrecorded_problem(self.workflow, self.config)
        except CohortgmmError:
            return  # whoever reads the damaged table reports it
        if problem:
            self.stop(problem)

    def _remove_unrecorded(self) -> None:
        """Remove results of jobs that ended after their run was killed, before Snakemake looks for results."""
        workflow = self.workflow
        is_run = self._is_users and workflow.executor_plugin is not None and not workflow.dryrun
        # Once the run has begun, it holds the lock, and :meth:`begin` has removed them.
        if self._is_first("unrecorded") and is_run and not lock_holders(RESULTS):
            orphans.remove_unrecorded()

    def _is_first(self, check: str) -> bool:
        is_first = check not in self._checked
        self._checked.add(check)
        return is_first

    @property
    def _is_users(self) -> bool:
        """Whether this is a user's call, not that of a job or a shard."""
        return self.workflow.is_main_process and not self.shard

    @property
    def _has_begun(self) -> bool:
        return self._errors in _logger.handlers

    # When the jobs begin and when they have ended

    def begin(self) -> None:
        """Lock the results, end what a killed run has left behind, and report what will run.

        Raises
        ------
        WorkflowError
            If the results cannot be written or are in use, or the input lacks columns or keys.
        """
        executor = self.workflow.executor_plugin.name
        try:
            settings.check_writable(RESULTS)
            if executor != "local" and not self.shard:  # the first job would report it, but might wait for hours
                check_header(self.config)
            self._lock = lock_results(RESULTS, self.shard)
            cancelled = "" if self.shard else orphans.clear_up(RESULTS)
        except CohortgmmError as error:
            raise WorkflowError(str(error)) from None
        if not self._lock:
            say("This file system has no locks: make sure that no other run uses the same directory.")
        if cancelled:
            say(cancelled)
        _logger.addHandler(self._errors)
        jobs = list(self.workflow.dag.needrun_jobs())
        self._note_version(jobs)
        remote = next((job for job in jobs if not job.is_local), None)
        if executor == "slurm" and remote is not None:
            self._watch(self.workflow.scheduler.get_executor(remote))
        self._say_jobs(has_results=os.path.exists(SCORES))
        if any(job.rule.name == "split" for job in jobs):
            orphans.remove_unrecorded()  # from here on, unrecorded results may be those of this run
            _logger.addHandler(messages.AfterSplit(lambda: self._say_jobs(has_results=False)))

    def _note_version(self, jobs: Sequence[Any]) -> None:
        """Report results of another version of this package, and note the present one if there are no results yet."""
        self._is_whole = not self.shard and any(job.rule.name == "all" for job in jobs)
        if message := version_message(RESULTS, jobs):
            say(message)
        if version_of(RESULTS) is None:
            note_version(RESULTS)

    def _watch(self, slurm: Any) -> None:
        """Let the executor follow all its jobs, and let the next run find those that are left."""
        orphans.remember_run(RESULTS, slurm.run_uuid)
        age, pause = min_job_age(), plugin_patches.longest_pause(slurm)
        plugin_patches.patch_slurm_executor(slurm, age)
        untested = plugin_patches.untested_message("snakemake-executor-plugin-slurm")
        for message in filter(None, [untested, plugin_patches.sacct_message(age, pause)]):
            say(message)

    def _say_jobs(self, *, has_results: bool) -> None:
        """Report the jobs that are known so far, and advise shards for short fits."""
        executor, jobs = self.workflow.executor_plugin.name, list(self.workflow.dag.needrun_jobs())
        say(messages.start_message(executor, jobs, self._n_patients(), has_results))
        self._advise(sum(job.rule.name == "fit" for job in jobs))

    def _advise(self, n_fits: int) -> None:
        if advice := messages.way_message(self.workflow.executor_plugin.name, n_fits, SCORES):
            say(advice)

    def _n_patients(self) -> int | None:
        """Number of patients; None before the cohort has been split."""
        try:
            return len(units.unit_names("sample_specific", TABLE))
        except (OSError, CohortgmmError):
            return None if self.sheet is None else len(self.sheet)

    def succeed(self, fitted_units: Callable[[], Collection[str]]) -> None:
        """End a run without failures, and print the closing message.

        Parameters
        ----------
        fitted_units
            Returns the names of the units of fitting.
        """
        self._end([])
        if self._is_whole:
            note_version(RESULTS)
        if os.path.exists(MERGED) and not self.shard:
            self._advise(len(fitted_units()) * len(self.config.gmm.candidates))
            say(self._closing_message())

    def fail(self) -> None:
        """End a run with failures, and print which jobs failed and why."""
        on_cluster = self.workflow.executor_plugin.name == "slurm"
        failed = self._errors.failures(self.workflow.scheduler.failed, self.workflow.dag.jobid, on_cluster)
        self._end(failed)

    def _end(self, failed: Sequence[Failure]) -> None:
        """Report and store the failures, and cancel jobs that an interrupted run may have left in SLURM's queue."""
        if failed:
            say("\n  ".join([f"{len(failed)} failed:", *map(str, failed)]))
        if self.shard:
            return
        try:
            if n_cancelled := orphans.cancel_orphans(RESULTS):
                say(f"Cancelled {n_cancelled} jobs that were still in SLURM's queue.")
        except CohortgmmError as error:
            say(f"{error}. The next run will cancel them.")
        try:
            write_failures(RESULTS, failed)
        except CohortgmmError as error:
            say(error)

    def _closing_message(self) -> str:
        """The last text of a run: notes on the result, and what to do with it."""
        config, workflow = self.config, self.workflow
        at_home = os.path.samefile(os.curdir, workflow.basedir)
        table, merged = (path if at_home else os.path.abspath(path) for path in (TABLE, MERGED))
        snippet = closing.ggml_snippet(
            merged,
            patient_col=config.patient_column,
            label_col=config.label_col,
            use_rep=config.use_rep,
            gmm_key=config.gmm_key,
            table=table if config.label_col and closing.uneven_labels(TABLE) else None,
        )
        for_report = messages.finish_message(workflow.overwrite_configfiles, workflow.basedir)
        return closing.closing_message(
            closing.closing_notes(preprocessed=config.preprocess.enabled), snippet, for_report
        )


def unrecorded_problem(workflow: Any, config: Config) -> str:
    """A refusal of results that were copied without Snakemake's records and are of another configuration; else empty."""
    names = ("patients.tsv", "scores.tsv", "cohort_gmm.h5ad")
    paths = [path for path in (f"{RESULTS}/{name}" for name in names) if os.path.exists(path)]
    if TABLE not in paths:
        return ""
    status = None
    if not plugin_patches.has_records(workflow, [*paths, *_first_model()]):
        status = read_status(RESULTS, config.gmm.candidates, config.component_sharing, Expected(config))
    stale = "of another configuration"
    if status is None or not (status.stale or any(stale in states for states in status.fits.values())):
        return ""
    return (
        f"{RESULTS}/ holds results of another configuration or version, and Snakemake's records of them are missing, so "
        f"that it would take them for up to date: remove {RESULTS}/, or copy the folder .snakemake beside it too"
    )


def _first_model() -> list[str]:
    folder = f"{RESULTS}/models"
    names = sorted(name for name in os.listdir(folder) if name.endswith(".npz")) if os.path.isdir(folder) else []
    return [f"{folder}/{name}" for name in names[:1]]
