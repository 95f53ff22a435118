from cohortgmm.cohort.reading import check_input
from cohortgmm.log import job_log

with job_log(snakemake):
    check_input(snakemake.input[0], snakemake.params.columns)
