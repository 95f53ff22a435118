from cohortgmm.cohort.preprocess import preprocess_file
from cohortgmm.config import PreprocessConfig
from cohortgmm.pipeline.job import job_log
from cohortgmm.pipeline.made_with import preprocess_values, write_values

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
    values = preprocess_values(snakemake.input.cohort, snakemake.params.options, snakemake.params.seed)
    write_values("results", "preprocess", values)
