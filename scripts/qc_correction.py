from cohortgmm.cohort.cells import PatientCells
from cohortgmm.cohort.naive_comparison import correction_of
from cohortgmm.mixture import MixtureFit
from cohortgmm.pipeline.job import job_log
from cohortgmm.plots.correction import plot_correction
from cohortgmm.plots.style import save_figure

with job_log(snakemake):
    cells, params = PatientCells.load(snakemake.input.cells), snakemake.params
    fit = MixtureFit.load(snakemake.input.model)
    correction = correction_of(cells, fit, params.options, max_cells=params.max_cells, seed=params.seed)
    figure = plot_correction(
        patient=cells.patient, x=cells.x, correction=correction, feature_names=list(cells.feature_names)
    )
    for path in snakemake.output:
        save_figure(figure, path)
