from cohortgmm.cohort.cells import PatientCells
from cohortgmm.cohort.fitting import final_fit, write_fit
from cohortgmm.cohort.tables import RUN_AGAIN, read_scores
from cohortgmm.errors import DataError
from cohortgmm.mixture import MixtureFit
from cohortgmm.pipeline.job import job_log
from cohortgmm.pipeline.made_with import fit_mark

with job_log(snakemake):
    params, table = snakemake.params, snakemake.input.selection
    k = params.k
    if k not in params.candidates:
        read_scores(table)  # raises an error that describes a damaged table
        raise DataError(f"{table} holds no scores that choose one of the candidates; {RUN_AGAIN}")
    selected = MixtureFit.load(snakemake.input.fits[params.candidates.index(k)])
    cells = PatientCells.load(snakemake.input.cells)
    fit = final_fit(cells, k, selected, params.refit, params.options, seed=params.seed, n_threads=snakemake.threads)
    options = {name: params[name] for name in ("options", "seed", "refit")}
    mark = fit_mark(snakemake.input.cells, snakemake.input.described, **options, k=k)
    write_fit(snakemake.output.model, fit, mark)
