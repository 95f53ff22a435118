"""Tables from which the quality of the mixtures is judged."""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from cohortgmm.cohort.cells import PatientCells
from cohortgmm.cohort.tables import FRAME_COLUMNS, RUN_AGAIN, read_rows, table_heading
from cohortgmm.errors import DataError
from cohortgmm.mixture import GaussianMixture, MixtureFit
from cohortgmm.storage.atomic import atomic_path

_TEXT_COLUMNS = ["patient", "file", "label", "metric", "status", "reason", "cell_type", "best_by"]

#: Columns of the composition table.
COMPOSITION_COLUMNS = FRAME_COLUMNS["composition"]


def read_frame(path: str | os.PathLike, content: str = "table") -> pd.DataFrame:
    """A table of the pipeline for a figure: texts stay texts (a patient may be called NA), the rest are numbers.

    Parameters
    ----------
    path
        The table.
    content
        Which table it is, a key of :data:`FRAME_COLUMNS`; by default any that names patients.

    Raises
    ------
    DataError
        If the table is damaged or of another kind.
    """
    rows = read_rows(path, FRAME_COLUMNS.get(content, ["patient"]), content)
    frame = pd.DataFrame(rows, columns=table_heading(path), dtype=str)
    for name in frame.columns.difference(_TEXT_COLUMNS):
        flags = frame[name].isin(["True", "False"]).all() and len(frame) > 0
        missing = frame[name].isin(["", "nan"])  # texts that pandas takes for no number
        try:
            frame[name] = frame[name] == "True" if flags else pd.to_numeric(frame[name].mask(missing))
        except (ValueError, TypeError):
            raise DataError(f"{path} holds no {content}: {name} is not a number in every line; {RUN_AGAIN}") from None
    return frame


def write_frame(frame: pd.DataFrame, path: str | os.PathLike) -> None:
    """Write a table as tab-separated values."""
    texts = frame.select_dtypes(include=["object", "string", "category"])
    # Before Python 3.13 a carriage return by itself does not make the writer quote a text.
    returns = any("\r" in str(text) for name in texts for text in texts[name].unique())
    quoting = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, sep="\t", index=False, quoting=quoting, encoding="utf-8")


def diagnostics_table(
    parts: Sequence[PatientCells],
    fits: Mapping[str, MixtureFit],
    scores: pd.DataFrame,
    selection: pd.DataFrame,
    labels: Mapping[str, str],
    refit: str,
) -> pd.DataFrame:
    """One row per mixture: cells, convergence, gap between train and held-out NLL, conditioning, weights.

    Parameters
    ----------
    parts, fits
        What was fitted, and the final mixture of each.
    scores, selection
        The score table and the chosen k.
    labels
        Label of every patient.
    refit
        As in the configuration.

    Returns
    -------
    DataFrame
        Likelihoods are nats per cell; those of train and held-out cells belong to the selection fit.
    """
    chosen = scores.merge(selection[["patient", "k"]], on=["patient", "k"]).set_index("patient")
    if lost := [part.patient for part in parts if part.patient not in chosen.index]:
        raise DataError(
            f"the tables of scores and of the chosen k lack {len(lost)} patients, the first is {lost[0]!r}: remove "
            "results/scores.tsv and results/selection.tsv, and run again"
        )
    rows = []
    for part in parts:
        fit, score = fits[part.patient], chosen.loc[part.patient]
        rows.append(
            {
                "patient": part.patient,
                "label": labels.get(part.patient, ""),
                "n_cells": len(part.x),
                "n_fit": part.n_fit(refit),
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


def weights_table(fits: Mapping[str, MixtureFit]) -> pd.DataFrame:
    """Weight of every component: columns patient, component, weight."""
    return pd.DataFrame(
        [
            {"patient": name, "component": component, "weight": weight}
            for name, fit in fits.items()
            for component, weight in enumerate(fit.model.weights)
        ]
    )


def members_of(cells: PatientCells, model: GaussianMixture) -> np.ndarray:
    """(n,) component that a cell is most probably of; −1 for a cell that is more probably background than not."""
    resp = model.responsibilities(cells.x, cells.noise_of())
    components = resp.argmax(axis=1)
    if model.background is not None:
        components[resp.sum(axis=1) < 0.5] = -1
    return components


def composition_table(
    parts: Iterable[PatientCells],
    fits: Mapping[str, MixtureFit],
    positions: Mapping[str, np.ndarray],
    cell_types: pd.Categorical | None,
) -> pd.DataFrame:
    """Cells of every type in every component (zeros left out): the columns of :data:`COMPOSITION_COLUMNS`.

    ``positions`` are the rows of the cohort, and so of ``cell_types``, that the cells of every part come from.

    Cells that are background are of no component. Without cell types the table has no rows.
    """
    tables = [pd.DataFrame(columns=COMPOSITION_COLUMNS)]
    for part in parts if cell_types is not None else ():
        components = members_of(part, fits[part.patient].model)
        types = cell_types[positions[part.patient]].astype(object)
        table = pd.DataFrame({"component": components, "cell_type": np.where(pd.isna(types), "unknown", types)})
        table = table[components >= 0]
        counts = table.value_counts().rename("n_cells").reset_index().sort_values(["component", "cell_type"])
        tables.append(counts.assign(patient=part.patient))
    return pd.concat(tables[1:] or tables, ignore_index=True)[COMPOSITION_COLUMNS]
