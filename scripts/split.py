from cohortgmm.cohort.split import split_file
from cohortgmm.log import job_log

with job_log(snakemake):
    split_file(
        snakemake.input.cohort,
        snakemake.params.folder,
        snakemake.output.table,
        snakemake.output.positions,
        sheet=snakemake.input.get("sheet") or None,
        summary=snakemake.input.get("summary") or None,
        **snakemake.params.options,
    )
