"""The cells of a fit: what is accepted as such, and what is known of their spread."""

import numpy as np
import pytest

from cohortgmm.errors import DataError
from cohortgmm.mixture.observations.cells import CellData


@pytest.fixture
def mapped(tmp_path):
    """Factory of arrays that are mapped from a file."""

    def make(x):
        np.save(tmp_path / "x.npy", x)
        return np.load(tmp_path / "x.npy", mmap_mode="r")

    return make


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_of_floats_are_used_where_they_are(mapped, dtype):
    x = np.ones((3, 2), dtype)
    assert CellData(x).x is x
    of_file = mapped(x)
    assert np.shares_memory(CellData(of_file).x, of_file)


@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.uint8, bool, ">f8"])
def test_other_types_are_converted(dtype):
    x = np.array([[0, 1], [1, 1], [0, 0]])
    cells = CellData(x.astype(dtype))
    assert cells.x.dtype == (np.float32 if dtype == np.float16 else np.float64)
    assert np.array_equal(cells.x, x)
    assert CellData(x.tolist()).x.dtype == np.float64


def test_rows_are_contiguous_doubles():
    x = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(4, 3))
    cells = CellData(x)
    for rows in (slice(1, 3), np.array([3, 0])):
        part = cells.rows(rows)
        assert part.dtype == np.float64
        assert part.flags.c_contiguous
        assert np.array_equal(part, x[rows])
    assert (len(cells), cells.n_features) == (4, 3)


@pytest.mark.parametrize("shape", [(10,), (2, 5, 3), (10, 0), ()])
def test_other_than_two_dimensional_cells_are_refused(shape):
    with pytest.raises(DataError, match=r"must be an array of shape \(n, D\)"):
        CellData(np.zeros(shape))


@pytest.mark.parametrize("x", [[["a", "b"]], [[1.0, 2.0], [3.0]], [[{}, 1]]], ids=["text", "ragged", "objects"])
def test_cells_that_are_not_numbers_are_refused(x):
    with pytest.raises(DataError, match=r"^cells must (be numeric|be a numeric array|hold real numbers)"):
        CellData(x)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.usefixtures("small_tiles")
def test_values_that_are_not_finite_are_counted_and_placed_over_all_tiles(make_cells, value, dtype):
    x = make_cells(200, 3).astype(dtype)
    x[77, 2] = x[77, 0] = x[64, 1] = x[190, 0] = value
    with pytest.raises(DataError, match="4 NaN or infinite values, the first in cell 64"):
        CellData(x)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.usefixtures("small_tiles")
def test_where_values_may_be_missing_they_are_counted_and_infinite_ones_are_refused(make_cells, value, dtype):
    x = make_cells(200, 3).astype(dtype)
    assert CellData(x, missing_allowed=True).n_missing == 0
    x[3, 1] = x[150, 0] = x[150, 2] = np.nan
    assert CellData(x, missing_allowed=True).n_missing == 3
    x[77, 2] = x[77, 0] = x[64, 1] = x[190, 0] = value
    with pytest.raises(DataError, match=r"^4 infinite values, the first in cell 64"):
        CellData(x, missing_allowed=True)


@pytest.mark.parametrize("n_features", [1, 3])
@pytest.mark.parametrize("offset", [0.0, 1e5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.usefixtures("small_tiles")
def test_spread_is_numpys_over_several_tiles(make_cells, n_features, offset, dtype):
    x = (offset + make_cells(300, n_features)).astype(dtype)
    cells = CellData(x)
    assert len(cells.tiles(n_features)) > 3
    x = x.astype(np.float64)
    # Values of 1e5 are sums with eleven decimals left.
    np.testing.assert_allclose(cells.mean, x.mean(axis=0), rtol=1e-14, atol=1e-13)
    low, high = cells.bounds
    assert low.dtype == high.dtype == np.float64
    assert np.array_equal(low, x.min(axis=0))
    assert np.array_equal(high, x.max(axis=0))
    np.testing.assert_allclose(cells.extent, np.abs(x - x.mean(axis=0)).max(axis=0), rtol=1e-9)
    truth = np.atleast_2d(np.cov(x, rowvar=False, bias=True))
    np.testing.assert_allclose(cells.covariance, truth, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.usefixtures("small_tiles")
def test_map_keeps_the_order_of_the_tiles(n_threads):
    cells = CellData(np.arange(300.0)[:, None], n_threads)
    parts = list(cells.map(cells.rows, cells.tiles(1)))
    assert len(parts) > 3
    assert np.array_equal(np.concatenate(parts), cells.x)
    assert list(cells.map(cells.rows, [])) == []
