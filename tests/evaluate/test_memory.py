"""What evaluation does about memory."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

import pytest
import torch

from tasks.evaluate.memory import keeping_memory

MB = 1 << 20


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_memory_that_is_freed_is_kept_while_the_block_lasts_and_no_longer() -> None:
    outside = faults()
    ctypes.CDLL(None).malloc_trim(0)  # free pages that other tests left would count as the block's
    before = resident()
    with keeping_memory():
        for _ in range(4):  # until the heap has grown to hold an aligned block beside what is left of one
            faults()
        assert 10 * faults() < outside
        assert resident() - before > 50 * MB
    assert resident() - before < 10 * MB


def faults() -> int:
    """Pages that the kernel brings in for some blocks of 64 MB, one after another."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(64 * MB // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
