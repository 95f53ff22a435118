"""Patients of one or several columns, ids that are told apart, labels that vary within a patient."""

import logging

import h5py
import numpy as np
import pandas as pd
import pytest
from projects import make_cohort

from cohortgmm.cohort.labels import patient_labels
from cohortgmm.cohort.patients import check_input, patient_ids, read_patients
from cohortgmm.cohort.split import split_file
from cohortgmm.cohort.tables import read_rows
from cohortgmm.errors import ConfigError, DataError


def refusal(function, *arguments, error=DataError, **options):
    with pytest.raises(error) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def table(**columns):
    series = {
        name: pd.Series(values, dtype=None if hasattr(values, "dtype") else object) for name, values in columns.items()
    }
    result = pd.DataFrame(series)
    return result.set_axis([f"c{i}" for i in range(len(result))])


# Ids


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1, "1"], "two different values have the same text, '1' (int and str); convert the column to text"),
        ([True, "True"], "two different values have the same text, 'True' (bool and str); convert the column to text"),
        ([True, 1], "True and 1 are the same number, but have different texts; convert the column to text"),
        ([1, 1.0], "1 and 1.0 are the same number, but have different texts; convert the column to text"),
        (
            pd.Categorical([1, "1"]),
            "two different values have the same text, '1' (int and str); convert the column to text",
        ),
        (["a", "a\0"], "'a\\x00' has a NUL character, which no .h5ad can hold: remove it"),
        (pd.array(["a", "a\0"], dtype="string"), "'a\\x00' has a NUL character, which no .h5ad can hold: remove it"),
        (["a", "a\udc80"], "'a\\udc80' is not valid Unicode (a lone surrogate): rename the patient"),
        (["a", b"\xff"], "b'\\xff' is no text in UTF-8"),
        (["a", ""], "1 cells have no patient, the first is 'c1'"),
    ],
)
def test_ids_that_cannot_be_told_apart_or_stored(values, said):
    assert refusal(patient_ids, table(patient=values), "patient") == f"patient_col 'patient': {said}"


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (["\u00e9", "e\u0301"], ["\u00e9", "e\u0301"]),  # composed and decomposed: two patients
        (["a", "a "], ["a", "a "]),
        ([b"a", "b"], ["a", "b"]),
        ([1, 2.5, "x"], ["1", "2.5", "x"]),
        (pd.to_datetime(["2020-01-01", "2021-01-01"]), ["2020-01-01 00:00:00", "2021-01-01 00:00:00"]),
    ],
)
def test_ids_that_are_different(values, texts):
    assert patient_ids(table(patient=values), "patient").tolist() == texts


# Several columns


def test_several_columns_are_joined():
    obs = table(patient=["a", "a", "b", "b"], day=np.array([0, 7, 0, 0]))
    assert patient_ids(obs, ["patient", "day"]).tolist() == ["a_0", "a_7", "b_0", "b_0"]
    assert patient_ids(obs, ("day", "patient")).tolist() == ["0_a", "7_a", "0_b", "0_b"]
    assert patient_ids(obs, ["patient"]).tolist() == ["a", "a", "b", "b"]
    obs["patient"] = pd.Categorical(obs["patient"], categories=["z", "b", "a"])
    assert patient_ids(obs, ["patient", "day"]).tolist() == ["a_0", "a_7", "b_0", "b_0"]


def test_combinations_that_read_the_same():
    obs = table(patient=["a", "a_b"], visit=["b_c", "c"])
    assert refusal(patient_ids, obs, ["patient", "visit"]) == (
        "patient_col ['patient', 'visit']: ['a', 'b_c'] and ['a_b', 'c'] are both 'a_b_c' if joined by _: "
        "rename one of these values"
    )


def test_several_columns_that_cannot_be_used():
    obs = table(patient=["a", "b"], visit=["x", None])
    assert refusal(patient_ids, obs, ["patient", "visit"]) == (
        "patient_col 'visit': 1 cells have no value, the first is 'c1'"
    )
    assert "patient_col: obs column 'day' is not in the data" in refusal(patient_ids, obs, ["patient", "day"])
    for columns in ([], ["patient", "patient"]):
        assert refusal(patient_ids, obs, columns, error=ConfigError) == (
            f"patient_col must be a column of obs, or a list of several different ones, got {columns!r}"
        )


# Labels


def test_cells_without_a_label_do_not_count():
    ids = np.array(list("aaabbbccdd"), dtype=object)
    labels = patient_labels(table(label=[None, None, "x", "", " ", "y", np.nan, "", 1, "1"]), ids, "label")
    assert labels.values == {"a": "x", "b": "y", "c": "", "d": "1"}
    assert labels.mixed == []


@pytest.fixture
def cohort_file(tmp_path):
    def write(**columns):
        cohort = make_cohort()
        for name, values in columns.items():
            cohort.obs[name] = values
        cohort.write_h5ad(tmp_path / "c.h5ad")
        return tmp_path / "c.h5ad"

    return write


def read(path, patient_col="patient", label_col="condition", **options):
    with h5py.File(path) as file:
        return read_patients(file, patient_col, label_col, **options)


TIMES = np.tile(np.repeat(["pre", "post"], 30), 3)
BY_TIME = np.where(TIMES == "pre", "sick", "well")


def test_the_column_that_divides_patients_of_several_labels_is_named(cohort_file):
    path = cohort_file(
        condition=BY_TIME,
        cluster=TIMES,
        time=TIMES,
        third=np.tile(np.repeat(["a", "b", "c", "d"], 15), 3),  # divides them too, into more units
        half=np.tile([0, 1], 90),  # divides nothing
        count=np.arange(180),
    )
    assert refusal(read, path) == (
        "label_col 'condition': the cells of 3 patients have several labels: 'P1' (30 sick, 30 well); "
        "'P2' (30 sick, 30 well); 'P3' (30 sick, 30 well). The obs column 'time' divides them into units of one label: "
        "patient_col: [patient, time]; on_mixed_label: majority takes the most frequent label"
    )
    found = read(path, ["patient", "time"])
    assert sorted(set(found.patients)) == [f"P{i}_{time}" for i in (1, 2, 3) for time in ("post", "pre")]
    assert found.labels.values["P1_pre"] == "sick"
    assert found.labels.values["P1_post"] == "well"


def test_a_column_with_gaps_divides_nothing(cohort_file):
    path = cohort_file(condition=BY_TIME, time=pd.Categorical(np.where(np.arange(180) == 3, None, TIMES)))
    said = refusal(read, path)
    assert said.endswith(
        "Only the column of the labels itself divides them into units of one label: "
        "patient_col: [patient, condition]; on_mixed_label: majority takes the most frequent label"
    )
    found = read(path, ["patient", "condition"])
    assert found.labels.values == {f"P{i}_{label}": label for i in (1, 2, 3) for label in ("sick", "well")}


def test_only_patients_of_the_sheet_are_judged(cohort_file):
    path = cohort_file(condition=np.where(np.arange(180) < 30, "sick", "well"))
    assert "the cells of 1 patients have several labels: 'P1' (30 sick, 30 well)" in refusal(read, path)
    assert read(path, wanted=["P2"]).labels.values == {"P2": "well"}


def test_of_a_tie_the_first_by_name_is_taken_and_said(cohort_file, caplog, tmp_path):
    label = np.where(np.arange(180) < 40, "sick", "well")
    label[:30] = "well"  # P1: 30 well, 30 well of 60, 10 sick; then a tie in P2
    label[60:90] = "sick"
    path = cohort_file(condition=label)
    with caplog.at_level(logging.WARNING):
        split_file(
            *(path, tmp_path / "patients", tmp_path / "patients.tsv", tmp_path / "positions.npz"),
            **{"patient_col": "patient", "label_col": "condition", "on_mixed_label": "majority", "use_rep": "X_pca"},
            **{"component_sharing": "sample_specific", "train_size": 0.5, "seed": 0},
        )
    rows = {
        row["patient"]: (row["label"], row["reason"], row["status"]) for row in read_rows(tmp_path / "patients.tsv")
    }
    assert rows == {
        "P1": ("well", "several labels: 50 well, 10 sick; the most frequent is taken", "ok"),
        "P2": ("sick", "several labels: 30 sick, 30 well; tie, the first by name is taken", "ok"),
        "P3": ("well", "", "ok"),
    }
    assert "patient 'P2' has several labels: 30 sick, 30 well; tie, the first by name is taken" in caplog.text


# Before anything else runs


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        ({}, {"patient_col": "patients"}, "patient_col: obs column 'patients' is not in the data"),
        ({}, {"label_col": "conditions"}, "label_col: obs column 'conditions' is not in the data"),
        ({}, {"columns": {"celltype_col": "type"}}, "celltype_col: obs column 'type' is not in the data"),
        ({}, {"columns": {"preprocess.harmony_col": "b"}}, "preprocess.harmony_col: obs column 'b' is not in the data"),
        ({"condition": BY_TIME}, {}, "label_col 'condition': the cells of 3 patients have several labels"),
        ({"patient": pd.Categorical([None] + ["a"] * 179)}, {}, "patient_col 'patient': 1 cells have no patient"),
        ({}, {"sheet": "P1\nP9\n"}, "sample sheet: patient 'P9' is not in the data"),
    ],
)
def test_the_input_is_checked_before_it_is_preprocessed(cohort_file, tmp_path, columns, options, said):
    path, options = cohort_file(**columns), dict(options)
    if "sheet" in options:
        (tmp_path / "sheet.tsv").write_text("patient\n" + options["sheet"])
        options["sheet"] = str(tmp_path / "sheet.tsv")
    given = {"columns": {"celltype_col": "cell_type"}, "patient_col": "patient", "label_col": "condition"} | options
    assert refusal(check_input, path, **given).startswith(said)


def test_an_input_that_can_be_used_passes_the_check(cohort_file):
    path = cohort_file(condition=BY_TIME, time=TIMES)
    check_input(path, {"celltype_col": None}, patient_col=["patient", "time"], label_col="condition")
    check_input(path, {}, patient_col="patient", label_col="condition", on_mixed_label="majority")
    check_input(path, {"celltype_col": "time"})


def test_repeated_cell_names_are_found_by_the_check(tmp_path):
    cohort = make_cohort()
    cohort.obs_names = ["c0"] * 180
    cohort.write_h5ad(tmp_path / "c.h5ad")
    assert refusal(check_input, tmp_path / "c.h5ad", {}, patient_col="patient").startswith(
        "179 cell names occur more than once, the first is 'c0'"
    )


def test_cells_without_a_label_are_counted_and_said():
    ids = np.repeat(["a", "b", "c", "d"], 4).astype(object)
    obs = table(group=[None] * 4 + ["x"] * 3 + [None] + ["x"] * 4 + ["x", "y", "y ", None])
    labels = patient_labels(obs, ids, "group")
    assert labels.values == {"a": "", "b": "x", "c": "x", "d": "x"}
    assert labels.unlabelled == {"a": 4, "b": 1, "d": 1}
    assert labels.notes() == {
        "a": "no label",
        "b": "1 cells have no label",
        "d": "several labels: 1 x, 1 y, 1 'y '; tie, the first by name is taken; 1 cells have no label",
    }
    assert labels.of(["b", "c"]).notes() == {"b": "1 cells have no label"}
