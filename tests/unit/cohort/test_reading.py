"""What is read of an .h5ad, and the one line that says why it cannot be used."""

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from projects import make_cohort
from scipy import sparse

from cohortgmm.cohort import reading
from cohortgmm.errors import DataError


def refusal(function, *arguments):
    with pytest.raises(DataError) as caught:
        function(*arguments)
    return str(caught.value)


def enter(path):
    with reading.open_h5ad(path):
        pass


def test_files_that_are_no_h5ad(tmp_path):
    assert refusal(enter, tmp_path / "no.h5ad") == f"{tmp_path}/no.h5ad: no such file"
    assert "no such file" in refusal(enter, tmp_path)
    (tmp_path / "text.h5ad").write_text("patient\tcell\n")
    assert refusal(enter, tmp_path / "text.h5ad").startswith(f"{tmp_path}/text.h5ad: not an .h5ad file (")
    assert "\n" not in refusal(enter, tmp_path / "text.h5ad")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["matrix"] = np.zeros(3)
    assert refusal(enter, tmp_path / "other.h5") == (
        f"{tmp_path}/other.h5: an HDF5 file, but not an AnnData one (it has no obs and var)"
    )


def test_a_file_cut_short_is_refused(tmp_path):
    make_cohort().write_h5ad(tmp_path / "whole.h5ad")
    content = (tmp_path / "whole.h5ad").read_bytes()
    (tmp_path / "half.h5ad").write_bytes(content[: len(content) // 2])
    assert "half.h5ad: not an .h5ad file (" in refusal(enter, tmp_path / "half.h5ad")


def test_the_parts_of_a_file(tmp_path):
    cohort = make_cohort()
    cohort.write_h5ad(tmp_path / "x.h5ad")
    with reading.open_h5ad(tmp_path / "x.h5ad") as file:
        obs = reading.read_obs(file)
        np.testing.assert_array_equal(reading.read_embedding(file, "X_pca"), cohort.obsm["X_pca"])
        np.testing.assert_array_equal(reading.read_embedding(file, None), np.zeros((180, 1)))
    assert obs["patient"].tolist() == cohort.obs["patient"].tolist()
    assert obs.index.tolist() == cohort.obs_names.tolist()


def test_a_table_in_the_layout_of_old_files_is_refused(tmp_path):
    """anndata < 0.7 wrote obs as one array of records."""
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        file["obs"] = np.array([(b"c0", 0), (b"c1", 1)], dtype=[("index", "S2"), ("patient", "i1")])
        file["var"] = np.array([(b"g0",)], dtype=[("index", "S2")])
        file["uns/patient_categories"] = np.array([b"P1", b"P2"])
    with reading.open_h5ad(tmp_path / "old.h5ad") as file:
        assert refusal(reading.read_obs, file) == (
            f"{tmp_path}/old.h5ad: obs is in the layout of anndata before 0.7: "
            "read the file with anndata and write it again"
        )


def test_an_embedding_that_is_not_there(tmp_path):
    cohort = make_cohort()
    ad.AnnData(obs=cohort.obs, obsm={"X_scVI": cohort.obsm["X_pca"]}, shape=(180, 0)).write_h5ad(tmp_path / "x.h5ad")
    with reading.open_h5ad(tmp_path / "x.h5ad") as file:
        assert refusal(reading.read_embedding, file, "X_scvi") == (
            "use_rep: obsm key 'X_scvi' is not in the data; did you mean 'X_scVI'? known: X_scVI"
        )
        assert refusal(reading.read_embedding, file, None) == "use_rep is null, but the file has no X"


def test_unknown_names():
    assert str(reading.unknown_name("obs column", "x", [])) == "obs column 'x' is not in the data; known: none"
    assert str(reading.unknown_name("a", "zz", ["b", 3])) == "a 'zz' is not in the data; known: 3, b"
    many = str(reading.unknown_name("a", "zz", [f"c{i:02d}" for i in range(20)]))
    assert many.endswith("known: c00, c01, c02, c03, c04, c05, c06, c07, c08, c09, c10, c11, ...")


def test_repeated_cell_names():
    obs = pd.DataFrame(index=["a", "b", "a", "c", "b", "b"])
    assert refusal(reading.check_cell_names, obs) == (
        "3 cell names occur more than once, the first is 'a': call adata.obs_names_make_unique()"
    )
    reading.check_cell_names(pd.DataFrame(index=["a", "b"]))


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (["b", "a", "b"], ["b", "a", "b"]),
        ([2, 10, 2], ["2", "10", "2"]),
        ([1.0, 2.5, 1.0], ["1.0", "2.5", "1.0"]),
        ([True, False, True], ["True", "False", "True"]),
        (pd.Categorical(["b", "a", "b"], categories=["z", "b", "a"]), ["b", "a", "b"]),  # z has no cells
        (pd.Categorical([7, 5, 7], categories=[5, 6, 7]), ["7", "5", "7"]),
        (pd.array(["NA", "nan", "None"], dtype="string"), ["NA", "nan", "None"]),
    ],
    ids=["text", "integers", "floats", "booleans", "categories", "categories of integers", "strings"],
)
def test_patients_are_text(make_obs, values, texts):
    ids = reading.patient_ids(make_obs(values), "patient")
    assert ids.dtype == object
    assert ids.tolist() == texts
    assert all(type(patient) is str for patient in ids)


@pytest.mark.parametrize(
    "values",
    [["a", None, "b", None], [1.0, np.nan, 2.0, np.nan], pd.Categorical(["a", None, "b", None])],
    ids=["text", "floats", "categories"],
)
def test_cells_without_a_patient(make_obs, values):
    assert refusal(reading.patient_ids, make_obs(values), "patient") == (
        "patient_col 'patient': 2 cells have no patient, the first is 'c1'"
    )


def test_values_that_read_the_same(make_obs):
    obs = make_obs(pd.Series([1, "1", 2], dtype=object).to_numpy())
    assert refusal(reading.patient_ids, obs, "patient") == (
        "patient_col 'patient': two different values read the same as text; make them all text"
    )


def test_a_column_that_is_not_there(make_obs):
    assert refusal(reading.patient_ids, make_obs(["a"], "donor_id"), "donor") == (
        "patient_col: obs column 'donor' is not in the data; did you mean 'donor_id'? known: donor_id"
    )
    assert refusal(reading.patient_labels, make_obs(["a"]), np.array(["a"]), "group").startswith(
        "label_col: obs column 'group' is not in the data; known: patient"
    )


def test_labels_of_patients(make_obs):
    ids = np.array(list("aaabbccdd"), dtype=object)
    obs = make_obs(["x", "y", "y", "x", "x", "y", "x", None, None], "group")
    labels, several = reading.patient_labels(obs, ids, "group")
    assert labels == {"a": "y", "b": "x", "c": "x", "d": ""}  # the commonest; of a tie the first by name
    assert several == ["a", "c"]
    labels, several = reading.patient_labels(obs.astype("category"), ids, "group")
    assert (labels["a"], several) == ("y", ["a", "c"])
    labels, _ = reading.patient_labels(make_obs([1, 1, 1, 2, 2, 3, 3, 4, 4], "group"), ids, "group")
    assert labels == {"a": "1", "b": "2", "c": "3", "d": "4"}


def test_matrices():
    table = pd.DataFrame({"a": [1.0, 2.0], "b": [3, 4]})
    np.testing.assert_array_equal(reading.as_matrix(table, "m"), [[1, 3], [2, 4]])
    csr = reading.as_matrix(sparse.csc_matrix(np.eye(3)), "m")
    assert csr.format == "csr"
    rows = np.array([2, 0])
    np.testing.assert_array_equal(reading.rows_of(csr, rows), [[0, 0, 1], [1, 0, 0]])
    assert isinstance(reading.rows_of(csr, rows), np.ndarray)
    np.testing.assert_array_equal(reading.rows_of(np.eye(3), rows), [[0, 0, 1], [1, 0, 0]])
    for bad, shown in (
        (np.zeros(3), "float64 of shape (3,)"),
        (np.zeros((3, 0)), "float64 of shape (3, 0)"),
        (np.zeros((3, 2), dtype=complex), "complex128 of shape (3, 2)"),
        (pd.DataFrame({"a": ["x"]}), "object of shape (1, 1)"),
        (None, "object of shape ()"),
    ):
        assert refusal(reading.as_matrix, bad, "X") == f"X must be a numeric matrix (cells, features), got {shown}"
