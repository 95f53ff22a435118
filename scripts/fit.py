from cohortgmm.cohort.cells import PatientCells
from cohortgmm.cohort.fitting import fit_candidate, write_fit
from cohortgmm.cohort.tables import write_score
from cohortgmm.pipeline.job import job_log
from cohortgmm.pipeline.made_with import fit_mark

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
    options = {name: snakemake.params[name] for name in ("options", "seed", "default_range")}
    write_score(snakemake.output.score, row, fit_mark(snakemake.input.cells, snakemake.input.described, **options))
