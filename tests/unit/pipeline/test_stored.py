"""What files hold."""

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from cohortgmm.pipeline.stored import megabytes


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_the_size_is_that_of_the_arrays_compressed_or_not(tmp_path, compression):
    x = sparse.csr_matrix(np.eye(1000, 50, dtype=np.float32))
    embedding = np.zeros((1000, 20), dtype=np.float32)
    file = tmp_path / "x.h5ad"
    ad.AnnData(x, obsm={"X_pca": embedding}).write_h5ad(file, compression=compression)
    assert megabytes(file, ("obsm",)) == embedding.nbytes / 1e6
    assert megabytes(file, ("X",)) == (x.data.nbytes + x.indices.nbytes + x.indptr.nbytes) / 1e6
    assert megabytes(file, ("obsm", "X")) == pytest.approx(megabytes(file, ("X",)) + megabytes(file, ("obsm",)))
    assert megabytes(file, ("raw",)) == 0
    assert megabytes(file) > megabytes(file, ("obsm", "X"))


def test_another_version_of_a_file_is_measured_again(tmp_path):
    file = tmp_path / "x.h5ad"
    for d in (5, 50):
        ad.AnnData(np.zeros((100, d), dtype=np.float32)).write_h5ad(file)
        assert megabytes(file, ("X",)) == 400 * d / 1e6


def test_of_another_kind_of_file_the_size_counts(tmp_path):
    file = tmp_path / "x.h5ad"
    file.write_bytes(bytes(3_000_000))
    assert megabytes(file, ("obs",)) == 3
