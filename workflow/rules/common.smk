# The checked configuration, the names that all stages share, and what a run says when it begins and ends.

import functools
import gc
import os
import sys

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

import cohortgmm.pipeline.settings as helpers
from cohortgmm.display import format_path
from cohortgmm.cohort.fit_options import fit_options
from cohortgmm.cohort.tables import read_sheet
from cohortgmm.errors import CohortgmmError
from cohortgmm.storage.names import patient_name
from cohortgmm.pipeline import closing
from cohortgmm.pipeline import failures
from cohortgmm.pipeline import messages
from cohortgmm.pipeline.slurm import orphans
from cohortgmm.pipeline import readonly
from cohortgmm.pipeline import records
from cohortgmm.pipeline import requests
from cohortgmm.pipeline.slurm import watch
from cohortgmm.pipeline.header import check_header
from cohortgmm.pipeline.lock import Shard, lock_holders, lock_results
from cohortgmm.pipeline.slurm.shards import SHARD_VARIABLE
from cohortgmm.pipeline.texts import literal, plain_path, report_labels

# The jobs of 1,000 patients are all kept: to look among them for garbage after every 700 objects took a tenth of a dry run.
gc.set_threshold(50_000, 20, 100)

messages.show_everything(logger)

try:
    helpers.check_results_folder("results")
    helpers.check_targets(workflow.overwrite_configfiles)
    if workflow.is_main_process:
        helpers.check_surroundings(workflow.basedir)
        helpers.check_config_files(workflow.configfiles)
    source = ", ".join(map(format_path, workflow.configfiles)) or "config"
    # A job reads what its run has looked at.
    CONFIG = helpers.load_config(config, source, workflow.basedir, refuse_results=workflow.is_main_process)
    SHEET = read_sheet(CONFIG.patients) if CONFIG.patients else None
    SHARD = Shard.read(os.environ[SHARD_VARIABLE]) if SHARD_VARIABLE in os.environ else None
    # As inputs of rules; what a user names is a parameter only through `literal`, and a label through `report_labels`.
    INPUT = plain_path(CONFIG.input)
    SHEET_FILE = plain_path(CONFIG.patients) if CONFIG.patients else []
    DESCRIBED = [plain_path(path) for path in CONFIG.gmm.files.values()]
except CohortgmmError as error:
    raise WorkflowError(str(error)) from None

helpers.prepare_jobs(os.path.join(workflow.basedir, "src"), verbose=CONFIG.gmm.verbose)
if workflow.is_main_process:
    readonly.let_look("results")
else:
    records.leave_records_to_run()
records.record_parameters_at_the_end("refit")

COHORT_FILE = "results/preprocessed/cohort.h5ad" if CONFIG.preprocess.enabled else INPUT
ENVIRONMENT = os.path.join(workflow.basedir, "envs", "cohortgmm.yaml")
TABLE = "results/patients.tsv"
POSITIONS = "results/positions.npz"
SCORES = "results/scores.tsv"
EMBEDDING = requests.embedding_parts(CONFIG.use_rep)
FIGURES = ["criteria", "overview"] + (["composition"] if CONFIG.celltype_col else [])
ERRORS = failures.JobErrors()


wildcard_constraints:
    patient=r"[A-Za-z0-9._=-]+",
    k=r"[1-9][0-9]*",


def code_of(script):
    """Stands for the code of a rule among its parameters."""
    return helpers.code_of(os.path.join(workflow.basedir, script))


def chosen_k(wildcards):
    """The k that the criterion chooses for a patient, once its scores are there."""
    return helpers.chosen_k(f"results/selection/{wildcards.patient}.tsv", CONFIG.gmm.k_selection_metric)


@functools.cache
def foreseen():
    """File names of what will be fitted, from the sample sheet, for a dry run; else none."""
    # Not when this file is read: Snakemake does not know yet that it is a dry run.
    return helpers.sheet_part_names(CONFIG.component_sharing, SHEET, TABLE) if SHEET and workflow.dryrun else {}


def stop(message):
    """End the call with one line: of an error in an input function, Snakemake shows a traceback."""
    if ERRORS in logger.handlers:  # a run is at work, which Snakemake must bring to its end
        raise WorkflowError(message)
    say(f"error: {message}")
    sys.exit(1)


@functools.cache
def look_at_input():
    """Once, in a dry run: end with what the jobs would say of an input without the columns and keys that are wanted."""
    # Of a run, the first job says so; jobs on a cluster would wait for that, see begin().
    if workflow.is_main_process and workflow.dryrun and not SHARD:
        try:
            check_header(CONFIG)
        except CohortgmmError as error:
            stop(str(error).replace("\n", "\nerror: "))


def cohort_to_split(wildcards):
    """The file that is divided into patients."""
    look_at_input()
    if workflow.is_main_process and not SHARD and helpers.has_lost_patients("results"):
        # Else Snakemake, which does not know what the merged file follows from, would take it for up to date, whatever
        # the configuration is.
        records.force_rule(workflow, "split")
    return COHORT_FILE


@functools.cache
def look_at_results():
    """Once: refuse results of another configuration of which Snakemake, without records, would say nothing."""
    if not workflow.is_main_process or SHARD or ERRORS in logger.handlers:
        return
    try:
        if problem := records.unrecorded_problem(workflow, "results", CONFIG):
            stop(problem)
    except CohortgmmError:
        pass  # of a damaged table whoever reads it will tell


def parts():
    """File names of what is fitted: those foreseen, or once the cohort has been split those that are there."""
    look_at_input()
    look_at_results()
    if foreseen():
        return foreseen()
    forget_unrecorded()
    # A shard takes the division of the cohort as it finds it, and so does a batch, which must know all inputs at once.
    found = SHARD or workflow.dag_settings.batch
    try:
        return helpers.part_names(CONFIG.component_sharing, TABLE if found else checkpoints.split.get().output.table)
    except FileNotFoundError:
        options = messages.run_options(workflow.overwrite_configfiles, workflow.basedir)
        stop(f"{TABLE} is not there yet: split the cohort first, snakemake {TABLE} --cores all{options}")
    except CohortgmmError as error:
        stop(str(error))


@functools.cache
def forget_unrecorded():
    """Once, before Snakemake looks for the results of the patients: those of jobs that outlived their run do not count."""
    is_run = workflow.is_main_process and workflow.executor_plugin is not None and not workflow.dryrun
    # After the split the lock is this run's own, which has seen to it.
    if is_run and not SHARD and not lock_holders("results"):
        orphans.remove_unrecorded()


def cells_of(wildcards):
    """The array file of one patient, which is there once the cohort has been split."""
    if wildcards.patient not in parts():
        stop(f"no patient {patient_name(wildcards.patient)!r}; results/patients.tsv lists them")
    return cells_file(wildcards.patient)


def cells_file(name):
    """The array file of a part; where it is only foreseen, the table that will be beside it."""
    path = f"results/patients/{name}.npz"
    return path if not foreseen() or os.path.exists(path) else TABLE


def all_cells(wildcards):
    """The array files of all parts."""
    return [cells_file(name) for name in parts()]


def per_part(pattern):
    """Input function: ``pattern`` for every part."""
    return lambda wildcards: expand(pattern, patient=parts())


def qc_outputs(wildcards):
    """Figures and tables that a run is asked for."""
    patients = parts() if CONFIG.qc.patient_figures else []
    return [
        "results/qc/diagnostics.tsv",
        *expand("results/qc/{figure}.{suffix}", figure=FIGURES, suffix=["svg", "png"]),
        *expand("results/qc/patients/{patient}.{suffix}", patient=patients, suffix=["svg", "png"]),
        *expand(
            "results/qc/corrections/{patient}.{suffix}",
            patient=patients if CONFIG.gmm.has_incomplete_data else [],
            suffix=["svg", "png"],
        ),
    ]


def in_report(category):
    """Category of a file in the report, which is refused unless everything in it is of this configuration."""

    def of_file(wildcards):
        check_report()
        return category

    return of_file


@functools.cache
def check_report():
    """Once, before the report is written: refuse what a run with this configuration would make anew."""
    problem = messages.report_problem(
        list(workflow.dag.needrun_jobs()), workflow.overwrite_configfiles, workflow.basedir
    )
    if problem:
        stop(problem)


def patient_label(wildcards):
    """What the report calls a patient's figure."""
    return {"patient": patient_name(wildcards.patient)}


def say(message):
    print(f"\n{message}\n", file=sys.stderr)


def advise(executor, n_fits):
    """Say if this cohort's fits are too short for a SLURM job each."""
    advice = messages.way_message(executor, n_fits, SCORES)
    if advice:
        say(advice)


def known_patients():
    """Number of patients; None before the cohort has been split."""
    try:
        return len(helpers.part_names("sample_specific", TABLE))
    except (OSError, CohortgmmError):
        return None if SHEET is None else len(SHEET)


def begin():
    """Lock the results, end what a killed run has left behind, and say what will run."""
    executor = workflow.executor_plugin.name
    try:
        helpers.check_writable("results")
        if executor != "local" and not SHARD:
            check_header(CONFIG)
        lock = lock_results("results", SHARD)
        told = "" if SHARD else orphans.clear_up("results")
    except CohortgmmError as error:
        raise WorkflowError(str(error)) from None
    if not lock:
        say("This file system knows no locks: see yourself that no other run is at work in the same directory.")
    if told:
        say(told)
    logger.addHandler(ERRORS)
    jobs = list(workflow.dag.needrun_jobs())
    remote = next((job for job in jobs if not job.is_local), None)
    if executor == "slurm" and remote is not None:
        keep_in_view(workflow.scheduler.get_executor(remote))
    say(messages.start_message(executor, jobs, known_patients(), os.path.exists(SCORES)))
    if any(job.rule.name == "split" for job in jobs):
        orphans.remove_unrecorded()  # now, as later there are results of this run that are not recorded yet
        logger.addHandler(messages.AfterSplit(lambda: say_jobs_of_patients(executor)))
    advise(executor, sum(job.rule.name == "fit" for job in jobs))
    return lock


def keep_in_view(slurm):
    """Let SLURM's executor lose no job, and the next run find those of this one."""
    orphans.remember_run("results", slurm.run_uuid)
    age = watch.min_job_age()
    watch.watch_jobs(slurm, age)
    if warning := watch.age_message(age, watch.longest_pause(slurm)):
        say(warning)


def say_jobs_of_patients(executor):
    """Say what will run once the patients are known."""
    jobs = list(workflow.dag.needrun_jobs())
    say(messages.start_message(executor, jobs, known_patients(), has_results=False))
    advise(executor, sum(job.rule.name == "fit" for job in jobs))


onstart:
    LOCK = begin()


def end(failed):
    """Keep what failed, say it, and leave nothing in SLURM's queue: a run that is interrupted may still submit jobs."""
    if failed:
        say("\n  ".join([f"{len(failed)} failed:", *map(str, failed)]))
    if SHARD:
        return
    try:
        n_cancelled = orphans.cancel_orphans("results")
        if n_cancelled:
            say(f"Cancelled {n_cancelled} jobs that were still in SLURM's queue.")
    except CohortgmmError as error:
        say(f"{error}. The next run will look again.")
    try:
        failures.write_failures("results", failed)
    except CohortgmmError as error:
        say(error)


def closing_words():
    """What a user should know of the result, and what to do with it."""
    at_home = os.path.samefile(os.curdir, workflow.basedir)
    table = TABLE if at_home else os.path.abspath(TABLE)
    snippet = closing.ggml_snippet(
        "results/cohort_gmm.h5ad" if at_home else os.path.abspath("results/cohort_gmm.h5ad"),
        patient_col=CONFIG.patient_column,
        label_col=CONFIG.label_col,
        use_rep=CONFIG.use_rep,
        gmm_key=CONFIG.gmm_key,
        table=table if CONFIG.label_col and closing.uneven_labels(TABLE) else None,
    )
    for_report = messages.finish_message(workflow.overwrite_configfiles, workflow.basedir)
    notes = closing.closing_notes(preprocessed=CONFIG.preprocess.enabled)
    return closing.closing_message(notes, snippet, for_report)


onsuccess:
    end([])
    if os.path.exists("results/cohort_gmm.h5ad") and not SHARD:
        advise(workflow.executor_plugin.name, len(parts()) * len(CONFIG.gmm.candidates))
        say(closing_words())


onerror:
    on_cluster = workflow.executor_plugin.name == "slurm"
    end(ERRORS.failures(workflow.scheduler.failed, workflow.dag.jobid, on_cluster))
