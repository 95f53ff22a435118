"""The pieces that the rows of the data are worked through in, and the threads that do it."""

import contextlib
import itertools
import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from cohortgmm.errors import DataError
from cohortgmm.mixture.em.initialize import STARTS
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.numerics import tiles
from cohortgmm.mixture.numerics.tiles import one_blas_thread, ordered_map, range_slices, tile_slices
from cohortgmm.mixture.numerics.tuning import tuning


@pytest.mark.parametrize("values", [1, 2_000, 10**9])
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 1000])
def test_tiles_cover_every_row_once(tune, values, n):
    tune(tile_values=values)
    rows = [row for piece in tile_slices(n, 7) for row in range(piece.start, piece.stop)]
    assert rows == list(range(n))


@pytest.mark.parametrize(("n", "sizes"), [(0, []), (3, [3]), (4, [4]), (9, [4, 4, 1])])
def test_ranges_are_of_equal_steps_but_the_last(n, sizes):
    pieces = list(range_slices(n, 4))
    assert [piece.stop - piece.start for piece in pieces] == sizes
    assert [row for piece in pieces for row in range(n)[piece]] == list(range(n))


def test_tiles_hold_no_more_values_than_fit_the_cache():
    sizes = [piece.stop - piece.start for piece in tile_slices(1_000_000, 100)]
    assert max(sizes) * 100 <= tuning().tile_values
    assert len(sizes) > 1


@pytest.mark.parametrize("n_threads", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [0, 1, 5, 100])
def test_ordered_map_keeps_the_order(n_threads, n):
    assert list(ordered_map(lambda item: item * item, range(n), n_threads)) == [i * i for i in range(n)]


def test_ordered_map_keeps_the_order_of_items_that_end_in_another():
    second_is_done = threading.Event()

    def work(item):
        if item == 0:
            assert second_is_done.wait(timeout=30)
        else:
            second_is_done.set()
        return item

    assert list(ordered_map(work, range(2), 2)) == [0, 1]


@pytest.mark.parametrize("n_threads", [1, 3])
def test_ordered_map_raises_what_the_function_raises_in_its_turn(n_threads):
    results = ordered_map(lambda item: 1 // (4 - item), range(10), n_threads)
    assert list(itertools.islice(results, 4)) == [0, 0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.parametrize("n_threads", [2, 3])
def test_ordered_map_keeps_few_results_waiting(n_threads):
    drawn = itertools.count()
    results = ordered_map(lambda item: item, itertools.islice(drawn, 50), n_threads)
    for taken in range(1, 20):
        next(results)
        assert next(drawn) - (taken - 1) <= taken + 2 * n_threads + 1  # this look draws one more every time


def test_ordered_map_leaves_no_threads_behind_when_it_is_abandoned():
    before = threading.active_count()
    results = ordered_map(lambda item: item, range(100), 3)
    next(results)
    results.close()
    assert threading.active_count() == before


def blas_threads():
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.fixture
def two_blas_threads():
    """BLAS libraries with two threads each, also on a machine with one core; all of them known to the core."""
    tiles._controller.cache_clear()
    with threadpool_limits(limits=2, user_api="blas"):
        yield


@pytest.mark.usefixtures("two_blas_threads")
def test_blas_is_kept_to_one_thread_and_given_back():
    assert blas_threads() == {2}
    with one_blas_thread():
        assert blas_threads() == {1}
    assert blas_threads() == {2}
    with pytest.raises(DataError), one_blas_thread():
        raise DataError
    assert blas_threads() == {2}


@pytest.mark.usefixtures("two_blas_threads")
def test_blas_is_given_back_when_fits_of_several_threads_overlap():
    first, second = contextlib.ExitStack(), contextlib.ExitStack()
    first.enter_context(one_blas_thread())
    second.enter_context(one_blas_thread())
    first.close()
    assert blas_threads() == {1}, "the second one is still at work"
    second.close()
    assert blas_threads() == {2}


@pytest.mark.usefixtures("two_blas_threads")
def test_a_fit_runs_with_one_blas_thread(monkeypatch, make_cells):
    seen = []

    def start(*arguments):
        seen.append(blas_threads())
        return kmeans(*arguments)

    kmeans = STARTS["kmeans"]
    monkeypatch.setitem(STARTS, "kmeans", start)
    fit_mixture(make_cells(100, 2), 2, n_init=2)
    assert seen == [{1}, {1}]
    assert blas_threads() == {2}


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_results_do_not_depend_on_the_size_of_the_tiles(tune, make_mixture, make_cells, covariance_type):
    model, x = make_mixture(3, 4, covariance_type), make_cells(1000, 4)

    def results(values):
        tune(tile_values=values)
        return model.log_prob(x), model.responsibilities(x)

    for a, b in zip(results(1), results(10**9), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
