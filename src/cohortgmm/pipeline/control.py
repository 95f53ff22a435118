"""A run: its checks while Snakemake plans the jobs, and its actions when the jobs begin and when they have ended.

The Snakefile creates one :class:`Run`. Its methods end Snakemake with one line for an error, instead of a traceback.
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
    """One call of Snakemake, by a user or by a job on a cluster.

    Attributes
    ----------
    workflow
        Snakemake's workflow.
    config
        The checked configuration, with the paths of existing files.
    sheet
        Patients of the sample sheet; None without a sheet.
    shard
        The shard of the patients that this call fits; None if it fits all patients.
    input_file, sheet_file, further_files
        The files of the configuration as inputs of rules (:func:`cohortgmm.pipeline.texts.plain_path`): the cohort, the
        sample sheet (an empty list if there is none), and further files that the fits read.
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
    _is_whole: bool = False  # whether the run makes all results, not only those of some targets or of a shard

    @classmethod
    def read(cls, workflow: Any, config: Mapping[str, Any]) -> "Run":
        """Check the computing environment and the configuration, and set the environment variables of the jobs.

        Parameters
        ----------
        workflow
            Snakemake's workflow object, from within the Snakefile.
        config
            The configuration as parsed by Snakemake.

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
            # A job on a cluster accepts results as files, because the user's call has already checked them.
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
        """In a dry run, the units of fitting expected from the sample sheet; empty in a run, or without a sheet."""
        # Evaluated late, because Snakemake does not know yet that it is a dry run when it reads the Snakefile.
        if not (self.sheet and self.workflow.dryrun):
            return {}
        return units.sheet_unit_names(self.config.component_sharing, self.sheet, TABLE)

    def units(self, table_of_split: Callable[[], str]) -> dict[str, None]:
        """File names of the units of fitting: those in :attr:`foreseen` if there are any, else those of the split.

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
        # Neither a shard nor a call with Snakemake's --batch can wait for the split: they need an existing table.
        is_split = self.shard or self.workflow.dag_settings.batch
        try:
            return units.unit_names(self.config.component_sharing, TABLE if is_split else table_of_split())
        except FileNotFoundError:
            options = messages.run_options(self.workflow.overwrite_configfiles, self.workflow.basedir)
            self.stop(f"{TABLE} does not exist: split the cohort first, snakemake {TABLE} --cores all{options}")
        except CohortgmmError as error:
            self.stop(str(error))

    def cells_file(self, name: str, known: Collection[str]) -> str:
        """The array file of a unit. In a dry run before the split, the table of patients stands for a missing one."""
        if name not in known:
            self.stop(f"no patient {patient_name(name)!r}; {TABLE} lists them")
        path = f"{RESULTS}/patients/{name}.npz"
        return path if not self.foreseen or os.path.exists(path) else TABLE

    def check_input(self) -> None:
        """In a dry run, end the call if the input lacks columns or keys. In a real run, the first job checks this."""
        if self._is_first("input") and self._is_users and self.workflow.dryrun:
            try:
                check_header(self.config)
            except CohortgmmError as error:
                self.stop(str(error).replace("\n", "\nerror: "))

    def split_again(self) -> None:
        """Run the split again if its table or positions are missing although later results, such as models, exist.

        Without the table, Snakemake does not know the inputs of the merged file and takes that file for up to date.
        """
        if self._is_users and units.has_lost_patients(RESULTS):
            plugin_patches.force_rule(self.workflow, "split")

    def check_report(self) -> None:
        """End the call that makes a report if the results are not up to date with this configuration."""
        if self._is_first("report"):
            jobs = list(self.workflow.dag.needrun_jobs())
            if problem := messages.report_problem(jobs, self.workflow.overwrite_configfiles, self.workflow.basedir):
                self.stop(problem)

    def stop(self, message: str) -> NoReturn:
        """End the call with one line, because Snakemake would show a traceback for an error in an input function."""
        if self._has_begun:  # jobs may be running, and Snakemake ends them only if it receives an exception
            raise WorkflowError(message)
        say(f"error: {message}")
        sys.exit(1)

    def _check_results(self) -> None:
        """End the call if results of another configuration have no records: Snakemake would take them for current."""
        if not self._is_first("results") or not self._is_users or self._has_begun:
            return
        try:
            problem = unrecorded_problem(self.workflow, self.config)
        except CohortgmmError:
            return  # the job that reads the damaged table reports the error
        if problem:
            self.stop(problem)

    def _remove_unrecorded(self) -> None:
        """Before Snakemake looks for results, remove those of jobs that ended after their run had been killed."""
        workflow = self.workflow
        is_run = self._is_users and workflow.executor_plugin is not None and not workflow.dryrun
        # Once this run has begun, it holds the lock itself, and :meth:`begin` has already removed such results.
        if self._is_first("unrecorded") and is_run and not lock_holders(RESULTS):
            orphans.remove_unrecorded()

    def _is_first(self, check: str) -> bool:
        is_first = check not in self._checked
        self._checked.add(check)
        return is_first

    @property
    def _is_users(self) -> bool:
        """Whether a user made this call, rather than a job or a shard."""
        return self.workflow.is_main_process and not self.shard

    @property
    def _has_begun(self) -> bool:
        return self._errors in _logger.handlers

    # When the jobs begin and when they have ended

    def begin(self) -> None:
        """Lock the results, end the jobs that a killed run has left behind, and report the planned jobs.

        Raises
        ------
        WorkflowError
            If the results cannot be written or are in use, or the input lacks columns or keys.
        """
        executor = self.workflow.executor_plugin.name
        try:
            settings.check_writable(RESULTS)
            if executor != "local" and not self.shard:  # else the first job checks it, after hours in the queue perhaps
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
            orphans.remove_unrecorded()  # must happen now: later, unrecorded results may be those of this run
            _logger.addHandler(messages.AfterSplit(lambda: self._say_jobs(has_results=False)))

    def _note_version(self, jobs: Sequence[Any]) -> None:
        """Report results of another version of this package; if there are no results yet, store the present version."""
        self._is_whole = not self.shard and any(job.rule.name == "all" for job in jobs)
        if message := version_message(RESULTS, jobs):
            say(message)
        if version_of(RESULTS) is None:
            note_version(RESULTS)

    def _watch(self, slurm: Any) -> None:
        """Patch the executor so that it follows all its jobs, and store their name in SLURM for the next run."""
        orphans.remember_run(RESULTS, slurm.run_uuid)
        age, pause = min_job_age(), plugin_patches.longest_pause(slurm)
        plugin_patches.patch_slurm_executor(slurm, age)
        untested = plugin_patches.untested_message("snakemake-executor-plugin-slurm")
        for message in filter(None, [untested, plugin_patches.sacct_message(age, pause)]):
            say(message)

    def _say_jobs(self, *, has_results: bool) -> None:
        """Report the jobs that Snakemake has planned so far, and recommend shards if fits are short."""
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
        """Report and store the failures, and cancel jobs of this run that are still in SLURM's queue."""
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
        """The last text that a run prints: notes on the result, and how to use it."""
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
    """Error message if results are of another configuration and lack Snakemake's records; empty if they are not."""
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
