"""Which samples are in batch number i: a pure function of seed, time step and i."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

from tasks import randomness


def counts(shares: Sequence[float], sizes: Sequence[int], batch_size: int) -> list[int]:
    """Samples of each pool (pretraining, update, buffer) in a batch, summing to ``batch_size`` exactly.

    Shares are rounded down, and the remainder goes to the first pools, one sample each: TIME's 169, 175 and 168 of 512.
    The part of an empty pool is split evenly between the other pools with a share, odd samples to the update:
    so TIME's first step splits the buffer between pretraining and update. At least one pool with a share must have
    samples.
    """
    whole = [math.floor(batch_size * share + 1e-9) for share in shares]  # 0.29 * 100 is 28.999…
    shared = [i for i, share in enumerate(shares) if share]
    for i in shared[: batch_size - sum(whole)]:
        whole[i] += 1
    heirs = [i for i in shared if sizes[i]]
    heirs.sort(key=lambda i: i != 1)  # the update first
    for i, size in enumerate(sizes):
        if not size:
            left, whole[i] = whole[i], 0
            for place, heir in enumerate(heirs):
                whole[heir] += left // len(heirs) + (place < left % len(heirs))
    return whole


class Draws(Protocol):
    """An endless sequence of a pool's rows, each position computed without the ones before."""

    def __call__(self, start: int, count: int) -> np.ndarray:
        """The rows at positions ``start`` to ``start + count``, int64."""


class Shuffled:
    """Every row once per epoch, each epoch in a fresh random order."""

    def __init__(self, size: int, seed: int, *purpose: str | int):
        self._size = size

        @lru_cache(maxsize=4)
        def permutation(epoch: int) -> np.ndarray:
            return randomness.generator(seed, *purpose, epoch).permutation(size)

        self._permutation = permutation

    def __call__(self, start: int, count: int) -> np.ndarray:
        parts = [np.empty(0, dtype=np.int64)]
        while count:
            epoch, within = divmod(start, self._size)
            parts.append(self._permutation(epoch)[within : within + count])
            start, count = start + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts)


class Balanced:
    """Groups of rows take turns, in a fresh random order each round; within a group as `Shuffled`."""

    def __init__(self, groups: np.ndarray, seed: int, *purpose: str | int):
        """``groups`` names each row's group, shape (N,)."""
        order = np.argsort(groups, kind="stable")
        _, starts = np.unique(groups[order], return_index=True)
        self._members = np.split(order, starts[1:])
        self._turns = Shuffled(len(self._members), seed, *purpose, "turns")
        self._within = [Shuffled(len(m), seed, *purpose, "within", i) for i, m in enumerate(self._members)]

    def __call__(self, start: int, count: int) -> np.ndarray:
        rounds = np.arange(start, start + count) // len(self._members)
        turns = self._turns(start, count)
        drawn = [self._members[g][self._within[g](int(r), 1)] for g, r in zip(turns, rounds, strict=True)]
        return np.concatenate([np.empty(0, dtype=np.int64), *drawn])


class Order:
    """The rows of each pool in each batch."""

    def __init__(self, draws: Sequence[Draws], per_batch: Sequence[int]):
        self._draws = list(draws)
        self.per_batch = list(per_batch)

    def rows(self, index: int) -> list[np.ndarray]:
        """Rows of each pool in batch ``index``, int64, of the lengths ``per_batch``."""
        return [
            draw(index * count, count) if count else np.empty(0, dtype=np.int64)
            for draw, count in zip(self._draws, self.per_batch, strict=True)
        ]


def reservoir(seed: int, names: Sequence[str], sizes: Sequence[int], bound: int) -> np.ndarray:
    """At most ``bound`` rows of pools laid end to end, int64, ascending: a uniform sample of all that came so far.

    Every sample has a random rank of its own, and the lowest ranks are selected (Vitter, 1985, in the form that
    allows a stream in pieces): a sample that was dropped after an earlier pool is never selected later.
    """
    ranks = np.concatenate(
        [
            np.empty(0),
            *(randomness.generator(seed, "reservoir", n).random(s) for n, s in zip(names, sizes, strict=True)),
        ]
    )
    return np.sort(np.argsort(ranks, kind="stable")[:bound])
