"""Which samples make batch number i: a pure function of seed, time step and i, whatever ran before."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from tasks import randomness


def counts(shares: Sequence[float], sizes: Sequence[int], batch_size: int) -> list[int]:
    """Samples of each pool in a batch, summing to ``batch_size`` exactly.

    An empty pool's share goes to the others in proportion to theirs (TIME's first step splits the buffer's share so).
    Rounded by largest remainder, ties to the earlier pool. At least one pool with a share must have samples.
    """
    held = [share if size else 0.0 for share, size in zip(shares, sizes, strict=True)]
    exact = [batch_size * share / sum(held) for share in held]
    whole = [int(x) for x in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (whole[i] - exact[i], i))
    for i in by_remainder[: batch_size - sum(whole)]:
        whole[i] += 1
    return whole


class Order:
    """Draws without replacement, pool by pool: every pool is gone through in a fresh random order each epoch."""

    def __init__(self, seed: int, step: int, names: Sequence[str], sizes: Sequence[int], per_batch: Sequence[int]):
        self.per_batch = list(per_batch)
        self._sizes = list(sizes)

        @cache
        def permutation(pool: int, epoch: int) -> np.ndarray:
            return randomness.generator(seed, step, "order", names[pool], epoch).permutation(sizes[pool])

        self._permutation = permutation

    def rows(self, index: int) -> list[np.ndarray]:
        """Rows of each pool in batch ``index``, int64, of the lengths ``per_batch``."""
        return [self._draw(pool, index * count, count) for pool, count in enumerate(self.per_batch)]

    def _draw(self, pool: int, start: int, count: int) -> np.ndarray:
        if count == 0:
            return np.empty(0, dtype=np.int64)
        size = self._sizes[pool]
        parts = []
        while count:
            epoch, within = divmod(start, size)
            part = self._permutation(pool, epoch)[within : within + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts)
