"""Real numbers from whatever a user's data holds."""

import dask.array
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cohortgmm.arrays import real_array
from cohortgmm.errors import DataError

VALUES = np.array([[1.0, 2.0], [3.0, 0.0]])


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float16", "float32"),
        ("float32", "float32"),
        (">f4", "float32"),
        ("float64", "float64"),
        (">f8", "float64"),
        ("longdouble", "float64"),
        ("bool", "float64"),
        ("int8", "float64"),
        ("uint64", "float64"),
    ],
)
@pytest.mark.parametrize("make", [np.asarray, pd.DataFrame, np.ma.asarray], ids=["array", "table", "masked"])
def test_real_types_keep_their_values(dtype, expected, make):
    values = VALUES.astype(dtype)
    result = real_array(make(values), "x")
    assert result.dtype == np.dtype(expected)
    assert result.dtype.isnative
    assert np.array_equal(result, values.astype(float))


def test_objects_that_are_numbers_are_taken():
    assert np.array_equal(real_array(VALUES.astype(object), "x"), VALUES)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "bool"])
@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_array, sparse.coo_matrix])
def test_sparse_matrices_become_rows(dtype, make):
    result = real_array(make(VALUES.astype(dtype)), "x")
    assert result.format == "csr"
    assert result.dtype in (np.float32, np.float64)
    assert np.array_equal(result.toarray(), VALUES.astype(dtype).astype(float))


@pytest.mark.parametrize("form", ["coo", "bsr", "lil", "dok", "dia"])
@pytest.mark.parametrize("make", [sparse.coo_matrix, sparse.coo_array])
def test_every_form_of_sparse_matrix(form, make):
    result = real_array(make(VALUES).asformat(form), "x")
    assert result.format == "csr"
    assert np.array_equal(result.toarray(), VALUES)


def test_elements_that_are_given_twice_are_added_without_overflow():
    twice = (np.array([200, 100], dtype=np.uint8), (np.array([0, 0]), np.array([1, 1])))
    assert real_array(sparse.coo_matrix(twice, shape=(2, 2)), "x")[0, 1] == 300


@pytest.mark.parametrize("indices", [[0, 7], [0, -1]])
def test_a_damaged_sparse_matrix_is_refused(indices):
    matrix = sparse.csr_matrix(np.eye(2))
    matrix.indices[:] = indices
    with pytest.raises(DataError, match=r"^x is a damaged sparse matrix: ValueError: indices must be"):
        real_array(matrix, "x")


def test_a_table_of_objects_holds_numbers_or_names_the_column():
    table = pd.DataFrame({"a": [1.0, 2.0], "b": np.array([1, None], dtype=object)})
    assert np.array_equal(real_array(table, "x"), [[1, 1], [2, np.nan]], equal_nan=True)
    with pytest.raises(DataError, match=r"^x must be numeric, column 'b' is object$"):
        real_array(table.assign(b=["1", "2"]).astype({"b": object}), "x")
    doubled = pd.DataFrame([[1, 2.5]], columns=["a", "a"])
    assert np.array_equal(real_array(doubled, "x"), [[1, 2.5]])


def test_what_cannot_be_computed_or_converted_is_one_line():
    class Later:
        dask = True

        def compute(self):
            raise OSError("disk\ngone")

    class Tensor:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("requires grad")

    with pytest.raises(DataError, match=r"^x cannot be read: OSError: disk gone$"):
        real_array(Later(), "x")
    with pytest.raises(DataError, match=r"^x must be a numeric array: RuntimeError: requires grad$"):
        real_array(Tensor(), "x")


def test_single_and_double_precision_are_not_copied():
    for dtype in (np.float32, np.float64):
        values = VALUES.astype(dtype)
        assert np.shares_memory(real_array(values, "x"), values)


def test_masked_and_missing_values_become_nan():
    masked = np.ma.array(VALUES.astype(int), mask=[[False, True], [False, False]])
    assert np.isnan(real_array(masked, "x")).tolist() == [[False, True], [False, False]]
    objects = np.ma.array(np.array([1, None], dtype=object), mask=[False, True])
    assert np.array_equal(real_array(objects, "x"), [1, np.nan], equal_nan=True)
    table = pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "b": pd.array([0.5, 1.5], dtype="Float64")})
    result = real_array(table, "x")
    assert result.dtype == np.float64
    assert np.isnan(result).tolist() == [[False, False], [True, False]]
    assert result[0, 0] == 1


def test_a_dataset_of_a_file_is_read(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = VALUES.astype(np.float16)
        assert np.array_equal(real_array(file["x"], "x"), VALUES)


def test_a_matrix_that_is_computed_later_is_computed():
    assert np.array_equal(real_array(dask.array.from_array(VALUES, chunks=1), "x"), VALUES)


@pytest.mark.parametrize(
    "values",
    [
        VALUES + 0j,
        VALUES.astype(str),
        VALUES.astype("datetime64[D]"),
        np.array([[1.0, "2"]], dtype=object),
        np.array([[1.0, None]], dtype=object),
        pd.DataFrame({"a": [1.0], "b": ["2"]}),
        pd.DataFrame({"a": pd.Categorical(["1"])}),
        np.zeros(2, dtype=[("a", float)]),
        [[1.0], [1.0, 2.0]],
        sparse.csr_matrix(VALUES + 0j),
        "x",
        {"a": 1},
    ],
    ids=str,
)
def test_anything_else_is_refused_by_name(values):
    with pytest.raises(DataError, match=r"^the noise must .*numeric|^the noise must hold real numbers"):
        real_array(values, "the noise")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[10**400]], dtype=object), "beyond the range of double precision"),
        (np.array([[2**60, 2**60 + 1]]), "which double precision would round"),
        (np.array([[2**63 + 1]], dtype=np.uint64), "which double precision would round"),
    ],
    ids=["object", "int64", "uint64"],
)
def test_numbers_that_would_change_are_refused(values, message):
    with pytest.raises(DataError, match=message):
        real_array(values, "x")
