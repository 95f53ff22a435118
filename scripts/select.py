from cohortgmm.cohort.selection import select_k
from cohortgmm.cohort.tables import SCORE_COLUMNS, read_score, write_table
from cohortgmm.log import job_log

with job_log(snakemake):
    rows = [read_score(path) for path in snakemake.input.scores]
    chosen = select_k(rows, snakemake.params.metric)["k"]
    rows = [row | {"selected": row["k"] == chosen} for row in rows]
    write_table(snakemake.output.table, [*SCORE_COLUMNS, "selected"], rows)
