"""What a run says of its result."""

import ast
import re
import sys
from types import ModuleType

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hostile import IDS, TEXTS

from cohortgmm.cohort.tables import PATIENT_COLUMNS, SELECTION_COLUMNS, write_table
from cohortgmm.pipeline.closing import (
    closing_message,
    closing_notes,
    ggml_snippet,
    left_out_line,
    patients_label,
    uneven_labels,
)


@pytest.fixture
def results(tmp_path):
    """Writes the tables of a run: patients as (id, reason), and choices as (id, n_floored, at_edge, converged)."""

    def write(patients, choices):
        rows = [{"patient": p, "status": "dropped" if why else "ok", "reason": why} for p, why in patients]
        write_table(tmp_path / "patients.tsv", PATIENT_COLUMNS, rows)
        rows = [{"patient": p, "k": 2, "n_floored": floored, "at_edge": edge} for p, floored, edge, _ in choices]
        write_table(tmp_path / "selection.tsv", SELECTION_COLUMNS, rows)
        rows = [
            {"patient": p, "k": k, "converged": converged if k == 2 else not converged}
            for p, _, _, converged in choices
            for k in (1, 2)
        ]
        write_table(tmp_path / "scores.tsv", ["patient", "k", "converged"], rows)
        return tmp_path

    return write


GOOD = [(f"P{i}", 0, False, True) for i in range(4)]
ALL = [(f"P{i}", "") for i in range(4)]


def test_a_sound_result_has_no_notes(results):
    assert closing_notes(results(ALL, GOOD), preprocessed=True) == []
    assert left_out_line(results(ALL, GOOD) / "patients.tsv") == ""
    assert patients_label(results(ALL, GOOD) / "patients.tsv") == "patients; none left out"


def test_who_was_left_out_is_named_with_the_reason(results):
    folder = results([*ALL, ("tiny", "7 cells, min_cells is 20")], GOOD)
    line = "1 of 5 patients left out: 'tiny' (7 cells, min_cells is 20)"
    assert closing_notes(folder) == [f"{line}; the whole list is in {folder / 'patients.tsv'}"]
    assert patients_label(folder / "patients.tsv") == f"patients; {line}"


def test_of_many_the_first_three_are_named(results):
    folder = results([(f"P{i}", f"{i} cells") for i in range(1200)], GOOD)
    assert left_out_line(folder / "patients.tsv") == (
        "1,200 of 1,200 patients left out: 'P0' (0 cells); 'P1' (1 cells); 'P2' (2 cells); ..."
    )


def test_choices_that_are_not_to_be_trusted(results):
    choices = [
        ("a", 1, True, False),
        ("b", "", True, True),
        ("c", 2, False, True),
        ("d", 0, True, True),
        ("e", 0, True, True),
    ]
    floor, edge, converged = closing_notes(results(ALL, choices))
    assert floor.startswith("components at the covariance floor in 2 of 5 patients ('a', 'c'): ")
    assert edge.startswith(
        "the largest or the smallest k that was tried is the best for 4 of 5 patients ('a', 'b', 'd', ...): "
    )
    assert converged == "EM did not converge for 1 of 5 patients ('a'): raise gmm.max_iter"


def test_final_mixtures_count_where_their_table_is_of_this_run(results):
    folder = results(ALL, GOOD)
    (folder / "qc").mkdir()
    rows = [{"patient": "P0", "converged": False}, {"patient": "P1", "converged": True}]
    write_table(folder / "qc" / "diagnostics.tsv", ["patient", "converged"], rows)
    assert closing_notes(folder) == ["EM did not converge for 1 of 2 patients ('P0'): raise gmm.max_iter"]


def test_notes_of_the_preprocessing_come_after_those_left_out(results, monkeypatch):
    module = ModuleType("cohortgmm.cohort.filter_notes")
    module.read_summary = lambda path: {"path": path.name}
    module.filter_notes = lambda summary: [f"a note of {summary['path']}"]
    monkeypatch.setitem(sys.modules, "cohortgmm.cohort.filter_notes", module)
    folder = results([*ALL, ("tiny", "7 cells")], [("a", 1, False, True)])
    (folder / "preprocessed").mkdir()
    (folder / "preprocessed" / "summary.json").write_text("{}")
    notes = closing_notes(folder, preprocessed=True)
    assert [note.split()[0] for note in notes] == ["1", "a", "components"]
    assert "a note of summary.json" in notes
    assert len(closing_notes(folder, preprocessed=False)) == 2


@pytest.mark.parametrize(
    "content", ["", "patient\n", "patient\tk\nP1\n", "\x00", "patient\tn_floored\tat_edge\nP\tx\ty\n"]
)
def test_a_damaged_table_is_said_and_ends_no_run(results, content):
    folder = results(ALL, GOOD)
    (folder / "selection.tsv").write_text(content)
    assert all("cannot be read" in note for note in closing_notes(folder))
    (folder / "selection.tsv").unlink()
    assert closing_notes(folder)


@pytest.mark.parametrize("patient", IDS, ids=ascii)
def test_every_id_stands_in_one_line_without_control_characters(results, patient):
    (note,) = closing_notes(results([(patient, "7 cells")], GOOD))
    assert note.isprintable()
    if len(patient) <= 40:
        assert ast.literal_eval(re.search(r"left out: (.*) \(7 cells\)", note)[1]) == patient


def arguments(snippet):
    """What the lines would pass, from their syntax."""
    calls = {}
    for node in ast.walk(ast.parse(snippet)):
        if isinstance(node, ast.Call):
            calls[ast.unparse(node.func)] = node
    subscript = next(node for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Compare)).left
    keywords = {item.arg: ast.literal_eval(item.value) for item in calls["ggml_ot.from_anndata"].keywords}
    return ast.literal_eval(calls["anndata.read_h5ad"].args[0]), ast.literal_eval(subscript.slice), keywords


@pytest.mark.parametrize("text", [text for text in TEXTS if text], ids=ascii)
def test_the_lines_for_ggml_hold_every_name_as_it_is(text):
    snippet = ggml_snippet(f"{text}.h5ad", patient_col=text, label_col=text, use_rep=text, gmm_key=text)
    file, column, keywords = arguments(snippet)
    assert (file, column) == (f"{text}.h5ad", f"{text}_comp")
    assert keywords == dict.fromkeys(("patient_col", "label_col", "use_rep", "gmm_key"), text)
    assert all(line.isprintable() for line in snippet.splitlines())


def test_the_lines_for_ggml():
    snippet = ggml_snippet(
        "r/c.h5ad", patient_col="patient", label_col="condition", use_rep="X_pca", gmm_key="gmm_X_pca"
    )
    assert snippet == (
        "import anndata, ggml_ot\n"
        'adata = anndata.read_h5ad("r/c.h5ad")\n'
        'adata = adata[adata.obs["gmm_X_pca_comp"] >= 0].copy()  # without patients left out\n'
        "dataset = ggml_ot.from_anndata(\n"
        '    adata, patient_col="patient", label_col="condition", use_rep="X_pca", gmm_key="gmm_X_pca"\n'
        ")\n"
        "ggml_ot.train_gmm(dataset)"
    )
    without = ggml_snippet("c.h5ad", patient_col="p", label_col=None, use_rep=None, gmm_key="gmm_X")
    assert "label_col=..., use_rep=None" in without
    assert "put in the column of obs" in without
    compile(without, "snippet", "exec")


def test_the_message_fits_a_terminal():
    notes = ["one note", "a note that is long " * 20 + "and ends"]
    snippet = ggml_snippet("c.h5ad", patient_col="p" * 60, label_col="l" * 60, use_rep="X", gmm_key="g")
    message = closing_message(notes, snippet, "Report.")
    lines = message.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[:2] == ["What to know of this result:", "- One note."]
    assert lines[2].startswith("- A note")
    assert lines[3].startswith("  ")
    assert lines[-2:] == ["", "Report."]
    plain = closing_message([], "x", "Report.").splitlines()
    assert plain == ["To train ggml_ot on the mixtures:", "", "    x", "", "Report."]


def test_patients_whose_cells_have_several_labels_or_none_are_named(results):
    folder = results(
        [*ALL[:2], ("mixed", "several labels: 3 x, 2 y; the most frequent is taken"), ("bare", "no label")], GOOD
    )
    with open(folder / "patients.tsv", encoding="utf-8") as file:
        text = file.read()
    (folder / "patients.tsv").write_text(text.replace("dropped", "ok"), encoding="utf-8")
    assert [row["patient"] for row in uneven_labels(folder / "patients.tsv")] == ["mixed", "bare"]
    assert closing_notes(folder) == [
        "2 of 4 patients have cells of several labels or of none: 'mixed' (several labels: 3 x, 2 y; the most frequent is "
        f"taken); 'bare' (no label); the label of each patient is in {folder / 'patients.tsv'}"
    ]


def test_missing_values_that_became_text_are_said(tmp_path):
    rows = [{"patient": "nan", "label": "a"}, {"patient": "P1", "label": "None"}, {"patient": "P2", "label": "None"}]
    write_table(tmp_path / "patients.tsv", PATIENT_COLUMNS, [row | {"status": "ok", "reason": ""} for row in rows])
    way_out = "if it stands for a missing value, replace it in obs by None or NaN and run again"
    assert closing_notes(tmp_path)[:2] == [
        f"a patient is called 'nan': {way_out}",
        f"'None' is the label of 2 patients: {way_out}",
    ]


@pytest.mark.parametrize("categorical", [False, True])
def test_the_lines_for_ggml_ot_give_every_patient_the_label_of_the_table(tmp_path, categorical):
    rows = [("01", "y"), ("2", ""), ("nan", "x")]
    rows = [{"patient": patient, "label": label, "status": "ok", "reason": "n"} for patient, label in rows]
    write_table(tmp_path / "patients.tsv", PATIENT_COLUMNS, rows)
    obs = pd.DataFrame(
        {
            "patient": np.repeat(["01", "2", "nan", "left out"], 3),
            "group": ["x", "y", "y", None, None, None, "x", None, "x", "z", "z", "z"],
            "g_comp": [0] * 9 + [-1] * 3,
        },
        index=[f"c{i}" for i in range(12)],
        dtype=object,
    )
    adata = ad.AnnData(np.zeros((12, 1)), obs=obs.astype("category") if categorical else obs)
    adata.obs["g_comp"] = obs["g_comp"].astype(int)
    adata.write_h5ad(tmp_path / "c.h5ad")
    lines = ggml_snippet(
        *(tmp_path / "c.h5ad",),
        **{"patient_col": "patient", "label_col": "group", "use_rep": "X", "gmm_key": "g"},
        table=tmp_path / "patients.tsv",
    )
    scope = {}
    exec(lines.replace("anndata, ggml_ot, pandas", "anndata, pandas").split("dataset =")[0], scope)
    found = scope["adata"].obs[["patient", "group"]].astype(str).drop_duplicates()
    assert found.to_numpy().tolist() == [["01", "y"], ["nan", "x"]]
