"""The label of every patient, and a column that separates patients whose cells have several labels."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from cohortgmm.cohort.texts import Texts, check_column, column_list, column_texts
from cohortgmm.display import format_text
from cohortgmm.errors import CohortgmmError, DataError

logger = logging.getLogger(__name__)

#: A column is proposed for dividing patients only if the resulting units have at least this many cells on average.
_CELLS_PER_UNIT = 5

#: Names of columns with cell types or clusters, which describe cells and not patients.
_CELL_TYPES = re.compile(r"cell.?type|cluster|leiden|louvain|annotation|subset|_comp$", re.IGNORECASE)


@dataclass(frozen=True)
class Labels:
    """Labels of the patients.

    Attributes
    ----------
    column
        The column of ``obs`` with the labels.
    counts
        Number of cells by label of every patient, in decreasing order, ties in alphabetical order; cells without a label
        do not count.
    unlabelled
        Number of cells without a label, for every patient that has such cells.
    """

    column: str
    counts: Mapping[str, Mapping[str, int]]
    unlabelled: Mapping[str, int] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, str]:
        """Label of every patient: the most frequent one; empty if its cells have none."""
        return {patient: next(iter(counts), "") for patient, counts in self.counts.items()}

    @property
    def mixed(self) -> list[str]:
        """Patients whose cells have several labels, in order of their ids."""
        return sorted(patient for patient, counts in self.counts.items() if len(counts) > 1)

    def describe(self, patient: str) -> str:
        """Number of cells of a patient by label, in words."""
        counts = list(self.counts[patient].items())
        return ", ".join(f"{n} {format_text(label)}" for label, n in counts[:4]) + (", ..." if len(counts) > 4 else "")

    def of(self, patients: Iterable[str]) -> "Labels":
        """The labels of some patients."""
        counts = {patient: self.counts[patient] for patient in patients}
        return Labels(self.column, counts, {name: n for name, n in self.unlabelled.items() if name in counts})

    def notes(self) -> dict[str, str]:
        """A note about every patient with several labels, or with cells without a label: which label was taken."""
        result = {}
        for patient, n in self.unlabelled.items():
            result[patient] = f"{n} cells have no label" if self.counts[patient] else "no label"
        for patient in self.mixed:
            first, second = list(self.counts[patient].values())[:2]
            how = "tie, the first by name is taken" if first == second else "the most frequent is taken"
            without = f"; {result[patient]}" if patient in result else ""
            result[patient] = f"several labels: {self.describe(patient)}; {how}{without}"
        return result


def patient_labels(obs: pd.DataFrame, ids: np.ndarray, label_col: str) -> Labels:
    """Labels of the patients.

    Parameters
    ----------
    obs
        (n,) table of cells.
    ids
        (n,) patients.
    label_col
        Column of ``obs``.
    """
    check_column(obs, label_col, "label_col")
    texts = column_texts(obs[label_col], f"label_col {label_col!r}")
    names, codes = _coded(texts)
    table = pd.DataFrame({"patient": ids, "label": names[codes]})[codes >= 0]
    sizes = table.groupby(["patient", "label"], sort=True).size()
    counts: dict[str, dict[str, int]] = {patient: {} for patient in sorted(set(ids))}
    ordered = sorted(sizes.items(), key=lambda item: (item[0][0], -item[1], item[0][1]))
    for (patient, label), n in ordered:
        counts[patient][label] = int(n)
    without, n_without = np.unique(ids[codes < 0].astype(object), return_counts=True)
    return Labels(label_col, counts, dict(zip(without.tolist(), n_without.tolist(), strict=True)))


def _coded(texts: Texts) -> tuple[np.ndarray, np.ndarray]:
    """Names, and codes in which texts of spaces only count as missing."""
    names = np.array([*texts.values, ""], dtype=object)
    blank = np.array([not name.strip() for name in names])
    return names, np.where(blank[texts.codes], -1, texts.codes)


def check_labels(
    labels: Labels,
    ids: np.ndarray,
    *,
    patient_col: str | Sequence[str],
    on_mixed_label: str,
    columns: Iterable[pd.Series],
) -> None:
    """Refuse patients whose cells have several labels, or log which label is taken.

    Parameters
    ----------
    labels
        The labels of the patients that are modelled.
    ids
        (n,) patient of every cell.
    patient_col, on_mixed_label
        As in the configuration.
    columns
        Columns of ``obs``, including the column of the labels; one of them may divide the patients.

    Raises
    ------
    DataError
        With ``on_mixed_label: error``, if there are such patients; the message proposes a column that divides them.
    """
    mixed = labels.mixed
    if not mixed:
        return
    if on_mixed_label == "majority":
        notes = labels.notes()
        for patient in mixed:
            logger.warning("patient %r has %s", patient, notes[patient])
        return
    shown = "; ".join(f"{patient!r} ({labels.describe(patient)})" for patient in mixed[:5])
    raise DataError(
        f"label_col {labels.column!r}: the cells of {len(mixed)} patients have several labels: {shown}"
        f"{'; ...' if len(mixed) > 5 else ''}. {_way_out(labels, ids, column_list(patient_col), columns)}"
    )


def _way_out(labels: Labels, ids: np.ndarray, patient_columns: Sequence[str], columns: Iterable[pd.Series]) -> str:
    others = {str(column.name): column for column in columns}
    own = others.pop(labels.column)
    found = _dividing_column(labels, ids, own, others)
    setting = f"patient_col: [{', '.join([*patient_columns, found or labels.column])}]"
    last = "on_mixed_label: majority takes the most frequent label"
    if found is None:
        return f"Only the column of the labels itself divides them into units of one label: {setting}; {last}"
    return f"The obs column {found!r} divides them into units of one label: {setting}; {last}"


def _dividing_column(
    labels: Labels, ids: np.ndarray, label_column: pd.Series, columns: Mapping[str, pd.Series]
) -> str | None:
    """The column that, together with the patient, gives units with one label each, and the fewest such units.

    In a tie, a column of cell types or clusters comes last.
    """
    _, codes = _coded(column_texts(label_column, labels.column))
    wanted = np.isin(ids, list(labels.counts))
    patients = pd.factorize(ids[wanted])[0]
    label_codes = codes[wanted]
    most = len(patients) // _CELLS_PER_UNIT
    best: tuple[int, bool, int, str] | None = None
    for i, (name, column) in enumerate(columns.items()):
        try:
            values = column_texts(column[wanted], name).codes
        except CohortgmmError:
            continue
        if (values < 0).any():
            continue
        unit = pd.factorize(patients.astype(np.int64) * (values.max() + 1) + values)[0]
        n_units = int(unit.max()) + 1
        pairs = pd.DataFrame({"unit": unit, "label": label_codes})[label_codes >= 0].drop_duplicates()
        found = (n_units, bool(_CELL_TYPES.search(name)), i, name)
        if n_units <= most and not pairs["unit"].duplicated().any() and (best is None or found < best):
            best = found
    return None if best is None else best[-1]
