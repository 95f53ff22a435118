# One Gaussian mixture per patient of a single-cell cohort.
#
#   snakemake --cores all                                       the cohort of config/config.yaml
#   snakemake --cores all results/models/P1.npz                 one patient
#   snakemake --directory DIR --configfile FILE --cores all     elsewhere

from snakemake.utils import min_version

min_version("9.17")


include: "workflow/rules/config.smk"
include: "workflow/rules/common.smk"
include: "workflow/rules/preprocess.smk"
include: "workflow/rules/fit.smk"
include: "workflow/rules/select.smk"
include: "workflow/rules/refit.smk"
include: "workflow/rules/merge.smk"
include: "workflow/rules/qc.smk"


report: "workflow/report/workflow.rst"


rule all:
    default_target: True
    input:
        "results/cohort_gmm.h5ad",
        "results/scores.tsv",
        "results/selection.tsv",
        qc_outputs,
        "results/qc/efficiency.tsv",
