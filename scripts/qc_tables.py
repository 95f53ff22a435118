from cohortgmm.cohort import diagnostics as qc
from cohortgmm.cohort.annotation import CellAnnotation
from cohortgmm.cohort.cells import PatientCells, read_positions
from cohortgmm.cohort.patient_result import read_results
from cohortgmm.cohort.tables import read_patients
from cohortgmm.pipeline.job import job_log

with job_log(snakemake):
    results = read_results(snakemake.input.cells, snakemake.input.models, snakemake.params.refit)
    units = map(PatientCells.load, snakemake.input.cells)
    labels = {row["patient"]: row["label"] for row in read_patients(snakemake.input.table)}
    scores, selection = (qc.read_frame(snakemake.input[name], name) for name in ("scores", "selection"))
    positions = read_positions(snakemake.input.positions)
    cell_types = CellAnnotation.load(snakemake.input.annotation).cell_types
    diagnostics = qc.diagnostics_table(results, scores, selection, labels)
    qc.write_frame(diagnostics, snakemake.output.diagnostics)
    qc.write_frame(qc.weights_table(results), snakemake.output.weights)
    qc.write_frame(qc.composition_table(results, units, positions, cell_types), snakemake.output.composition)
