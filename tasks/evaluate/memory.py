"""Activations in memory that is there already."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's mallopt (malloc.h)."""
MOST = 2**31 - 1
"""Bytes: what mallopt takes at most."""
ADAPTED = 32 << 20
"""Bytes: what glibc's own threshold grows to at most."""


@contextmanager
def keeping_memory() -> Iterator[None]:
    """Have glibc keep what torch frees for what torch takes next, while the block lasts.

    By itself glibc maps every large block anew, and at its first use the kernel fills it with zeros, page by page: a
    tenth of the processor time of a ViT-B/32's image tower. With other C libraries nothing is done.
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
