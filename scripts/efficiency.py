from cohortgmm.log import job_log
from cohortgmm.runs.efficiency import write_efficiency

with job_log(snakemake):
    write_efficiency(snakemake.params.logs, snakemake.output[0])
