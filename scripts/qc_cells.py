from cohortgmm.cohort.annotation import read_annotation
from cohortgmm.pipeline.job import job_log

with job_log(snakemake):
    read_annotation(snakemake.input[0], **snakemake.params.options).save(snakemake.output[0])
