# The checked configuration, the names that all stages share, and what a run says when it begins and ends.

import os
import sys
import time
from collections import Counter

from snakemake.exceptions import WorkflowError

# The package beside this workflow is the one that its jobs use, installed or not.
sys.path.insert(0, os.path.join(workflow.basedir, "src"))

import cohortgmm.workflow as helpers
from cohortgmm.cohort.tables import read_sheet
from cohortgmm.errors import CohortgmmError

try:
    helpers.check_results_folder("results")
    CONFIG = helpers.load_config(config, ", ".join(map(str, workflow.configfiles)) or "config", workflow.basedir)
    SHEET = read_sheet(CONFIG.patients) if CONFIG.patients else None
except CohortgmmError as error:
    raise WorkflowError(str(error)) from None

helpers.prepare_jobs(sys.path[0], verbose=CONFIG.gmm.verbose)

COHORT_FILE = "results/preprocessed/cohort.h5ad" if CONFIG.preprocess.enabled else CONFIG.input
ENVIRONMENT = os.path.join(workflow.basedir, "envs", "cohortgmm.yaml")
FIGURES = ["criteria", "overview"] + (["composition"] if CONFIG.celltype_col else [])
STARTED = time.time()


wildcard_constraints:
    patient=r"[A-Za-z0-9._=-]+",
    k=r"[0-9]+",


def code_of(script):
    """Stands for the code of a rule among its parameters."""
    return helpers.code_of(os.path.join(workflow.basedir, script))


def parts():
    """File names of what is fitted: in a dry run from the sample sheet, else once the cohort has been split."""
    table = "results/patients.tsv"
    if SHEET is not None and workflow.dryrun:
        return helpers.sheet_part_names(CONFIG.component_sharing, SHEET, table)
    try:
        return helpers.part_names(CONFIG.component_sharing, checkpoints.split.get().output.table)
    except CohortgmmError as error:
        raise WorkflowError(str(error)) from None


def cells_of(wildcards):
    """The array file of one patient, which is there once the cohort has been split."""
    if wildcards.patient not in parts():
        raise WorkflowError(f"no patient {helpers.patient_name(wildcards.patient)!r}; results/patients.tsv lists them")
    return f"results/patients/{wildcards.patient}.npz"


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
            patient=patients if CONFIG.gmm.is_corrected else [],
            suffix=["svg", "png"],
        ),
    ]


def say(message):
    print(f"\n{message}\n", file=sys.stderr)


onstart:
    try:
        LOCK = helpers.lock_results("results")
    except CohortgmmError as error:
        raise WorkflowError(str(error)) from None
    planned = Counter(job.rule.name for job in workflow.dag.needrun_jobs())
    say(helpers.start_message(workflow.executor_plugin.name, planned, os.path.exists("results/scores.tsv")))


onsuccess:
    if os.path.exists("results/cohort_gmm.h5ad"):
        say(helpers.finish_message(workflow.overwrite_configfiles, workflow.basedir))


onerror:
    lines = helpers.failures("results/logs", STARTED)
    if lines:
        say("\n  ".join([f"{len(lines)} failed:", *lines]))
