"""Tables give back what was written, whatever the texts; sample sheets are checked."""

import json
import math

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cohortgmm.cohort import tables
from cohortgmm.errors import DataError

NO_ROWS = "needs tab-separated rows under a heading with the column `patient`"
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ROW = {
    "patient": "P1",
    "k": 3,
    "n_train": 30,
    "n_val": 30,
    "log_likelihood": -123.45678901234567,
    "aic": 0.1 + 0.2,
    "bic": 1e-300,
    "train_nll": 4.0,
    "heldout_nll": math.nan,
    "nll_gap": math.nan,
    "n_iter": 7,
    "converged": True,
    "seconds": 0.25,
    "status": "ok",
    "n_floored": 0,
    "reason": "",
}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
@example([("a\rb", "x"), ("c", "")])
@example([('a"b', "\t"), ("\n", "é\0")])
def test_texts_come_back(tmp_path, pairs):
    rows = [{"patient": one, "label": other} for one, other in pairs if one or other]
    tables.write_table(tmp_path / "t.tsv", ["patient", "label"], rows)
    assert tables.read_rows(tmp_path / "t.tsv") == rows


def test_a_plain_table_is_plain_text(tmp_path):
    tables.write_table(tmp_path / "t.tsv", ["patient", "k", "score"], [{"patient": "P 1", "k": 2, "score": 0.1 + 0.2}])
    assert (tmp_path / "t.tsv").read_bytes() == b"patient\tk\tscore\nP 1\t2\t0.30000000000000004\n"


def test_a_column_too_many_is_an_error_and_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="extra"):
        tables.write_table(tmp_path / "t.tsv", ["patient"], [{"patient": "a", "extra": 1}])
    assert list(tmp_path.iterdir()) == []


def test_scores_come_back_in_their_types(tmp_path):
    rows = [ROW, ROW | {"patient": "NA", "converged": False, "heldout_nll": -1.5, "reason": "30 cells"}]
    tables.write_table(tmp_path / "scores.tsv", tables.SCORE_COLUMNS, rows)
    read = tables.read_scores(tmp_path / "scores.tsv")
    assert [list(map(type, row.values())) for row in read] == [list(tables.SCORE_COLUMNS.values())] * 2
    assert math.isnan(read[0]["heldout_nll"])
    assert read[1] == rows[1] | {"nll_gap": pytest.approx(math.nan, nan_ok=True)}
    assert tables.by_patient(read) == {"P1": [read[0]], "NA": [read[1]]}


def test_the_order_within_a_patient_is_kept():
    rows = [{"patient": p, "k": k} for p, k in (("b", 2), ("a", 1), ("b", 1))]
    groups = tables.by_patient(iter(rows))
    assert list(groups) == ["b", "a"]
    assert [row["k"] for row in groups["b"]] == [2, 1]


def test_a_score_is_json_without_nan(tmp_path):
    tables.write_score(tmp_path / "k3.json", ROW | {"patient": "é"})
    stored = json.loads((tmp_path / "k3.json").read_text(), parse_constant=pytest.fail)
    assert stored["heldout_nll"] is None
    assert "é" in (tmp_path / "k3.json").read_text()
    read = tables.read_score(tmp_path / "k3.json")
    assert math.isnan(read.pop("heldout_nll"))
    assert math.isnan(read.pop("nll_gap"))
    assert read == {key: value for key, value in (ROW | {"patient": "é"}).items() if key in read}
    assert len(read) == 14


def sheet(tmp_path, content):
    path = tmp_path / "sheet.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "patients"),
    [
        ("patient\nP1\nP2\n", ["P1", "P2"]),
        ("site\tpatient\nx\tb c\ny\ta/b\n", ["b c", "a/b"]),
        ("patient\r\nP1\r\nP2\r\n", ["P1", "P2"]),
        ("patient\nP1\n\nP2", ["P1", "P2"]),
        ("\ufeffpatient\tsite\nP1\tx\n", ["P1"]),  # as a spreadsheet writes it
        ("patient\n001\nNA\nñ\n", ["001", "NA", "ñ"]),
    ],
)
def test_sheets(tmp_path, content, patients):
    assert tables.read_sheet(sheet(tmp_path, content)) == patients


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "needs tab-separated rows under a heading with the column `patient`"),
        ("patient\n", "needs tab-separated rows under a heading with the column `patient`"),
        ("donor\nP1\n", "needs tab-separated rows under a heading with the column `patient`"),
        (
            "patient,site\nP1,x\n",
            f"{NO_ROWS}; it has 1 row and columns 'patient,site'",
        ),
        (
            "Patient\tsite\nP1\tx\n",
            f"{NO_ROWS}; it has 1 row and columns 'Patient', 'site'",
        ),
        ("patient\tsite\nP1\tx\n\ty\n", "line 3 names no patient"),
        ("site\tpatient\nx\n", "line 2 names no patient"),
        ("patient\nP1\nP2\nP1\n", "line 4 repeats patient 'P1'"),
        (
            b"patient\nP\xe9\n",
            "is no tab-separated text in UTF-8: save it as such",
        ),
        ("patient\tage\tpatient\nP1\t3\tP2\n", "has 2 columns `patient`: remove all but one"),
        (
            b"\x89HDF\r\n\x1a\n\x00\xff",
            "is no tab-separated text in UTF-8: save it as such",
        ),
    ],
)
def test_sheets_that_cannot_be_used(tmp_path, content, problem):
    path = sheet(tmp_path, content)
    with pytest.raises(DataError) as caught:
        tables.read_sheet(path)
    assert str(caught.value).startswith(f"patients: {path} {problem}")
    assert "\n" not in str(caught.value)


def test_a_sheet_that_is_not_there(tmp_path):
    with pytest.raises(DataError) as caught:
        tables.read_sheet(tmp_path / "none.tsv")
    assert str(caught.value) == f"patients: no such file: {tmp_path / 'none.tsv'}"


# Damaged tables


def scores_table(tmp_path):
    path = tmp_path / "scores.tsv"
    tables.write_table(path, tables.SCORE_COLUMNS, [ROW, ROW | {"patient": "P2"}])
    return path


def change_of(old, new):
    return lambda content: content.replace(old.encode(), new.encode(), 1)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: b"", "it is empty"),
        (lambda content: b"\n\n", "it is empty"),
        (lambda content: content[: len(content) // 2], "another number of fields than the heading"),
        (lambda content: content[:-1], "its last line is incomplete"),
        (lambda content: content[:-8], "another number of fields than the heading"),
        (lambda content: content[:20], "missing"),
        (lambda content: content.split(b"\n")[0] + b"\n", "it has no rows"),
        (lambda content: b"\x89HDF\r\n\x1a\n\xff\xfe", "not a tab-separated text"),
        (lambda content: content.replace(b"P1", b"P\xe9"), "not a tab-separated text"),
        (change_of("patient\tk\t", "patient\tn\t"), "column k missing"),
        (change_of("\taic\tbic\t", "\tAIC\tBIC\t"), "columns aic, bic missing"),
        (change_of("P1\t3\t", "P1\tthree\t"), "k in line 2 is 'three', not a whole number"),
        (change_of("P1\t3\t", "P1\t3.5\t"), "k in line 2 is '3.5', not a whole number"),
        (change_of("-123.456", "-123,456"), "log_likelihood in line 2 is '-123,456"),
        (change_of("True", "yes"), "converged in line 2 is 'yes', not True or False"),
        (change_of("P1\t", "P1\t\t"), "line 2 has another number of fields than the heading"),
    ],
)
def test_a_damaged_table_is_refused_with_one_line(tmp_path, damage, reason):
    path = scores_table(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError) as caught:
        tables.read_scores(path)
    message = str(caught.value)
    assert message.startswith(f"{path} holds no scores: ")
    assert reason in message
    assert message.endswith("; remove it and run again")
    assert "\n" not in message


def test_a_cut_at_any_place_is_seen_but_between_lines(tmp_path):
    """A table that ends with a line of its own might be whole."""
    path = scores_table(tmp_path)
    content = path.read_bytes()
    ends = {i + 1 for i, byte in enumerate(content) if byte == ord("\n")}
    for size in set(range(len(content))) - ends:
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match="holds no scores"):
            tables.read_scores(path)


def test_patients_without_scores_are_named(tmp_path):
    path = scores_table(tmp_path)
    assert list(tables.scores_of(path, ["P2", "P1"])) == ["P1", "P2"]
    with pytest.raises(DataError, match=r"holds no scores of 2 patients, the first is 'P0'; remove it and run again$"):
        tables.scores_of(path, ["P0", "P1", "P3"])


def patients_table(tmp_path, **changes):
    row = {"patient": "P1", "file": "P1", "label": "", "n_cells": 9, "n_train": 4, "status": "ok", "reason": ""}
    tables.write_table(tmp_path / "patients.tsv", tables.PATIENT_COLUMNS, [row | changes])
    return tmp_path / "patients.tsv"


def test_the_table_of_patients(tmp_path):
    (row,) = tables.read_patients(patients_table(tmp_path), {"n_cells": int})
    assert (row["patient"], row["n_cells"], row["n_train"]) == ("P1", 9, "4")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"status": ""}, "status or file of 'P1' missing"),
        ({"status": "maybe"}, "status or file of 'P1' missing"),
        ({"file": ""}, "status or file of 'P1' missing"),
        ({"n_cells": "many"}, "n_cells in line 2 is 'many', not a whole number"),
    ],
)
def test_a_damaged_table_of_patients(tmp_path, changes, reason):
    with pytest.raises(DataError) as caught:
        tables.read_patients(patients_table(tmp_path, **changes), {"n_cells": int})
    assert str(caught.value) == f"{tmp_path / 'patients.tsv'} holds no patients: {reason}; remove it and run again"


def test_no_patients_are_a_damaged_table(tmp_path):
    tables.write_table(tmp_path / "patients.tsv", tables.PATIENT_COLUMNS, [])
    with pytest.raises(DataError, match="holds no patients: it has no rows"):
        tables.read_patients(tmp_path / "patients.tsv")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a readable JSON file"),
        (b'{"patient": "P1", ', "not a readable JSON file"),
        (b"\xff\xfe\x00", "not a readable JSON file"),
        (b"[" * 100_000, "not a readable JSON file"),
        (b"[1, 2]", "not the scores of one fit"),
        (b"null", "not the scores of one fit"),
        (b'{"patient": "P1"}', "k, n_train, n_val, log_likelihood, "),
    ],
)
def test_damaged_scores_of_a_fit(tmp_path, content, reason):
    path = tmp_path / "k3.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        tables.read_score(path)
    assert str(caught.value).startswith(f"{path} holds no scores: {reason}")
    assert str(caught.value).endswith("; remove it and run again")


@pytest.mark.parametrize(
    ("name", "value"),
    [("k", 2.5), ("k", True), ("k", None), ("k", "3"), ("aic", "low"), ("converged", 1), ("patient", 7), ("aic", True)],
)
def test_scores_of_another_type_are_refused(tmp_path, name, value):
    tables.write_score(tmp_path / "k3.json", ROW)
    row = json.loads((tmp_path / "k3.json").read_text()) | {name: value}
    (tmp_path / "k3.json").write_text(json.dumps(row))
    with pytest.raises(DataError) as caught:
        tables.read_score(tmp_path / "k3.json")
    assert f"holds no scores: {name} is {value!r}; remove it and run again" in str(caught.value)


def test_what_a_fit_was_made_with_stays_beside_its_scores(tmp_path):
    tables.write_score(tmp_path / "k3.json", ROW, "0123")
    row, mark = tables.read_marked_score(tmp_path / "k3.json")
    assert mark == "0123"
    assert list(row) == list(tables.SCORE_COLUMNS)
    assert list(tables.read_score(tmp_path / "k3.json")) == list(tables.SCORE_COLUMNS)


def test_a_sheet_with_two_columns_of_patients_is_refused(tmp_path):
    with pytest.raises(DataError, match="has 2 columns `patient`: remove all but one"):
        tables.read_sheet(sheet(tmp_path, "patient\tpatient\nP1\tP2\n"))


@pytest.mark.parametrize(
    ("read", "content"), [(tables.read_patients, "patients"), (tables.read_marked_score, "scores")]
)
def test_a_folder_in_the_place_of_a_table_is_told(tmp_path, read, content):
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert str(caught.value) == f"{tmp_path} holds no {content}: Is a directory; remove it and run again"
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")
