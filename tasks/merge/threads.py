"""Worker threads, and one thread inside each linear algebra call: each worker has a tensor of its own to work on.

So a result does not depend on how many cores a machine has, and small products do not wait for each other.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

from numpy.linalg import _umath_linalg


class _Setting:
    """The library's thread count is the process's: the first merge in sets it, the last one out puts it back."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.before = 0


_setting = _Setting()


@cache
def library() -> ctypes.CDLL:
    """The linear algebra that NumPy's wheels carry: OpenBLAS, with LAPACK."""
    return ctypes.CDLL(_umath_linalg.__file__)  # finds the symbols of what it links to as well


@contextmanager
def one_thread() -> Iterator[None]:
    """NumPy's OpenBLAS on one thread; another library than its wheels carry is left as it is."""
    try:
        get, put = library().scipy_openblas_get_num_threads64_, library().scipy_openblas_set_num_threads64_
    except AttributeError:
        yield
        return
    with _setting.lock:
        if _setting.users == 0:
            _setting.before = get()
            put(1)
        _setting.users += 1
    try:
        yield
    finally:
        with _setting.lock:
            _setting.users -= 1
            if _setting.users == 0:
                put(_setting.before)


class Workers:
    """Worker threads: NumPy lets go of the interpreter lock while it computes, and the system while it reads."""

    def __init__(self, threads: int | None) -> None:
        self.threads = threads or len(os.sched_getaffinity(0))
        self.executor = ThreadPoolExecutor(self.threads) if self.threads > 1 else None

    def __enter__(self) -> Workers:
        self._blas = one_thread()
        self._blas.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._blas.__exit__(None, None, None)
        if self.executor is not None:
            self.executor.shutdown()
