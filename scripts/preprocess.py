from cohortgmm.cohort.preprocess import preprocess_file
from cohortgmm.config import PreprocessConfig
from cohortgmm.log import job_log

with job_log(snakemake):
    options = PreprocessConfig(**snakemake.params.options)
    preprocess_file(
        snakemake.input.cohort,
        snakemake.output.cohort,
        options,
        snakemake.params.seed,
        summary=snakemake.output.summary,
        patient_col=snakemake.params.patient_col,
    )
