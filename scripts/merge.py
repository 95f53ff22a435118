from cohortgmm.cohort.merge import merge_models
from cohortgmm.pipeline.job import job_log
from cohortgmm.pipeline.made_with import merge_values, write_values
from cohortgmm.storage.marks import mark_of_archive

with job_log(snakemake):
    merge_models(
        snakemake.input.cohort,
        snakemake.output[0],
        cells=snakemake.input.cells,
        models=snakemake.input.models,
        positions=snakemake.input.positions,
        table=snakemake.input.table,
        scores=snakemake.input.scores,
        **{key: value for key, value in snakemake.params.items() if key != "code"},
    )
    marks = map(mark_of_archive, snakemake.input.models)
    write_values("results", "merge", merge_values(snakemake.params.config, marks))
