from cohortgmm.cohort.cells import PatientCells
from cohortgmm.cohort.fitting import fit_candidate, write_fit
from cohortgmm.cohort.tables import write_score
from cohortgmm.log import job_log

with job_log(snakemake):
    row, fit = fit_candidate(
        PatientCells.load(snakemake.input.cells),
        int(snakemake.wildcards.k),
        snakemake.params.options,
        seed=snakemake.params.seed,
        default_range=snakemake.params.default_range,
        n_threads=snakemake.threads,
    )
    write_fit(snakemake.output.model, fit)
    write_score(snakemake.output.score, row)
