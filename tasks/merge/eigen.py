"""The largest eigenvalues of a symmetric matrix, by LAPACK's dsyevr in the library that NumPy carries.

`numpy.linalg.eigh` knows all eigenvectors or none. Where a few are wanted, of 768 say 96, that takes twice the time.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from tasks.merge import threads
from tasks.merge.types import Float64

_FEW = 4
"""Above one in so many eigenvectors, all of them take no longer."""


def largest(x: Float64, most: int) -> tuple[Float64, Float64]:
    """The ``most`` largest eigenvalues of a symmetric matrix (n, n), falling, and their vectors (n, most).

    ``x`` is used up. Arrays of a GPU, and libraries without dsyevr, have all eigenvectors computed.
    """
    routine = _routine()
    if routine is None or not isinstance(x, np.ndarray) or not 0 < _FEW * most <= len(x):
        values, vectors = np.linalg.eigh(x)
        return values[::-1][:most], vectors[:, ::-1][:, :most]
    n, count = len(x), np.zeros(1, np.int64)
    x = np.ascontiguousarray(x)
    values, vectors, support = np.empty(n), np.empty((most, n)), np.empty(2 * most, np.int64)
    work, counts = np.empty(1), np.empty(1, np.int64)
    for space in (False, True):  # LAPACK is asked for the space that it needs, and then to work
        if space:
            work, counts = np.empty(int(work[0])), np.empty(int(counts[0]), np.int64)
        info = _call(
            routine, b"V", b"I", b"L", n, x, n, 0.0, 0.0, n - most + 1, n, 0.0, count, values, vectors, n, support,
            work, work.size if space else -1, counts, counts.size if space else -1,
        )  # fmt: skip
        if info:
            raise np.linalg.LinAlgError(f"dsyevr: {info}")
    return values[:most][::-1], vectors[::-1].T


def _routine() -> Any:
    return getattr(threads.library(), "scipy_dsyevr_64_", None)


def _call(routine: Any, *arguments: bytes | int | float | np.ndarray[Any, Any]) -> int:
    """Call a routine of Fortran: each argument by its address, then the status, then the lengths of its texts."""
    info = ctypes.c_int64(0)
    given: list[Any] = []
    for one in arguments:
        if isinstance(one, np.ndarray):
            given.append(ctypes.c_void_p(one.ctypes.data))
        elif isinstance(one, bytes):
            given.append(ctypes.c_char_p(one))
        else:
            given.append(ctypes.byref(ctypes.c_double(one) if isinstance(one, float) else ctypes.c_int64(one)))
    texts = [ctypes.c_size_t(len(one)) for one in arguments if isinstance(one, bytes)]
    routine(*given, ctypes.byref(info), *texts)
    return info.value
