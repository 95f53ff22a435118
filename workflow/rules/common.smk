# The checked configuration, the names that all stages share, and input functions.

import gc
import os

from cohortgmm.cohort.fit_options import fit_options
from cohortgmm.pipeline import closing
from cohortgmm.pipeline import control
from cohortgmm.pipeline import requests
from cohortgmm.pipeline import units
from cohortgmm.pipeline.code_hash import code_of as hash_of_code
from cohortgmm.pipeline.control import SCORES, TABLE
from cohortgmm.pipeline.texts import literal, report_labels
from cohortgmm.storage.names import patient_name

# The jobs of 1,000 patients stay in memory during a run. With Python's default of a garbage collection after every 700
# objects, a tenth of the time of a dry run was spent on it.
gc.set_threshold(50_000, 20, 100)

RUN = control.Run.read(workflow, config)
CONFIG = RUN.config

# Snakemake must not change texts of the configuration: as a parameter they go through `literal`, as a label through
# `report_labels`.
COHORT_FILE = "results/preprocessed/cohort.h5ad" if CONFIG.preprocess.enabled else RUN.input_file
ENVIRONMENT = os.path.join(workflow.basedir, "envs", "cohortgmm.yaml")
POSITIONS = "results/positions.npz"
EMBEDDING = requests.embedding_parts(CONFIG.use_rep)
FIGURES = ["criteria", "overview"] + (["composition"] if CONFIG.celltype_col else [])


wildcard_constraints:
    patient=r"[A-Za-z0-9._=-]+",
    k=r"[1-9][0-9]*",


def code_of(script):
    """Hash of the code of a rule, for its parameters."""
    return hash_of_code(os.path.join(workflow.basedir, script))


def chosen_k(wildcards):
    """The k that the criterion chooses for a patient, once the patient's scores exist."""
    return units.chosen_k(f"results/selection/{wildcards.patient}.tsv", CONFIG.gmm.k_selection_metric)


def cohort_to_split(wildcards):
    """The file that is split by patient."""
    RUN.check_input()
    RUN.split_again()
    return COHORT_FILE


def fitted_units():
    """File names of the units of fitting: patients, or the whole cohort."""
    return RUN.units(lambda: checkpoints.split.get().output.table)


def cells_of(wildcards):
    """The array file of one unit of fitting, which exists once the cohort has been split."""
    return RUN.cells_file(wildcards.patient, fitted_units())


def all_cells(wildcards):
    """The array files of all units."""
    names = fitted_units()
    return [RUN.cells_file(name, names) for name in names]


def per_unit(pattern):
    """Input function: ``pattern`` for every unit of fitting."""
    return lambda wildcards: expand(pattern, patient=fitted_units())


def qc_outputs(wildcards):
    """Figures and tables of a whole run."""
    patients = fitted_units() if CONFIG.qc.patient_figures else []
    kinds = ["patients", "corrections"] if CONFIG.gmm.has_incomplete_data else ["patients"]
    names = [*FIGURES, *expand("{kind}/{patient}", kind=kinds, patient=patients)]
    return ["results/qc/diagnostics.tsv", *expand("results/qc/{name}.{suffix}", name=names, suffix=["svg", "png"])]


def in_report(category):
    """Input function: category of a file in the report, which is refused if results are of another configuration."""

    def of_file(wildcards):
        RUN.check_report()
        return category

    return of_file


def patient_label(wildcards):
    """Label of a patient's figure in the report."""
    return {"patient": patient_name(wildcards.patient)}


onstart:
    RUN.begin()


onsuccess:
    RUN.succeed(fitted_units)


onerror:
    RUN.fail()
