"""Entries of the input that are in the way."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cohortgmm.cohort.entries import Entries, is_same

EYE = np.eye(3)
TABLE = pd.DataFrame({"a": [1.0, np.nan, 3.0]}, index=list("xyz"))


@pytest.fixture
def adata():
    return ad.AnnData(np.ones((3, 3), dtype=np.float32))


@pytest.mark.parametrize("place", ["obsm", "varm", "layers", "uns", "obs", "var", "obsp"])
def test_another_entry_is_kept_and_an_equal_one_is_not(adata, place):
    ours, theirs = (np.arange(3.0), np.ones(3)) if place in ("obs", "var") else (EYE, 2 * EYE)
    mapping = getattr(adata, place)
    entries = Entries(adata)
    entries.put(place, "key", ours)
    entries.put(place, "key", ours.copy())
    assert entries.kept == []
    for number in ("", "_2", "_3"):
        mapping["key"] = theirs
        entries.put(place, "key", ours)
        np.testing.assert_array_equal(np.asarray(mapping["key"]), ours)
        np.testing.assert_array_equal(np.asarray(mapping[f"key_input{number}"]), theirs)
        assert entries.kept.pop() == {"entry": f"{place}['key']", "kept_as": f"{place}['key_input{number}']"}
    assert entries.kept == []


SAME = [
    (EYE, sparse.csr_matrix(EYE)),
    (sparse.csc_matrix(EYE), sparse.csr_matrix(EYE.astype(np.int64))),
    (sparse.csr_array(EYE), EYE),
    (np.array([1, np.nan]), np.array([1, np.nan])),
    ({"a": {"b": EYE, "c": "x"}}, {"a": {"b": sparse.csr_matrix(EYE), "c": np.str_("x")}}),
    (TABLE, TABLE.copy()),
    (np.bool_(True), True),
    (pd.Series([1, 2]), np.array([1, 2])),
    (pd.Categorical(["a", "b"]), np.array(["a", "b"])),
]
DIFFERENT = [
    (EYE, EYE[:2]),
    (EYE, sparse.csr_matrix(EYE[:2])),
    (EYE, sparse.csr_matrix(2 * EYE)),
    (EYE, "text"),
    (sparse.csr_matrix(EYE), TABLE),
    (TABLE, TABLE.to_numpy()),
    ({"a": 1}, {"a": 1, "b": 2}),
    ({"a": 1}, 1),
    (np.array(["a", "b"]), np.array([1, 2])),
    (np.array([{}, []], dtype=object), np.array([1, 2])),
    (sparse.csr_matrix(EYE), None),
]


@pytest.mark.parametrize("pair", SAME, ids=range(len(SAME)))
def test_what_is_the_same_however_it_is_stored(pair):
    assert is_same(*pair)
    assert is_same(*pair[::-1])


@pytest.mark.parametrize("pair", DIFFERENT, ids=range(len(DIFFERENT)))
def test_what_differs(pair):
    assert not is_same(*pair)
    assert not is_same(*pair[::-1])
