from cohortgmm.cohort.h5ad import open_h5ad
from cohortgmm.cohort.occupied import check_file
from cohortgmm.cohort.split import split_file
from cohortgmm.pipeline.job import job_log
from cohortgmm.pipeline.made_with import split_values, write_values

with job_log(snakemake):
    sheet = snakemake.input.get("sheet") or None
    with open_h5ad(snakemake.input.cohort) as file:
        check_file(file, snakemake.params.gmm_key, snakemake.params.options["patient_col"])
    split_file(
        snakemake.input.cohort,
        snakemake.params.folder,
        snakemake.output.table,
        snakemake.output.positions,
        sheet=sheet,
        summary=snakemake.input.get("summary") or None,
        **snakemake.params.options,
    )
    write_values("results", "split", split_values(snakemake.input.cohort, sheet, snakemake.params.options))
