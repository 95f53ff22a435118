"""Tables for judging the mixtures: diagnostics, weights, and cell types of the components."""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from cohortgmm.cohort.cells import PatientCells
from cohortgmm.cohort.patient_result import PatientResult
from cohortgmm.cohort.tables import FRAME_COLUMNS, RUN_AGAIN, read_rows, table_heading
from cohortgmm.errors import DataError
from cohortgmm.mixture import GaussianMixture
from cohortgmm.storage.atomic import atomic_path

_TEXT_COLUMNS = ["patient", "file", "label", "metric", "status", "reason", "cell_type", "best_by"]

#: Columns of the composition table.
COMPOSITION_COLUMNS = FRAME_COLUMNS["composition"]


def read_frame(path: str | os.PathLike[str], content: str = "table") -> pd.DataFrame:
    """Read a table of the pipeline for a figure.

    Columns of text stay text, even for a patient called NA; all other columns become numbers or booleans.

    Parameters
    ----------
    path
        The table.
    content
        Which table it is, a key of :data:`FRAME_COLUMNS`; by default any table with a column of patients.

    Raises
    ------
    DataError
        If the table is damaged or of another kind.
    """
    rows = read_rows(path, FRAME_COLUMNS.get(content, ["patient"]), content)
    frame = pd.DataFrame(rows, columns=table_heading(path), dtype=str)
    for name in frame.columns.difference(_TEXT_COLUMNS):
        flags = frame[name].isin(["True", "False"]).all() and len(frame) > 0
        missing = frame[name].isin(["", "nan"])  # how the pipeline writes a missing number
        try:
            frame[name] = frame[name] == "True" if flags else pd.to_numeric(frame[name].mask(missing))
        except (ValueError, TypeError):
            raise DataError(f"{path} holds no {content}: {name} is not a number in every line; {RUN_AGAIN}") from None
    return frame


def write_frame(frame: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write a table as tab-separated values."""
    texts = frame.select_dtypes(include=["object", "string", "category"])
    # Before Python 3.13 a carriage return by itself does not make the writer quote a text.
    returns = any("\r" in str(text) for name in texts for text in texts[name].unique())
    quoting = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, sep="\t", index=False, quoting=quoting, encoding="utf-8")


def diagnostics_table(
    results: Sequence[PatientResult],
    scores: pd.DataFrame,
    selection: pd.DataFrame,
    labels: Mapping[str, str],
) -> pd.DataFrame:
    """One row per mixture: cells, convergence, gap between train and held-out NLL, conditioning, weights.

    Parameters
    ----------
    results
        Results of the units of fitting.
    scores, selection
        The table of scores, and the table of the chosen k.
    labels
        Label of every patient.

    Returns
    -------
    DataFrame
        Log-likelihoods are in nats per cell. ``train_nll``, ``heldout_nll`` and ``nll_gap`` are those of the chosen
        candidate, also if the final mixture was fitted again to all cells.

    Raises
    ------
    DataError
        If a unit is not in the tables.
    """
    chosen = scores.merge(selection[["patient", "k"]], on=["patient", "k"]).set_index("patient")
    if lost := [one.name for one in results if one.name not in chosen.index]:
        raise DataError(
            f"the tables of scores and of the chosen k lack {len(lost)} patients, the first is {lost[0]!r}: remove "
            "results/scores.tsv and results/selection.tsv, and run again"
        )
    rows = []
    for result in results:
        fit, score = result.fit, chosen.loc[result.name]
        rows.append(
            {
                "patient": result.name,
                "label": labels.get(result.name, ""),
                "n_cells": result.n_cells,
                "n_fit": result.n_fit,
                "k": fit.model.n_components,
                "n_iter": fit.n_iter,
                "converged": fit.converged,
                "log_likelihood_per_cell": fit.log_likelihood,
                "train_nll": score["train_nll"],
                "heldout_nll": score["heldout_nll"],
                "nll_gap": score["nll_gap"],
                "max_condition": fit.model.condition_numbers.max(),
                "min_weight": fit.model.weights.min(),
                "max_weight": fit.model.weights.max(),
                "n_floored": int(fit.floored.sum()),
                "completeness": fit.completeness,
                "n_unobserved": fit.n_unobserved,
                "n_empty": fit.n_empty,
                "background": 0.0 if fit.model.background is None else fit.model.background.amp,
            }
        )
    return pd.DataFrame(rows)


def weights_table(results: Sequence[PatientResult]) -> pd.DataFrame:
    """Weight of every component: columns patient, component, weight."""
    return pd.DataFrame(
        [
            {"patient": result.name, "component": component, "weight": weight}
            for result in results
            for component, weight in enumerate(result.fit.model.weights)
        ]
    )


def members_of(cells: PatientCells, model: GaussianMixture) -> np.ndarray:
    """(n,) most probable component of every cell; −1 for cells that are background with a probability above 0.5."""
    resp = model.responsibilities(cells.x, cells.noise_of())
    components = resp.argmax(axis=1)
    if model.background is not None:
        components[resp.sum(axis=1) < 0.5] = -1
    return components


def composition_table(
    results: Sequence[PatientResult],
    units: Iterable[PatientCells],
    positions: Mapping[str, np.ndarray],
    cell_types: pd.Categorical | None,
) -> pd.DataFrame:
    """Number of cells of every type in every component, without zeros and without background cells.

    Parameters
    ----------
    results, units
        Results of the units of fitting, and their cells.
    positions
        Rows of the cohort that hold the cells of every unit, by name of the unit.
    cell_types
        Cell type of every row of the cohort; None if there are none.

    Returns
    -------
    DataFrame
        The columns of :data:`COMPOSITION_COLUMNS`; empty if there are no cell types.
    """
    tables = [pd.DataFrame(columns=COMPOSITION_COLUMNS)]
    models = {result.name: result for result in results}
    if cell_types is None:
        return tables[0]
    for cells in units:
        components = members_of(cells, models[cells.patient].fit.model)
        types = cell_types[positions[cells.patient]].astype(object)
        table = pd.DataFrame({"component": components, "cell_type": np.where(pd.isna(types), "unknown", types)})
        table = table[components >= 0]
        counts = table.value_counts().rename("n_cells").reset_index().sort_values(["component", "cell_type"])
        tables.append(counts.assign(patient=cells.patient))
    return pd.concat(tables[1:] or tables, ignore_index=True)[COMPOSITION_COLUMNS]
