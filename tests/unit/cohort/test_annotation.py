"""Cell types and the UMAP of a cohort as others store them."""

import h5py
import numpy as np
import pandas as pd
import pytest
from projects import make_cohort
from scipy import sparse

from cohortgmm.cohort.annotation import CellAnnotation, read_annotation
from cohortgmm.errors import DataError

UMAP = np.arange(360.0).reshape(180, 2)
OPTIONS = {"use_rep": "X_pca", "celltype_col": "cell_type", "umap": True, "max_cells": 100, "seed": 0}


@pytest.fixture
def annotation(tmp_path):
    def read(coordinates=None, types=None, rows=None, **options):
        cohort = make_cohort()
        if coordinates is not None:
            cohort.obsm["X_umap"] = coordinates(cohort) if callable(coordinates) else coordinates
        if types is not None:
            cohort.obs["cell_type"] = types
        cohort.write_h5ad(tmp_path / "c.h5ad")
        if rows is not None:
            with h5py.File(tmp_path / "c.h5ad", "r+") as file:
                file["obsm/X_umap"] = rows
                file["obsm/X_umap"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        return read_annotation(tmp_path / "c.h5ad", **OPTIONS | options)

    return read


@pytest.mark.parametrize(
    "umap",
    [
        UMAP,
        UMAP.astype(np.float16),
        UMAP.astype(int),
        np.column_stack([UMAP, UMAP]),
        sparse.csr_matrix(UMAP),
        lambda cohort: pd.DataFrame(UMAP, index=cohort.obs_names, columns=["x", "y"]).convert_dtypes(),
    ],
    ids=["double", "half", "integers", "four columns", "sparse", "nullable table"],
)
def test_coordinates_of_every_type(annotation, umap):
    found = annotation(umap).umap
    assert found.shape == (180, 2)
    np.testing.assert_array_equal(found, UMAP)


def test_cells_without_coordinates(annotation, tmp_path):
    umap = UMAP.copy()
    umap[3, 1], umap[5, 0] = np.nan, np.inf
    found = annotation(umap)
    found.save(tmp_path / "cells.npz")
    assert np.flatnonzero(np.isnan(CellAnnotation.load(tmp_path / "cells.npz").umap).all(axis=1)).tolist() == [3, 5]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (UMAP[:100], "obsm['X_umap'] has 100 rows for 180 cells"),
        (UMAP.T, "obsm['X_umap'] has 2 rows for 180 cells, it looks transposed"),
        (UMAP[:, :1], "obsm['X_umap'] must have at least two columns, its shape is (180, 1)"),
        (UMAP[:, 0], "obsm['X_umap'] must have at least two columns, its shape is (180,)"),
        (UMAP.astype("S8"), "obsm['X_umap'] must hold real numbers, got |S8"),
        (UMAP + 1j, "obsm['X_umap'] must hold real numbers, got complex128"),
    ],
    ids=["fewer", "transposed", "one column", "flat", "text", "complex"],
)
def test_coordinates_that_cannot_be_drawn(annotation, rows, said):
    with pytest.raises(DataError) as caught:
        annotation(rows=rows)
    assert said in str(caught.value)
    assert str(caught.value).endswith("remove it from obsm to have it computed, or set qc.umap to false")
    assert annotation(rows=rows, umap=False).umap is None


def test_cell_types_of_every_kind(annotation):
    types = pd.Categorical([None, 2, 1, 2, 3] * 36, categories=[3, 2, 1, 9])
    found = annotation(types=types, umap=False).cell_types
    assert found.categories.tolist() == ["2", "1", "3"]  # frequent ones first
    assert found.codes[:5].tolist() == [-1, 0, 1, 0, 2]
    assert annotation(types=["", "a", "b"] * 60, umap=False).cell_types.codes[:3].tolist() == [-1, 0, 1]
