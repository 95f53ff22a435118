from cohortgmm.cohort import diagnostics as qc
from cohortgmm.cohort.annotation import CellAnnotation
from cohortgmm.cohort.cells import PatientCells, read_positions
from cohortgmm.cohort.fitting import load_fits
from cohortgmm.cohort.tables import read_patients
from cohortgmm.pipeline.job import job_log

with job_log(snakemake):
    parts = [PatientCells.load(path) for path in snakemake.input.cells]
    fits = load_fits(parts, snakemake.input.models)
    labels = {row["patient"]: row["label"] for row in read_patients(snakemake.input.table)}
    scores, selection = (qc.read_frame(snakemake.input[name], name) for name in ("scores", "selection"))
    positions = read_positions(snakemake.input.positions)
    cell_types = CellAnnotation.load(snakemake.input.annotation).cell_types
    diagnostics = qc.diagnostics_table(parts, fits, scores, selection, labels, snakemake.params.refit)
    qc.write_frame(diagnostics, snakemake.output.diagnostics)
    qc.write_frame(qc.weights_table(fits), snakemake.output.weights)
    qc.write_frame(qc.composition_table(parts, fits, positions, cell_types), snakemake.output.composition)
