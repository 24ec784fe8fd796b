"""One thread inside each linear algebra call: the engine's own threads each have a tensor to work on.

So a result does not depend on how many cores a machine has, and small products do not wait for each other.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from numpy.linalg import _umath_linalg


class _Setting:
    """The library's thread count is the process's: the first merge in sets it, the last one out puts it back."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.before = 0


_setting = _Setting()


@contextmanager
def one_thread() -> Iterator[None]:
    """NumPy's OpenBLAS on one thread; another library than its wheels carry is left as it is."""
    library = ctypes.CDLL(_umath_linalg.__file__)  # finds the symbols of what it links to as well
    try:
        get, put = library.scipy_openblas_get_num_threads64_, library.scipy_openblas_set_num_threads64_
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
