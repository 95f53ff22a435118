"""Cells go to their patients; a patient's part does not depend on the others; what cannot be split is named."""

import logging
import os

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from corrected import make_corrected
from projects import make_cohort
from scipy import sparse

import cohortgmm
from cohortgmm.cohort.cells import PatientCells, read_positions
from cohortgmm.cohort.reading import Embedding
from cohortgmm.cohort.split import check_finite, split_file, split_patients
from cohortgmm.cohort.tables import read_rows
from cohortgmm.errors import DataError
from cohortgmm.storage.names import ALL_PATIENTS, COHORT


def ids_of(**counts):
    return np.repeat(np.array(list(counts), dtype=object), list(counts.values()))


def split(ids, **options):
    return split_patients(ids, **({"train_size": 0.5, "seed": 0} | options))


def refusal(ids, **options):
    with pytest.raises(DataError) as caught:
        split(ids, **options)
    return str(caught.value)


# split_patients


def test_every_cell_goes_to_its_patient():
    ids = np.array(list("bababbcac"), dtype=object)
    result = split(ids, train_size=1, labels={"a": "sick"})
    assert result.patients == ["a", "b", "c"]
    assert {patient: rows.tolist() for patient, rows in result.positions.items()} == {
        "a": [1, 3, 7],
        "b": [0, 2, 4, 5],
        "c": [6, 8],
    }
    assert result.rows[0] == {
        "patient": "a",
        "file": "a",
        "label": "sick",
        "n_cells": 3,
        "n_train": 3,
        "status": "ok",
        "reason": "",
    }
    x = np.arange(18).reshape(9, 2)
    cells = result.cells_of("b", Embedding(x, ("one", "two")))
    np.testing.assert_array_equal(cells.x, x[[0, 2, 4, 5]])
    assert cells.feature_names == ("one", "two")
    assert cells.noise is None


def test_a_patients_mask_does_not_depend_on_the_others():
    alone = split(ids_of(P2=50))
    rng = np.random.default_rng(0)
    mixed = rng.permutation(ids_of(P1=30, P2=50, P10=9))
    together = split(mixed)
    np.testing.assert_array_equal(together.train["P2"], alone.train["P2"])
    np.testing.assert_array_equal(mixed[together.positions["P2"]], "P2")
    assert not np.array_equal(split(ids_of(P2=50), seed=1).train["P2"], alone.train["P2"])
    assert not np.array_equal(split(ids_of(P3=50)).train["P3"], alone.train["P2"])


def test_a_patients_cells_follow_from_their_names_alone():
    names = np.array([f"c{i}" for i in range(80)], dtype=object)
    ids = np.where(np.arange(80) < 50, "P2", "P1").astype(object)
    before = split(ids, names=names)
    own = names[before.positions["P2"]].tolist()
    assert own == sorted(names[:50])
    order = np.random.default_rng(0).permutation(80)[:70]
    kept = np.sort(np.concatenate([order[order < 50], np.setdiff1d(np.arange(50), order)]))
    order = np.random.default_rng(1).permutation(np.concatenate([kept, order[order >= 50]]))  # P1 lost some cells
    after = split(ids[order], names=names[order])
    assert names[order][after.positions["P2"]].tolist() == own
    np.testing.assert_array_equal(after.train["P2"], before.train["P2"])
    assert len(after.train["P1"]) < 30


@pytest.mark.parametrize("rows", ["another order", "others inserted", "others removed"])
def test_other_cells_and_another_order_leave_a_patients_file_alone(files, rows):
    cohort = make_cohort(("P1", "P2", "P3"))
    folder = files(cohort[cohort.obs["patient"] != "P2"].copy() if rows == "others inserted" else cohort)
    os.utime(folder / "P3.npz", ns=(10**18, 10**18))
    order = np.random.default_rng(0).permutation(cohort.n_obs)
    order = order[cohort.obs["patient"].to_numpy()[order] != "P1"] if rows == "others removed" else order
    files(cohort[order].copy())
    assert (folder / "P3.npz").stat().st_mtime_ns == 10**18
    positions = read_positions(folder.parent / "positions.npz")
    assert list(positions) == (["P2", "P3"] if rows == "others removed" else ["P1", "P2", "P3"])
    x = cohort.obsm["X_pca"][order]
    np.testing.assert_array_equal(PatientCells.load(folder / "P3.npz").x, x[positions["P3"]])


def test_ids_that_differ_in_their_last_character_are_different_patients():
    result = split(np.array(["a"] * 4 + ["a\0"] * 6, dtype=object))
    assert {patient: len(rows) for patient, rows in result.positions.items()} == {"a": 4, "a\0": 6}


@pytest.mark.parametrize(("train_size", "n_train"), [(0.5, 25), (0.8, 40), (0.25, 12), (0.999, 49), (1, 50)])
def test_the_share_of_fitted_cells(train_size, n_train):
    result = split(ids_of(P1=50), train_size=train_size)
    assert result.train["P1"].sum() == result.rows[0]["n_train"] == n_train


def test_the_cells_of_all_patients_together():
    x = np.arange(14).reshape(7, 2)
    source = Embedding(x, ("one", "two"))
    result = split(np.array(list("bababab"), dtype=object))
    (cells,) = result.units(source, "global")
    assert cells.patient == ALL_PATIENTS
    assert cells.patients == ("a", "b")
    assert cells.owner.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert result.unit_positions("global")[ALL_PATIENTS].tolist() == [1, 3, 5, 0, 2, 4, 6]
    np.testing.assert_array_equal(cells.x, x[[1, 3, 5, 0, 2, 4, 6]])
    np.testing.assert_array_equal(cells.train, np.concatenate([result.train["a"], result.train["b"]]))
    assert [part.patient for part in result.units(source, "sample_specific")] == ["a", "b"]


def test_small_patients_stop_the_run():
    assert refusal(ids_of(P1=30, P2=19), min_cells=20) == (
        "1 of 2 patients have too few cells: 'P2' (19 cells, min_cells is 20). "
        "Use a smaller k or a smaller min_cells, or set on_small_patient to drop to leave them out"
    )
    assert refusal(ids_of(P1=30, P2=9), smallest_k=3) == (
        "1 of 2 patients have too few cells: 'P2' (4 training cells, the smallest k (3) needs 6). "
        "Use a smaller k or a smaller min_cells, or set on_small_patient to drop to leave them out"
    )
    many = refusal(ids_of(**{f"P{i}": 3 for i in range(7)}), min_cells=20)
    assert many.startswith("7 of 7 patients have too few cells: 'P0' (3 cells, min_cells is 20); 'P1'")
    assert many.count("cells, min_cells") == 5
    assert "; ...." in many
    split(ids_of(P1=20), min_cells=20)


def test_small_patients_are_left_out_where_asked():
    result = split(ids_of(P1=30, P2=19, P3=40), min_cells=20, on_small_patient="drop")
    assert result.patients == ["P1", "P3"]
    assert [row["status"] for row in result.rows] == ["ok", "dropped", "ok"]
    assert result.rows[1]["reason"] == "19 cells, min_cells is 20"
    assert refusal(ids_of(P1=5, P2=6), min_cells=20, on_small_patient="drop") == (
        "none of 2 patients has enough cells (5 cells, min_cells is 20)"
    )


def test_patients_of_whom_the_preprocessing_left_no_cell():
    ids = ids_of(P1=30, P3=40)
    assert refusal(ids, without_cells=["P0", "P2"]).startswith(
        "2 of 4 patients have too few cells: 'P0' (no cell passed the filters of preprocess); 'P2' (no cell passed"
    )
    result = split(ids, on_small_patient="drop", without_cells=["P2", "P3"])  # P3 is there after all
    assert result.patients == ["P1", "P3"]
    assert [(row["patient"], row["n_cells"], row["n_train"], row["status"]) for row in result.rows] == [
        ("P1", 30, 15, "ok"),
        ("P2", 0, 0, "dropped"),
        ("P3", 40, 20, "ok"),
    ]
    named = np.array([f"c{i}" for i in range(70)], dtype=object)
    for names in (None, named):
        options = {"names": names, "on_small_patient": "drop", "without_cells": ["P2"]}
        assert split(ids, wanted=["P2", "P1"], **options).patients == ["P1"]
    with pytest.raises(DataError, match="sample sheet: patient 'P2' is not in the data"):
        split(ids, wanted=["P2", "P1"])


def test_cells_without_features_are_no_cells_where_patients_are_judged():
    ids = ids_of(P1=30, P2=30)
    empty = (ids == "P2") & (np.arange(60) % 3 > 0)  # 20 of 30
    assert refusal(ids, min_cells=20, empty=empty).startswith(
        "1 of 2 patients have too few cells: 'P2' (10 cells with features, min_cells is 20). "
    )
    result = split(ids, min_cells=10, empty=empty)
    assert result.patients == ["P1", "P2"]
    assert [row["n_cells"] for row in result.rows] == [30, 30]
    told = int((result.train["P2"] & ~empty[30:]).sum())
    assert refusal(ids, smallest_k=told, empty=empty).startswith(
        f"1 of 2 patients have too few cells: 'P2' ({told} training cells with features, the smallest k ({told}) needs "
    )


@pytest.mark.parametrize("how", ["gaps", "noise"])
def test_empty_cells_of_a_file_count_as_none(files, how):
    cohort = make_corrected()
    if how == "gaps":
        cohort.obsm["X_pca"][90:160] = np.nan
    else:
        cohort.obsm["X_pca_var"][90:160] = np.inf
    with pytest.raises(DataError, match=r"'P2' \(10 cells with features, min_cells is 11\)"):
        files(cohort, missing=True, noise={"obsm": "X_pca_var", "layer": None}, min_cells=11)
    with pytest.raises(DataError, match=r"'P2' \(10 cells with features, min_cells is 11\)"):
        cohortgmm.fit_gmm(
            cohort, patient_col="patient", use_rep="X_pca", missing=True, noise="X_pca_var", min_cells=11, verbose=False
        )


def test_only_wanted_patients():
    result = split(ids_of(P1=30, P2=3, P3=40), wanted=["P3", "P1"], min_cells=20)
    assert result.patients == ["P1", "P3"]
    assert len(result.rows) == 2
    assert refusal(ids_of(P10=30, P20=30), wanted=["P10", "P1O"]) == (
        "sample sheet: patient 'P1O' is not in the data; did you mean 'P10'? known: P10, P20"
    )


def test_no_cells_and_ids_that_cannot_be_file_names():
    assert refusal(np.array([], dtype=object)) == "the data has no cells"
    assert refusal(np.array(["", ""], dtype=object)) == "an empty patient id: give every cell a patient"
    assert "needs 201 characters as a file name" in refusal(np.array(["x" * 201] * 4, dtype=object))


# check_finite

OWNERS = np.array(["b", "b", "a", "c"], dtype=object)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("make", [np.asarray, np.asfortranarray, sparse.csr_matrix], ids=["dense", "fortran", "sparse"])
def test_values_that_are_not_finite_are_counted(dtype, make):
    x = np.arange(12, dtype=dtype).reshape(4, 3) - 1
    check_finite(make(x), OWNERS, "X")
    x[0, 0], x[0, 2], x[2, 1], x[3, 0] = np.nan, np.inf, -np.inf, np.nan
    with pytest.raises(DataError) as caught:
        check_finite(make(x), OWNERS, "obsm['X_pca']")
    assert str(caught.value) == (
        "obsm['X_pca'] has 4 NaN or infinite values in 3 cells, the first in patient 'a': "
        "remove these cells or recompute the embedding, or set missing if NaN are missing features"
    )


@pytest.mark.parametrize("make", [np.asarray, np.asfortranarray, sparse.csr_matrix], ids=["dense", "fortran", "sparse"])
def test_nan_may_be_missing_features_but_nothing_may_be_infinite(make):
    x = np.arange(12.0).reshape(4, 3) - 1
    x[0, 0] = x[2, 1] = np.nan
    check_finite(make(x), OWNERS, "X", missing=True)
    with pytest.raises(DataError, match=r"^X has 2 NaN or infinite values in 2 cells, the first in patient 'a': "):
        check_finite(make(x), OWNERS, "X")
    x[1, 2], x[3, 0], x[3, 1] = np.inf, -np.inf, np.nan
    with pytest.raises(DataError) as caught:
        check_finite(make(x), OWNERS, "X", missing=True)
    assert str(caught.value) == (
        "X has 2 infinite values in 2 cells, the first in patient 'b': remove these cells or recompute the embedding"
    )
    check_finite(make(x), OWNERS, "X", used=np.array([0, 2]), missing=True)  # the others are left out


def test_large_finite_values_and_integers_pass():
    check_finite(np.full((4, 3), 3e38, dtype=np.float32), OWNERS, "X")  # the sum of their squares is infinite
    check_finite(np.full((4, 3), 1e308), OWNERS, "X")
    check_finite(np.full((4, 3), 200, dtype=np.uint8), OWNERS, "X")
    check_finite(np.ones((4, 3), dtype=bool), OWNERS, "X")


# split_file


@pytest.fixture
def files(tmp_path):
    """Factory: split a cohort as the pipeline does; gives back the folder of the arrays."""

    def run(cohort, **options):
        cohort.write_h5ad(tmp_path / "cohort.h5ad")
        options = {
            "patient_col": "patient",
            "label_col": "condition",
            "use_rep": "X_pca",
            "component_sharing": "sample_specific",
            "train_size": 0.5,
            "seed": 0,
        } | options
        outputs = [tmp_path / name for name in ("patients", "patients.tsv", "positions.npz")]
        split_file(tmp_path / "cohort.h5ad", *outputs, **options)
        return tmp_path / "patients"

    return run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_array_file_per_patient(files):
    cohort = make_cohort(("a/b", "P2"))
    folder = files(cohort)
    assert names(folder) == ["P2.npz", "a=2Fb.npz"]
    cells = PatientCells.load(folder / "a=2Fb.npz")
    assert cells.patient == "a/b"
    assert cells.x.dtype == np.float32
    np.testing.assert_array_equal(cells.x, cohort.obsm["X_pca"][:60])
    np.testing.assert_array_equal(read_positions(folder.parent / "positions.npz")["a/b"], np.arange(60))
    assert cells.n_train == 30
    rows = read_rows(folder.parent / "patients.tsv")
    assert rows[0] == {
        "patient": "P2",
        "file": "P2",
        "label": "sick",
        "n_cells": "60",
        "n_train": "30",
        "status": "ok",
        "reason": "",
    }
    assert [row["patient"] for row in rows] == ["P2", "a/b"]


def test_only_what_changed_is_written_and_what_is_gone_is_removed(files):
    folder = files(make_cohort())
    for path in folder.iterdir():
        os.utime(path, ns=(10**18, 10**18))
    cohort = make_cohort(("P1", "P2"))
    cohort.obsm["X_pca"][0] += 1
    files(cohort)
    assert names(folder) == ["P1.npz", "P2.npz"]
    assert (folder / "P1.npz").stat().st_mtime_ns != 10**18
    assert (folder / "P2.npz").stat().st_mtime_ns == 10**18


def test_one_file_for_shared_components(files):
    folder = files(make_cohort())
    files(make_cohort(), component_sharing="global")
    assert names(folder) == [f"{COHORT}.npz"]
    cells = PatientCells.load(folder / f"{COHORT}.npz")
    assert cells.patients == ("P1", "P2", "P3")
    assert cells.n_train == 90


def test_sparse_x_is_split_into_dense_arrays(files):
    cohort = make_cohort()
    cohort = ad.AnnData(sparse.csc_matrix(cohort.obsm["X_pca"]), obs=cohort.obs)
    cells = PatientCells.load(files(cohort, use_rep=None) / "P2.npz")
    np.testing.assert_array_equal(cells.x, cohort.X[60:120].toarray())


@pytest.mark.parametrize("sharing", ["sample_specific", "global"])
def test_noise_is_split_like_the_cells(files, sharing):
    cohort = make_corrected()
    cohort = cohort[np.random.default_rng(0).permutation(cohort.n_obs)].copy()
    covariances = cohort.obsm["X_pca_var"][:, :, None] * np.eye(2) + 0.05
    cohort.obsm["flat"] = covariances.reshape(-1, 4)
    x, ids = cohort.obsm["X_pca"], cohort.obs["patient"].to_numpy()
    for key, noise in (("X_pca_var", cohort.obsm["X_pca_var"]), ("flat", covariances)):
        folder = files(cohort, noise={"obsm": key, "layer": None}, missing=True, component_sharing=sharing)
        positions = read_positions(folder.parent / "positions.npz")
        for path in folder.iterdir():
            cells = PatientCells.load(path)
            rows = positions[cells.patient]
            assert cells.feature_names == ("PC1", "PC2")
            np.testing.assert_array_equal(cells.x, x[rows])
            np.testing.assert_array_equal(cells.noise, noise[rows])
            if sharing == "sample_specific":
                np.testing.assert_array_equal(np.flatnonzero(ids == cells.patient), np.sort(rows))
                assert cohort.obs_names[rows].is_monotonic_increasing
                assert np.isnan(cells.x[:, 1]).any()
    assert len(list(folder.iterdir())) == (1 if sharing == "global" else 3)


def test_noise_of_x_itself_is_a_layer(files):
    cohort = make_cohort()
    x = np.abs(cohort.obsm["X_pca"])
    cohort = ad.AnnData(sparse.csr_matrix(x), obs=cohort.obs, layers={"noise": sparse.csr_matrix(2 * x)})
    cohort.var_names = ["g1", "g2", "g3"]
    cells = PatientCells.load(files(cohort, use_rep=None, noise={"obsm": None, "layer": "noise"}) / "P2.npz")
    np.testing.assert_array_equal(cells.x, x[60:120])
    np.testing.assert_array_equal(cells.noise, 2 * x[60:120])
    assert cells.feature_names == ("g1", "g2", "g3")


def test_gaps_and_noise_that_cannot_be_used_are_named(files):
    with pytest.raises(DataError, match=r"^obsm\['X_pca'\] has \d+ NaN or infinite .* set missing if NaN are missing"):
        files(make_corrected())
    cohort = make_corrected()
    cohort.obsm["X_pca"][90, 1] = np.inf
    with pytest.raises(
        DataError, match=r"^obsm\['X_pca'\] has 1 infinite values in 1 cells, the first in patient 'P2'"
    ):
        files(cohort, missing=True)
    cohort = make_corrected()
    cohort.obsm["X_pca_var"][90, 1] = -1
    with pytest.raises(
        DataError, match=r"^patient 'P2': the noise of cell 'P2:010' is no covariance: variances must be at"
    ):
        files(cohort, missing=True, noise={"obsm": "X_pca_var", "layer": None})
    with pytest.raises(DataError, match=r"^noise\.obsm: key of obsm 'X_var' .* did you mean 'X_pca_var'\?"):
        files(cohort, missing=True, noise={"obsm": "X_var", "layer": None})
    with pytest.raises(DataError, match=r"^noise: obsm\['X_pca'\] must be variances of shape \(240, 1\), or"):
        files(cohort, use_rep=None, noise={"obsm": "X_pca", "layer": None})


def test_noise_that_cannot_be_used_leaves_the_files_alone(files):
    folder = files(make_corrected(), missing=True)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    cohort = make_corrected()
    cohort.obsm["X_pca_var"][90, 1] = -1
    with pytest.raises(DataError, match="patient 'P2'"):
        files(cohort, missing=True, noise={"obsm": "X_pca_var", "layer": None})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_sheet_chooses_patients_and_keeps_a_file_for_the_dropped(files, tmp_path, caplog):
    cohort = make_cohort(("P1", "P2", "P3"))
    cohort = cohort[(cohort.obs["patient"] != "P2") | (np.arange(180) % 60 < 5)].copy()
    (tmp_path / "sheet.tsv").write_text("patient\nP2\nP3\n")
    with caplog.at_level(logging.INFO):
        folder = files(cohort, sheet=tmp_path / "sheet.tsv", min_cells=20, on_small_patient="drop")
    assert names(folder) == ["P2.npz", "P3.npz"]
    assert PatientCells.load(folder / "P2.npz").x.shape == (0, 3)
    assert [row["status"] for row in read_rows(tmp_path / "patients.tsv")] == ["dropped", "ok"]
    assert "1 patients with 60 cells of 3 features" in caplog.text
    assert "patient 'P2' left out: 5 cells, min_cells is 20" in caplog.text
    (tmp_path / "sheet.tsv").write_text("patient\nP2\nP4\n")
    with pytest.raises(DataError, match=r"sample sheet: patient 'P4' is not in the data; did you mean 'P\d'\?"):
        files(cohort, sheet=tmp_path / "sheet.tsv")


def test_mixed_labels_are_refused_or_told(files, caplog):
    cohort = make_cohort()
    cohort.obs["condition"] = np.where(np.arange(180) < 50, "well", "sick")  # P1: 50 well, 10 sick
    with pytest.raises(
        DataError, match=r"^label_col 'condition': the cells of 1 patients .*: 'P1' \(50 well, 10 sick\)"
    ):
        files(cohort)
    folder = files(cohort, on_mixed_label="majority")
    rows = read_rows(folder.parent / "patients.tsv")
    assert [row["label"] for row in rows] == ["well", "sick", "sick"]
    note = "several labels: 50 well, 10 sick; the most frequent is taken"
    assert [row["reason"] for row in rows] == [note, "", ""]
    assert f"patient 'P1' has {note}" in caplog.text
    files(cohort, label_col=None)
    assert [row["label"] for row in read_rows(folder.parent / "patients.tsv")] == ["", "", ""]


@pytest.mark.parametrize(
    ("kind", "patients"),
    [
        (lambda n: np.repeat([2, 10], n), ["10", "2"]),
        (lambda n: np.repeat([2.5, 10], n), ["10.0", "2.5"]),
        (lambda n: np.repeat([True, False], n), ["False", "True"]),
        (lambda n: pd.Categorical(np.repeat(["x", "y"], n), categories=["w", "x", "y"]), ["x", "y"]),
    ],
    ids=["integers", "floats", "booleans", "categories"],
)
def test_patients_of_every_type(files, kind, patients):
    cohort = make_cohort(("P1", "P2"))
    cohort.obs["patient"] = kind(60)
    folder = files(cohort)
    assert [row["patient"] for row in read_rows(folder.parent / "patients.tsv")] == patients
    assert sorted(PatientCells.load(path).patient for path in folder.iterdir()) == patients


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"patient_col": "patients"}, "patient_col: obs column 'patients' is not in the data; did you mean 'patient'?"),
        (
            {"label_col": "conditions"},
            "label_col: obs column 'conditions' is not in the data; did you mean 'condition'?",
        ),
        ({"use_rep": "X_pac"}, "use_rep: obsm key 'X_pac' is not in the data; did you mean 'X_pca'?"),
        ({"min_cells": 61}, "3 of 3 patients have too few cells: 'P1' (60 cells, min_cells is 61)"),
    ],
)
def test_what_cannot_be_split_leaves_no_file(files, tmp_path, options, text):
    with pytest.raises(DataError) as caught:
        files(make_cohort(), **options)
    assert str(caught.value).startswith(text)
    assert not (tmp_path / "patients").exists()
    assert not (tmp_path / "patients.tsv").exists()


def test_bad_values_in_the_file_are_named(files):
    cohort = make_cohort()
    cohort.obsm["X_pca"][130] = np.nan
    with pytest.raises(DataError, match=r"obsm\['X_pca'\] has 3 NaN or infinite values in 1 cells, .* patient 'P3'"):
        files(cohort)
    cohort = make_cohort()
    cohort.obs.index = ["c0", *(f"c{i}" for i in range(179))]
    with pytest.raises(DataError, match=r"1 cell names occur more than once, the first is 'c0'"):
        files(cohort)
