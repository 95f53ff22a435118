"""Tables give back what was written, whatever the texts; sample sheets are checked."""

import json
import math

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cohortgmm.cohort import tables
from cohortgmm.errors import DataError

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
        ("patient,site\nP1,x\n", "needs tab-separated rows under a heading with the column `patient`"),
        ("patient\tsite\nP1\tx\n\ty\n", "line 3 names no patient"),
        ("site\tpatient\nx\n", "line 2 names no patient"),
        ("patient\nP1\nP2\nP1\n", "line 4 repeats patient 'P1'"),
        (b"patient\nP\xe9\n", "is no tab-separated text: 'utf-8' codec can't decode byte 0xe9"),
        ("patient\tage\tpatient\nP1\t3\tP2\n", "has 2 columns `patient`: remove all but one"),
        (b"\x89HDF\r\n\x1a\n\x00\xff", "is no tab-separated text: 'utf-8' codec can't decode byte 0x89"),
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
