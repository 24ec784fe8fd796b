"""One thread inside each linear algebra call: the engine's own threads each have a tensor to work on.

So a result does not depend on how many cores a machine has, and small products do not wait for each other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from numpy.linalg import _umath_linalg  # type: ignore[attr-defined]


@contextmanager
def one_thread() -> Iterator[None]:
    """NumPy's OpenBLAS on one thread; another library than its wheels carry is left as it is."""
    library = ctypes.CDLL(_umath_linalg.__file__)  # finds the symbols of what it links to as well
    try:
        get, put = library.scipy_openblas_get_num_threads64_, library.scipy_openblas_set_num_threads64_
    except AttributeError:
        yield
        return
    before = get()
    put(1)
    try:
        yield
    finally:
        put(before)
