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

#: Size in bytes of the block in :func:`keep_freed_memory`: just below the largest block that glibc can learn to keep.
_KEPT_BLOCK = 31 << 20

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def tile_slices(n: int, values_per_row: int) -> Iterator[slice]:
    """Slices that cover ``range(n)``, each with so few rows that their ``values_per_row`` values fit in the cache."""
    return range_slices(n, max(64, tuning().tile_values // max(1, values_per_row)))


def range_slices(n: int, step: int) -> Iterator[slice]:
    """Slices of ``step`` rows, the last one maybe shorter, that cover ``range(n)``."""
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def ordered_map(function: Callable[[_Item], _Result], items: Iterable[_Item], n_threads: int = 1) -> Iterator[_Result]:
    """Results of ``function`` in the order of ``items``, computed on ``n_threads`` threads.

    Sums over the results are bitwise the same for every number of threads. At most two results per thread are held
    until the caller takes them.
    """
    if n_threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(n_threads) as pool:
        waiting: deque[Future[_Result]] = deque()
        for item in items:
            waiting.append(
                pool.submit(copy_context().run, function, item)
            )  # the context holds numpy's settings for floating-point warnings
            if len(waiting) > 2 * n_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def keep_freed_memory() -> None:
    """Let the C library keep freed blocks of up to 32 MB for the next array of that size.

    By default, glibc returns the memory of a large array to the system. The next array then costs a page fault for
    every 4 KB, which takes longer than the arithmetic of a tile. Once a large block has been freed, glibc keeps blocks
    of that size. The block that is freed here is never written to. With other C libraries this has no effect.
    """
    np.empty(_KEPT_BLOCK, dtype=np.uint8)


class _OneBlasThread(AbstractContextManager[None]):
    """Limits BLAS to one thread while any thread is inside: the first to enter sets the limit, the last removes it."""

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
    """Limit BLAS to one thread in a ``with`` block: a fit has its own threads, and more would wait for each other."""
    return _SHARED
