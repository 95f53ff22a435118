from cohortgmm.cohort.preprocess import preprocess_file
from cohortgmm.config import PreprocessConfig
from cohortgmm.log import job_log

with job_log(snakemake.log[0]):
    options = PreprocessConfig(**snakemake.params.options)
    preprocess_file(snakemake.input[0], snakemake.output[0], options, snakemake.params.seed)
