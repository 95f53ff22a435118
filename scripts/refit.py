from cohortgmm.cohort.cells import PatientCells
from cohortgmm.cohort.fitting import final_fit, write_fit
from cohortgmm.log import job_log
from cohortgmm.mixture.result import MixtureFit

with job_log(snakemake):
    params = snakemake.params
    k = params.k
    selected = MixtureFit.load(snakemake.input.fits[params.candidates.index(k)])
    cells = PatientCells.load(snakemake.input.cells)
    fit = final_fit(cells, k, selected, params.refit, params.options, seed=params.seed, n_threads=snakemake.threads)
    write_fit(snakemake.output.model, fit)
