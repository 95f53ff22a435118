"""The units of fitting."""

import pytest

from cohortgmm.cohort.tables import PATIENT_COLUMNS, PATIENT_SCORE_COLUMNS, write_table
from cohortgmm.errors import CohortgmmError
from cohortgmm.pipeline import units
from cohortgmm.storage.names import COHORT


def test_units_are_the_kept_patients_or_the_cohort(tmp_path):
    rows = [
        {"patient": "a/b", "file": "a=2Fb", "status": "ok"},
        {"patient": "c", "file": "c", "status": "dropped"},
        {"patient": "NA", "file": "NA", "status": "ok"},
    ]
    write_table(tmp_path / "patients.tsv", PATIENT_COLUMNS, rows)
    with pytest.raises(
        CohortgmmError, match=r"^2 array files are gone, the first is .*/a=2Fb\.npz: run once with -R split$"
    ):
        units.unit_names("sample_specific", tmp_path / "patients.tsv")
    (tmp_path / "patients").mkdir()
    for name in ("a=2Fb", "NA", COHORT):
        (tmp_path / "patients" / f"{name}.npz").touch()
    assert list(units.unit_names("sample_specific", tmp_path / "patients.tsv")) == ["a=2Fb", "NA"]
    assert list(units.unit_names("global", tmp_path / "patients.tsv")) == [COHORT]
    assert list(units.sheet_unit_names("sample_specific", ["a/b", "NA"])) == ["a=2Fb", "NA"]
    assert list(units.sheet_unit_names("sample_specific", ["a/b", "c"], tmp_path / "patients.tsv")) == ["a=2Fb"]
    assert list(units.sheet_unit_names("global", ["a/b", "NA"])) == [COHORT]


@pytest.mark.parametrize("name", ["scores.tsv", "models/P1.npz", "fits/P1/k1.json", "cohort_gmm.h5ad", "positions.npz"])
def test_results_without_the_table_of_patients(tmp_path, name):
    results = tmp_path / "results"
    assert not units.has_lost_patients(results)
    (results / "logs").mkdir(parents=True)
    (results / "preprocessed").mkdir()
    assert not units.has_lost_patients(results)
    (results / name).parent.mkdir(parents=True, exist_ok=True)
    (results / name).touch()
    assert units.has_lost_patients(results)
    (results / "patients.tsv").touch()
    assert units.has_lost_patients(results) == (name != "positions.npz")
    (results / "positions.npz").touch()
    assert not units.has_lost_patients(results)


def test_the_chosen_k_follows_from_the_table_and_the_criterion(tmp_path):
    table = tmp_path / "P1.tsv"
    assert units.chosen_k(table, "aic") == "not chosen yet"
    rows = [
        dict.fromkeys(PATIENT_SCORE_COLUMNS, 0) | {"k": k, "aic": aic, "bic": bic, "status": "ok", "converged": True}
        for k, aic, bic in ((1, 3.0, 1.0), (2, 2.0, 1.5))
    ]
    write_table(table, PATIENT_SCORE_COLUMNS, rows)
    assert [units.chosen_k(table, metric) for metric in ("aic", "bic")] == [2, 1]
    write_table(table, PATIENT_SCORE_COLUMNS, [])
    assert units.chosen_k(table, "aic") == "not chosen yet"
