from cohortgmm.cohort.selection import select_k
from cohortgmm.cohort.tables import SCORE_COLUMNS, SELECTION_COLUMNS, read_scores, write_table
from cohortgmm.pipeline.job import job_log

with job_log(snakemake):
    scores = [read_scores(path) for path in snakemake.input.tables]
    choices = [select_k(rows, snakemake.params.metric) for rows in scores]
    write_table(snakemake.output.scores, SCORE_COLUMNS, (row for rows in scores for row in rows))
    write_table(snakemake.output.selection, SELECTION_COLUMNS, choices)
