"""Streaming over models: pieces of tensors in parallel, statistics that no slicing or thread count changes.

Memory is that of the pieces in work, whatever the number and the size of the models. Statistics are summed over pieces
of a fixed size, in order, so that they do not depend on how the merge itself is sliced.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tasks.merge import select
from tasks.merge.layout import Tensor
from tasks.merge.sources import Source, read
from tasks.merge.technique import Array, Unit

Result = TypeVar("Result")
Float64 = NDArray[np.float64]

STATISTICS_SLICE = 1 << 15
"""Entries in a piece of a statistics pass; fixed, since it decides the order of float sums."""
_GRAM_STRIP = 4096


class Piece:
    """A slice of one tensor, of all models: reads what a formula asks for."""

    def __init__(self, window: Window, tensor: Tensor, start: int, stop: int, shape: tuple[int, ...]) -> None:
        self.window = window
        self.tensor = tensor
        self.start = start
        self.stop = stop
        self.shape = shape

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def count(self) -> int:
        """Number of models (experts)."""
        return len(self.window.experts)

    @cached_property
    def base(self) -> Array:
        """θ_0; zeros where there is no base."""
        if self.window.base is None:
            return np.zeros(self.shape, np.float32)
        return read(self.window.base, self.tensor.name, self.start, self.stop).reshape(self.shape)

    def vector(self, index: int) -> Array:
        """The task vector θ − θ_0 of one model where the technique is relative, otherwise its weights; new memory."""
        source, tensor = self.window.experts[index], self.tensor
        x = read(source, tensor.name, self.start, self.stop).reshape(self.shape)
        return np.subtract(x, self.base, out=x) if self.window.relative else x

    def vectors(self) -> Array:
        """`vector` of all models, stacked: (models, …)."""
        stack = np.empty((self.count, *self.shape), np.float32)
        for i in range(self.count):
            stack[i] = self.vector(i)
        return stack


class Window:
    """Some tensors that are merged together, with the statistics passes that a technique may make over them."""

    def __init__(
        self,
        base: Source | None,
        experts: Sequence[Source],
        tensors: Sequence[Tensor],
        *,
        relative: bool,
        weights: Sequence[float],
        keys: Callable[[int, str], int],
        scratch: Path,
        cleanup: ExitStack,
        pool: ThreadPoolExecutor | None,
        threads: int,
    ) -> None:
        self.base = base
        self.experts = experts
        self.tensors = tensors
        self.relative = relative
        self.weights = weights
        self.keys = keys
        """(expert, tensor name) → 128-bit key for random numbers."""
        self.scratch = scratch
        """A folder for temporary files."""
        self.cleanup = cleanup
        """Runs when the window's tensors are done."""
        self._pool = pool
        self._threads = threads

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Entries in each group."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors:
            sizes[tensor.group] = sizes.get(tensor.group, 0) + tensor.size
        return sizes

    def pieces(self, unit: Unit, length: int) -> Iterator[Piece]:
        """All tensors cut into pieces of about ``length`` entries, or of whole rows or tensors."""
        for tensor in self.tensors:
            size, shape = tensor.size, tensor.shape
            if unit == "tensor":
                yield Piece(self, tensor, 0, size, shape or (1,))
                continue
            columns = 1 if unit == "slice" else (size // shape[0] if len(shape) > 1 else size)
            step = max(1, length // columns) * columns
            for start in range(0, size, step):
                stop = min(size, start + step)
                cut = (stop - start,) if unit == "slice" else ((stop - start) // columns, columns)
                yield Piece(self, tensor, start, stop, cut)

    def each(self, compute: Callable[[Piece], Result], pieces: Sequence[Piece]) -> list[Result]:
        """``compute`` of every piece, in parallel; results in order."""
        results: list[Any] = [None] * len(pieces)
        # Each works on a copy of its piece, so that the base that it caches is let go.
        if self._pool is None:
            return [compute(copy(piece)) for piece in pieces]
        numbers = itertools.count()
        failed = False

        def work() -> None:
            nonlocal failed
            while not failed and (i := next(numbers)) < len(pieces):
                try:
                    results[i] = compute(copy(pieces[i]))
                except BaseException:
                    failed = True
                    raise

        for future in [self._pool.submit(work) for _ in range(self._threads)]:
            future.result()
        return results

    def reduce(
        self, compute: Callable[[Piece], Any], combine: Callable[[Any, Any], Any] = np.add, unit: Unit = "slice"
    ) -> dict[str, Any]:
        """``compute`` (an array in float64) of all pieces, combined over each group: sums, unless told otherwise."""
        pieces = list(self.pieces(unit, STATISTICS_SLICE))
        groups: dict[str, Any] = {}
        for piece, value in zip(pieces, self.each(compute, pieces), strict=True):
            group = piece.tensor.group
            groups[group] = combine(groups[group], value) if group in groups else value
        return groups

    def gram(self) -> dict[str, Float64]:
        """Inner products of all models' vectors, (models, models) in float64, over each group."""

        def products(piece: Piece) -> Float64:
            n, size = piece.count, piece.size
            strips = -(-size // _GRAM_STRIP)
            x = np.zeros((n, strips * _GRAM_STRIP))
            for i in range(n):
                x[i, :size] = piece.vector(i)
            stacked = x.reshape(n, strips, _GRAM_STRIP).transpose(1, 0, 2)
            total: Float64 = (stacked @ stacked.transpose(0, 2, 1)).sum(axis=0)
            return total

        return self.reduce(products)

    def norms(self) -> dict[str, Float64]:
        """Each model's norm over each group, (models,) in float64."""
        squares = self.reduce(lambda p: np.array([square(p.vector(i)) for i in range(p.count)]))
        return {group: np.sqrt(total) for group, total in squares.items()}

    def largest(
        self, values: Callable[[Piece], Array], ranks: Mapping[str, tuple[int, ...]]
    ) -> dict[str, NDArray[np.float32]]:
        """Exact order statistics of each group: for every row of ``values`` (rows, entries; ≥ 0), its r-th largest.

        ``ranks`` has the r's (1 ≤ r ≤ size) of each group. Returns (rows, ranks) per group.
        """
        return select.largest(self, values, ranks)


def square(x: Array) -> float:
    """‖x‖², summed in float64."""
    flat = x.reshape(-1)
    return float(np.einsum("i,i->", flat, flat, dtype=np.float64, casting="same_kind"))
