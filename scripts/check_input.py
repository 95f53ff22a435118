from cohortgmm.cohort.reading import check_input
from cohortgmm.log import job_log

with job_log(snakemake):
    check_input(
        snakemake.input.cohort,
        snakemake.params.columns,
        sheet=snakemake.input.get("sheet") or None,
        **snakemake.params.options,
    )
