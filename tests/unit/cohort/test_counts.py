"""Where the raw counts are, of whatever type, and what is none."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cohortgmm.cohort.counts import raw_counts
from cohortgmm.errors import DataError

COUNTS = np.random.default_rng(0).poisson(1.5, (12, 7))


def cohort(x=COUNTS, **layers):
    return ad.AnnData(x, layers=layers, obs=pd.DataFrame(index=[f"c{i}" for i in range(12)]))


def with_raw(x, raw):
    result = cohort(x)
    result.raw = ad.AnnData(raw, obs=result.obs, var=pd.DataFrame(index=[f"r{i}" for i in range(raw.shape[1])]))
    return result


def dense(matrix):
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


LOGGED = np.log1p(COUNTS).astype(np.float32)
SCALED = ((COUNTS - COUNTS.mean(axis=0)) / COUNTS.std(axis=0)).astype(np.float32)
TYPES = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64", "g"]
DENSE_TYPES = [*TYPES, "float16", ">f4", ">i4"]  # of which scipy has no matrices
FORMS = [*((np.asarray, dtype) for dtype in DENSE_TYPES)]
FORMS += [(form, dtype) for form in (sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array) for dtype in TYPES]


@pytest.mark.parametrize(("form", "dtype"), FORMS)
def test_counts_of_every_type_become_single_precision(form, dtype):
    counts = COUNTS > 1 if dtype == "bool" else COUNTS
    found = raw_counts(cohort(form(counts.astype(dtype))), "X")
    assert found.matrix.dtype == np.float32
    np.testing.assert_array_equal(dense(found.matrix), counts)
    assert found.dtype == (np.dtype(dtype) if np.dtype(dtype).kind in "iu" else np.float32)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float64])
def test_counts_that_single_precision_cannot_hold_stay_exact(dtype):
    counts = COUNTS.astype(dtype)
    counts[3, 2] = 2**24 + 1
    found = raw_counts(cohort(counts), "X")
    assert found.matrix.dtype == np.float64
    assert found.matrix[3, 2] == 2**24 + 1
    counts[3, 2] = 2**24
    assert raw_counts(cohort(counts), "X").matrix.dtype == np.float32


def test_counts_are_found_where_they_are():
    other = np.hstack([COUNTS + 1, COUNTS])
    both = with_raw(LOGGED, other)
    both.layers["umi"] = COUNTS + 2
    np.testing.assert_array_equal(raw_counts(both, "raw").matrix, other)
    assert raw_counts(both, "raw").var.index.tolist() == [f"r{i}" for i in range(14)]
    np.testing.assert_array_equal(raw_counts(both, "layer:umi").matrix, COUNTS + 2)
    assert raw_counts(both, "layer:umi").var.index.equals(both.var_names)


@pytest.mark.parametrize(
    ("x", "found"),
    [
        (LOGGED, "numbers that are not whole (0.6931), as normalised or log-transformed data do"),
        (SCALED, f"negative numbers ({SCALED.min():.4g}), as scaled data do"),
        (np.where(COUNTS == 0, np.nan, COUNTS).astype(np.float32), "NaN, masked or infinite values"),
    ],
    ids=["logged", "scaled", "nan"],
)
def test_other_data_are_recognised_with_the_place_of_the_counts(x, found):
    x[0, 0] = x[0, 0] if np.isnan(x).any() or x[0, 0] < 0 else np.float32(np.log(2))
    start = f"preprocessing needs raw counts in X, but X holds {found}: "
    for form in (np.asarray, sparse.csr_matrix):
        for made, end in (
            (
                cohort(form(x), counts=COUNTS),
                "layers['counts'] holds whole numbers: set preprocess.counts to layer:counts",
            ),
            (
                cohort(form(x), other=COUNTS, raw_counts=COUNTS, a=LOGGED),
                "layers['raw_counts'] holds whole numbers: set ",
            ),
            (with_raw(form(x), COUNTS), "raw.X holds whole numbers: set preprocess.counts to raw"),
            (
                with_raw(form(x), LOGGED),
                "set preprocess.counts to where the raw counts are (X, raw or layer:NAME), or ",
            ),
            (cohort(form(x), counts=COUNTS * 0), "set preprocess.counts to where the raw counts are"),
        ):
            with pytest.raises(DataError) as caught:
                raw_counts(made, "X")
            assert str(caught.value).startswith(start + end)


def test_places_that_are_not_there_or_hold_something_else():
    for made, place, text in (
        (cohort(), "raw", "preprocess.counts is raw, but the input has no raw; X holds whole numbers: set it to X"),
        (cohort(LOGGED), "raw", "preprocess.counts is raw, but the input has no raw; set it to X or layer:NAME"),
        (
            cohort(count=COUNTS),
            "layer:counts",
            "preprocess.counts: layer 'counts' is not in the data; did you mean 'count'?",
        ),
        (
            cohort(log=LOGGED),
            "layer:log",
            "preprocessing needs raw counts in layers['log'], but layers['log'] holds numbers that are not whole (",
        ),
        (cohort(None), "X", "preprocessing needs raw counts in X; the input has 12 cells x 0 genes"),
        (cohort(COUNTS.astype(complex)), "X", "X must hold real numbers, got complex128"),
    ):
        with pytest.raises(DataError) as caught:
            raw_counts(made, place)
        assert str(caught.value).startswith(text)
    with pytest.raises(
        DataError, match=r"layers\['log'\] holds .*: X holds whole numbers: set preprocess.counts to X$"
    ):
        raw_counts(cohort(log=LOGGED), "layer:log")


def test_entries_that_are_stored_twice_count_once():
    twice = sparse.csr_matrix(([1.0, 2.0, 4.0], ([0, 0, 1], [3, 3, 2])), shape=(12, 7), dtype=np.float32)
    parts = sparse.csr_matrix(
        (np.float32([2, 1, 4]), np.int32([3, 3, 2]), np.int32([0, 2, 3, *[3] * 10])), shape=(12, 7)
    )
    given = cohort(parts)
    found = raw_counts(given, "X").matrix
    assert found.nnz == 2
    assert given.X.nnz == 3
    np.testing.assert_array_equal(found.toarray(), twice.toarray())
