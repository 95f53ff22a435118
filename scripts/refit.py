from cohortgmm.cohort.cells import PatientCells
from cohortgmm.cohort.fitting import final_fit, write_fit
from cohortgmm.cohort.tables import read_rows
from cohortgmm.log import job_log
from cohortgmm.mixture.result import MixtureFit

with job_log(snakemake):
    (k,) = (int(row["k"]) for row in read_rows(snakemake.input.selection) if row["selected"] == "True")
    selected = MixtureFit.load(snakemake.input.fits[snakemake.params.candidates.index(k)])
    cells = PatientCells.load(snakemake.input.cells)
    params = snakemake.params
    fit = final_fit(cells, k, selected, params.refit, params.options, seed=params.seed, n_threads=snakemake.threads)
    write_fit(snakemake.output.model, fit)
