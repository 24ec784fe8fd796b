"""Reuse of freed memory for activations."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's mallopt (malloc.h)."""
MOST = 2**31 - 1
"""Bytes: the largest value that mallopt accepts."""
ADAPTED = 32 << 20
"""Bytes: the largest value of glibc's own dynamic threshold."""


@contextmanager
def keeping_memory() -> Iterator[None]:
    """During the block, make glibc reuse memory that torch has freed.

    By default glibc maps every large block anew, and at its first use the kernel fills it with zeros, page by page: a
    tenth of the processor time of a ViT-B/32's image tower. With other C libraries this does nothing.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, MOST)
    libc.mallopt(M_TRIM_THRESHOLD, MOST)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_THRESHOLD, ADAPTED)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * ADAPTED)
        libc.malloc_trim(0)
