from cohortgmm.cohort.h5ad import open_h5ad
from cohortgmm.cohort.occupied import check_file
from cohortgmm.cohort.patients import check_input
from cohortgmm.pipeline.job import job_log

with job_log(snakemake):
    with open_h5ad(snakemake.input.cohort) as file:
        check_file(file, snakemake.params.gmm_key, snakemake.params.options["patient_col"])
    check_input(
        snakemake.input.cohort,
        snakemake.params.columns,
        sheet=snakemake.input.get("sheet") or None,
        **snakemake.params.options,
    )
