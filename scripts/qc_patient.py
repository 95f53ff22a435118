from cohortgmm.cohort.annotation import CellAnnotation, draw_cells
from cohortgmm.cohort.cells import PatientCells, read_positions
from cohortgmm.cohort.diagnostics import members_of, read_frame
from cohortgmm.mixture import GaussianMixture
from cohortgmm.pipeline.job import job_log
from cohortgmm.plots.patient import plot_patient
from cohortgmm.plots.style import save_figure

with job_log(snakemake):
    cells, model = PatientCells.load(snakemake.input.cells), GaussianMixture.load(snakemake.input.model)
    annotation, params = CellAnnotation.load(snakemake.input.annotation), snakemake.params
    rows = read_positions(snakemake.input.positions)[cells.patient]
    figure = plot_patient(
        patient=cells.patient,
        x=cells.x,
        components=members_of(cells, model),
        model=model,
        scores=read_frame(snakemake.input.scores, "scores"),
        metric=params.metric,
        best_k=model.n_components,
        feature_names=list(cells.feature_names),
        umap=None if annotation.umap is None else annotation.umap[rows],
        cell_types=None if annotation.cell_types is None else annotation.cell_types[rows],
        shown=draw_cells(len(cells.x), params.max_cells, params.seed),
    )
    for path in snakemake.output:
        save_figure(figure, path)
