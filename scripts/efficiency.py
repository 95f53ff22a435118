from cohortgmm.pipeline.job import job_log
from cohortgmm.pipeline.usage import write_efficiency

with job_log(snakemake):
    write_efficiency(snakemake.params.logs, snakemake.output[0])
