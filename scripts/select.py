from cohortgmm.cohort.selection import criteria_by_k
from cohortgmm.cohort.tables import PATIENT_SCORE_COLUMNS, read_score, write_table
from cohortgmm.pipeline.job import job_log

with job_log(snakemake):
    rows = [read_score(path) for path in snakemake.input.scores]
    best = criteria_by_k(rows)
    write_table(
        snakemake.output.table, PATIENT_SCORE_COLUMNS, (row | {"best_by": ", ".join(best[row["k"]])} for row in rows)
    )
