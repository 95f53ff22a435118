"""Working through the rows of the data in pieces whose intermediate results stay in the cache, on several threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import copy_context
from functools import cache
from threading import Lock
from typing import TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from cohortgmm.mixture.numerics.tuning import tuning

#: Just below the largest size up to which glibc raises its threshold.
_KEPT_BLOCK = 31 << 20

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def tile_slices(n: int, values_per_row: int) -> Iterator[slice]:
    """Slices that cover ``range(n)``, each of as many rows as keep ``values_per_row`` times them in the cache."""
    return range_slices(n, max(64, tuning().tile_values // max(1, values_per_row)))


def range_slices(n: int, step: int) -> Iterator[slice]:
    """Slices of ``step`` rows, the last one maybe shorter, that cover ``range(n)``."""
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def ordered_map(function: Callable[[_Item], _Result], items: Iterable[_Item], n_threads: int = 1) -> Iterator[_Result]:
    """Results of ``function`` in the order of ``items``, computed on ``n_threads`` threads.

    Sums over the results are the same bits for every number of threads. No more than two results per thread wait to
    be taken.
    """
    if n_threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(n_threads) as pool:
        waiting: deque[Future[_Result]] = deque()
        for item in items:
            waiting.append(
                pool.submit(copy_context().run, function, item)
            )  # what numpy is to warn of is in the context
            if len(waiting) > 2 * n_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def keep_freed_memory() -> None:
    """Let the C library keep freed blocks of up to 32 MB for the next array of that size.

    glibc gives the memory of large arrays back to the system and pays a page fault for every 4 KB of the next one,
    which costs more than the arithmetic of a tile, until a large block has been freed once: then it keeps blocks of
    that size. The block here is never touched. Elsewhere this does nothing.
    """
    np.empty(_KEPT_BLOCK, dtype=np.uint8)


class _OneBlasThread(AbstractContextManager[None]):
    """Limits BLAS for all who are inside: the first who enters sets the limit, the last who leaves lifts it."""

    def __init__(self) -> None:
        self._lock, self._inside = Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._limit = _controller().limit(limits=1, user_api="blas")
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._limit.restore_original_limits()


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


_SHARED = _OneBlasThread()


def one_blas_thread() -> AbstractContextManager[None]:
    """Keep BLAS to one thread meanwhile: the threads of a fit share tiles, and more would only wait for each other."""
    return _SHARED
