"""Notes on the result of a run that has succeeded, from its tables. Needs the standard library only."""

import json
import os
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from cohortgmm.cohort.tables import read_rows
from cohortgmm.errors import CohortgmmError

#: Largest number of patients that a note names, and of characters shown of a name.
_SHOWN, _LETTERS = 3, 40

#: Texts into which missing values are converted when a column is converted to text.
_MISSING_TEXTS = {"nan", "NaN", "None", "<NA>", "NaT"}

#: Largest number of characters in a line on the terminal.
_WIDTH = 100


def closing_notes(results: str | os.PathLike = "results", *, preprocessed: bool = False) -> list[str]:
    """Notes that a user should read before using a result; empty if there is nothing to report.

    Parameters
    ----------
    results
        The results folder.
    preprocessed
        Whether the run preprocesses its input.

    Returns
    -------
    list of str
        Patients that were left out and why; patients with cells of several labels; cells and genes that the
        preprocessing left out; patients whose chosen k or final mixture may be wrong.
    """
    folder, notes = Path(results), []
    first = [_left_out, _of_missing, _of_labels, *([_of_preprocessing] if preprocessed else [])]
    for source in [*first, _doubtful_choices, _not_converged]:
        try:
            notes += source(folder)
        except (CohortgmmError, OSError, ValueError, KeyError, TypeError) as error:
            notes.append(f"a note is missing, as a table of {folder} cannot be read: {error!r}")
    return notes


def left_out(table: str | os.PathLike) -> tuple[list[dict[str, str]], int]:
    """Rows of the table of patients that were left out, and the number of all rows."""
    rows = read_rows(table)
    return [row for row in rows if row["status"] == "dropped"], len(rows)


def left_out_line(table: str | os.PathLike) -> str:
    """Patients that were left out and why, in short; empty if there are none."""
    dropped, n = left_out(table)
    if not dropped:
        return ""
    shown = "; ".join(f"{_name(row['patient'])} ({row['reason']})" for row in dropped[:_SHOWN])
    return f"{len(dropped):,} of {_patients(n)} left out: {shown}{'; ...' if len(dropped) > _SHOWN else ''}"


def patients_label(table: str | os.PathLike) -> str:
    """Label of the table of patients in the report, with the patients that were left out."""
    return f"patients; {line}" if (line := left_out_line(table)) else "patients; none left out"


def _left_out(folder: Path) -> list[str]:
    line = left_out_line(folder / "patients.tsv")
    return [f"{line}; the whole list is in {folder / 'patients.tsv'}"] if line else []


def uneven_labels(table: str | os.PathLike) -> list[dict[str, str]]:
    """Rows of the patients that are kept and whose cells have several labels or none."""
    return [row for row in read_rows(table) if row["status"] == "ok" and row["reason"]]


def _of_missing(folder: Path) -> list[str]:
    """Notes on patients and labels that may be missing values converted to text."""
    rows = [row for row in read_rows(folder / "patients.tsv") if row["status"] == "ok"]
    found = [f"a patient is called {row['patient']!r}" for row in rows if row["patient"] in _MISSING_TEXTS]
    labels = Counter(row["label"] for row in rows if row["label"] in _MISSING_TEXTS)
    found += [f"{name!r} is the label of {_patients(n)}" for name, n in sorted(labels.items())]
    return [
        f"{text}: if it stands for a missing value, replace it in obs by None or NaN and run again" for text in found
    ]


def _of_labels(folder: Path) -> list[str]:
    table = folder / "patients.tsv"
    rows = uneven_labels(table)
    if not rows:
        return []
    n = sum(row["status"] == "ok" for row in read_rows(table))
    shown = "; ".join(f"{_name(row['patient'])} ({row['reason']})" for row in rows[:_SHOWN])
    return [
        f"{len(rows):,} of {_patients(n)} {'has' if n == 1 else 'have'} cells of several labels or of none: {shown}"
        f"{'; ...' if len(rows) > _SHOWN else ''}; the label of each patient is in {table}"
    ]


def _of_preprocessing(folder: Path) -> list[str]:
    path = folder / "preprocessed" / "summary.json"
    if not path.is_file():
        return []
    from cohortgmm.cohort.filter_notes import filter_notes, read_summary

    return filter_notes(read_summary(path))


def _doubtful_choices(folder: Path) -> list[str]:
    rows = read_rows(folder / "selection.tsv")
    floored = [row["patient"] for row in rows if float(row["n_floored"] or 0) > 0]
    at_edge = [row["patient"] for row in rows if row["at_edge"] == "True"]
    notes = []
    if floored:
        by_heldout = all(row["metric"] == "heldout_nll" for row in rows)
        notes.append(
            f"components at the covariance floor in {_of(floored, rows)}: their likelihood, AIC and BIC are not to be "
            f"trusted; fit fewer components or features{'' if by_heldout else ', or choose by heldout_nll'}"
        )
    if at_edge:
        notes.append(
            f"the largest or the smallest k that was tried is the best for {_of(at_edge, rows)}: widen gmm.k_comps, or "
            "see whether the criteria agree"
        )
    return notes


def _not_converged(folder: Path) -> list[str]:
    """Note on EM that did not converge: in the final mixtures if their table is of this run, else in chosen fits."""
    final, selection = folder / "qc" / "diagnostics.tsv", folder / "selection.tsv"
    if final.is_file() and final.stat().st_mtime >= selection.stat().st_mtime:
        rows = read_rows(final)
    else:
        chosen = {(row["patient"], row["k"]) for row in read_rows(selection)}
        rows = [row for row in read_rows(folder / "scores.tsv") if (row["patient"], row["k"]) in chosen]
    names = [row["patient"] for row in rows if row["converged"] == "False"]
    return [f"EM did not converge for {_of(names, rows)}: raise gmm.max_iter"] if names else []


def _of(names: Sequence[str], rows: Sequence[object]) -> str:
    shown = ", ".join(map(_name, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names):,} of {_patients(len(rows))} ({shown})"


def _patients(n: int) -> str:
    return f"{n:,} patient{'' if n == 1 else 's'}"


def _name(patient: str) -> str:
    """A name as a Python literal, in which control characters are escaped; the middle of a long name is left out."""
    half = _LETTERS // 2
    return repr(patient if len(patient) <= _LETTERS else f"{patient[:half]}…{patient[-half:]}")


def ggml_snippet(
    file: str | os.PathLike,
    *,
    patient_col: str,
    label_col: str | None,
    use_rep: str | None,
    gmm_key: str,
    table: str | os.PathLike | None = None,
) -> str:
    """Lines of Python that pass a result to ggml_ot.

    Parameters
    ----------
    file
        The ``.h5ad`` with the mixtures.
    patient_col, label_col
        Columns of its ``obs``. If ``label_col`` is None, the lines have a gap that the user fills in.
    use_rep, gmm_key
        The values of these keys in the configuration.
    table
        The table of patients, if a patient has cells of several labels or of none; otherwise None. Of several labels
        ggml_ot would take the alphabetically first one, and it refuses cells without a label.
    """
    label = "..." if label_col is None else _literal(label_col)
    hint = "  # put in the column of obs with the patients' groups" if label_col is None else ""
    arguments = [
        f"patient_col={_literal(patient_col)}",
        f"label_col={label}",
        f"use_rep={_literal(use_rep)}",
        f"gmm_key={_literal(gmm_key)}",
    ]
    one_line = f"    adata, {', '.join(arguments)}"
    call = [one_line] if len(one_line) <= _WIDTH - 4 else ["    adata,", *(f"    {item}," for item in arguments)]
    return "\n".join(
        [
            "import anndata, ggml_ot" if table is None else "import anndata, ggml_ot, pandas",
            f"adata = anndata.read_h5ad({_literal(str(file))})",
            f"adata = adata[adata.obs[{_literal(f'{gmm_key}_comp')}] >= 0].copy()  # without patients left out",
            *([] if table is None or label_col is None else _label_lines(table, patient_col, label)),
            f"dataset = ggml_ot.from_anndata({hint}",
            *call,
            ")",
            "ggml_ot.train_gmm(dataset)",
        ]
    )


def _label_lines(table: str | os.PathLike, patient_col: str, label: str) -> list[str]:
    """Lines of Python that give all cells of a patient its label in the table, and leave out unlabelled patients."""
    return [
        f'table = pandas.read_csv({_literal(str(table))}, sep="\\t", dtype=str, keep_default_na=False)',
        'labels = table.set_index("patient")["label"]',
        f"labels = adata.obs[{_literal(patient_col)}].astype(str).map(labels)",
        f"adata.obs[{label}] = labels.astype(str)  # one label for all cells of a patient",
        f'adata = adata[adata.obs[{label}] != ""].copy()  # without patients who have none',
    ]


def _literal(value: str | None) -> str:
    """A text as a Python literal, in double quotes unless it has backslashes or unprintable characters."""
    if value is None:
        return "None"
    return json.dumps(value, ensure_ascii=False) if value.isprintable() and "\\" not in value else repr(value)


def closing_message(notes: Iterable[str], snippet: str, report: str) -> str:
    """Notes, the lines for ggml_ot and the line about the report, as text for the terminal.

    Parameters
    ----------
    notes
        See :func:`closing_notes`.
    snippet
        See :func:`ggml_snippet`.
    report
        The last line, about the report.
    """
    blocks = []
    notes = list(notes)
    if notes:
        lines = [
            textwrap.fill(
                f"- {note[:1].upper()}{note[1:]}.",
                _WIDTH,
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
            for note in notes
        ]
        blocks.append("\n".join(["What to know of this result:", *lines]))
    blocks.append("To train ggml_ot on the mixtures:\n\n" + textwrap.indent(snippet, "    "))
    return "\n\n".join([*blocks, report])
