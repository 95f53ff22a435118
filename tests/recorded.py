"""Results of a finished run, written without running it."""

from pathlib import Path

import numpy as np

from cohortgmm.cohort.selection import select_k
from cohortgmm.cohort.tables import (
    PATIENT_COLUMNS,
    SCORE_COLUMNS,
    SELECTION_COLUMNS,
    by_patient,
    read_score,
    write_score,
    write_table,
)
from cohortgmm.config import Config
from cohortgmm.pipeline import made_with
from cohortgmm.pipeline.made_with import Expected
from cohortgmm.storage.marks import mark_archive, mark_of_archive

CONFIG = {
    "input": "cohort.h5ad",
    "patient_col": "patient",
    "preprocess": {"enabled": False},
    "gmm": {"k_comps": [1, 2]},
}


def write_run(folder: Path, config: Config) -> None:
    """Results as the jobs of a run with this configuration leave them."""
    results, expected = folder / "results", Expected(config, folder / "results")
    rows = [dict.fromkeys(PATIENT_COLUMNS, "") | {"patient": n, "file": n, "status": "ok"} for n in ("P1", "P2")]
    write_table(results / "patients.tsv", PATIENT_COLUMNS, rows)
    for name in ("P1", "P2"):
        (results / "patients").mkdir(exist_ok=True)
        (results / "models").mkdir(exist_ok=True)
        np.savez(results / "patients" / f"{name}.npz", x=np.full((9, 2), len(name)))
        for k in config.gmm.candidates:
            row = {column: kind(1) for column, kind in SCORE_COLUMNS.items()}
            row |= {"patient": name, "k": k, "status": "ok", "aic": -float(k), "bic": float(k)}
            write_score(results / "fits" / name / f"k{k}.json", row, expected.fit(name))
        np.savez(results / "models" / f"{name}.npz", means=np.zeros(2))
        mark_archive(results / "models" / f"{name}.npz", expected.model(name, 2))
    made_with.write_values(results, "split", made_with.split_values(config.input, None, config.split_options()))
    marks = [mark_of_archive(results / "models" / f"{name}.npz") for name in ("P1", "P2")]
    made_with.write_values(results, "merge", made_with.merge_values(config.provenance_json(), marks))
    (results / "cohort_gmm.h5ad").touch()
    scores = [read_score(path) for path in sorted((results / "fits").rglob("*.json"))]
    write_table(results / "scores.tsv", SCORE_COLUMNS, scores)
    metric = config.gmm.k_selection_metric
    choices = [select_k(rows, metric) for rows in by_patient(scores).values()]
    write_table(results / "selection.tsv", SELECTION_COLUMNS, choices)
