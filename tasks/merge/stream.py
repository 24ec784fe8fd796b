"""Streaming over models: pieces of tensors in parallel, statistics that no slicing or thread count changes.

Memory is that of the pieces in work, whatever the number and the size of the models. Statistics are summed over pieces
of a fixed size, in order, so that they do not depend on how the merge itself is sliced.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tasks.merge.device import Device
from tasks.merge.layout import Tensor
from tasks.merge.measured import Gram, Measured
from tasks.merge.reading import read
from tasks.merge.types import Array, Float64, Unit
from tasks.model.sources import TensorSource

Result = TypeVar("Result")
Chosen = TypeVar("Chosen")
_GRAM_STRIP = 4096
_PART = 1 << 20
"""Entries read at a time: a piece may be a whole tensor, and what is needed beside it should not be."""
_STACKED = 8
"""Up to so many models, a stack of them does not shorten the pieces."""


@dataclass(eq=False)
class Piece:
    """A slice of one tensor, of all models: reads what a formula asks for."""

    window: Window
    tensor: Tensor
    start: int
    stop: int
    shape: tuple[int, ...]

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
            return self.zeros()
        return self._read(self.window.base)

    def vector(self, index: int) -> Array:
        """The task vector θ − θ_0 of one model where the technique is relative, otherwise its weights; new memory."""
        if self.size > self._part:
            whole = np.empty(self.size, self.tensor.precision, like=self.window.device.like)
            for part in self.parts():
                whole[part.start - self.start : part.stop - self.start] = part.vector(index)
            return whole.reshape(self.shape)
        x = self._read(self.window.experts[index])
        return np.subtract(x, self.base, out=x) if self.window.relative else x

    def vectors(self, which: Sequence[int] | None = None) -> Array:
        """`vector` of all models, or of some, stacked: (models, …)."""
        models = range(self.count) if which is None else which
        stack = np.empty((len(models), *self.shape), self.tensor.precision, like=self.window.device.like)
        for place, i in enumerate(models):
            stack[place] = self.vector(i)
        return stack

    def parts(self) -> Iterator[Piece]:
        """The same entries in slices that are cheap to hold; itself where it is one."""
        if self.size <= self._part:
            yield self
            return
        for start in range(self.start, self.stop, self._part):
            stop = min(self.stop, start + self._part)
            yield Piece(self.window, self.tensor, start, stop, (stop - start,))

    @property
    def _part(self) -> int:
        return max(_PART, self.window.device.slice_entries)

    def fisher(self, measured: Measured) -> Array:
        """A model's diagonal Fisher, of the piece's shape (`Measured.fisher`)."""
        return measured.fisher(self.tensor, self.start, self.stop, self.window.device).reshape(self.shape)

    def gram(self, measured: Measured) -> Gram | None:
        """A model's Gram matrix of the whole tensor's inputs (`Measured.gram`)."""
        return measured.gram(self.tensor, self.window.device)

    def zeros(self) -> Array:
        """Zeros of the piece's shape and precision, where its arrays are."""
        return np.zeros(self.shape, self.tensor.precision, like=self.window.device.like)

    def _read(self, source: TensorSource) -> Array:
        tensor, device = self.tensor, self.window.device
        return read(source, tensor.name, self.start, self.stop, device, tensor.precision).reshape(self.shape)


@dataclass(eq=False, kw_only=True)
class Window:
    """Some tensors that are merged together, with the statistics passes that a technique may make over them."""

    base: TensorSource | None
    experts: Sequence[TensorSource]
    tensors: Sequence[Tensor]
    relative: bool
    stacked: bool
    """Whether a piece of all models is held at once: pieces are then the shorter, the more models there are."""
    weights: Sequence[float]
    """Of the models; `weights_of` has those of one tensor."""
    keys: Callable[[int, str], int]
    """(expert, tensor name) → 128-bit key for random numbers."""
    scratch: Path
    """A folder for temporary files."""
    cleanup: ExitStack
    """Runs when the window's tensors are done."""
    pool: ThreadPoolExecutor | None
    threads: int
    device: Device
    measured: Sequence[Measured] = ()
    """The statistics of each expert, for a technique that needs them."""
    data_weights: Sequence[float] = ()
    """`Technique.data_weight` of each expert."""
    parts: Mapping[str, Any] = field(default_factory=dict)
    """The technique with the settings of its part, by tensor (`of`); the others have those of all."""
    part_weights: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """The models' weights in a part, by tensor."""

    def of(self, technique: Chosen, tensor: Tensor) -> Chosen:
        """A technique with the settings of the part that a tensor is in."""
        own = self.parts.get(tensor.name)
        return own if isinstance(own, type(technique)) else technique

    def weights_of(self, tensor: Tensor) -> Sequence[float]:
        """The models' weights in one tensor."""
        return self.part_weights.get(tensor.name, self.weights)

    @cached_property
    def first(self) -> dict[str, Tensor]:
        """A tensor of each group."""
        return {tensor.group: tensor for tensor in reversed(self.tensors)}

    def on(self, device: Device) -> Window:
        """The same, its arrays on another device."""
        return replace(self, device=device)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Entries in each group."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors:
            sizes[tensor.group] = sizes.get(tensor.group, 0) + tensor.size
        return sizes

    @cached_property
    def precisions(self) -> dict[str, type[np.floating[Any]]]:
        """The widest precision in each group."""
        groups: dict[str, type[np.floating[Any]]] = {}
        for tensor in self.tensors:
            if groups.get(tensor.group) is not np.float64:
                groups[tensor.group] = tensor.precision
        return groups

    def pieces(self, unit: Unit, length: int) -> Iterator[Piece]:
        """All tensors cut into pieces of about ``length`` entries, or of whole rows or tensors."""
        if self.stacked:
            length = self._shortened(length)
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

    def _shortened(self, length: int) -> int:
        return max(1, length * _STACKED // max(_STACKED, len(self.experts)))

    def each(
        self,
        compute: Callable[[Piece], Result],
        pieces: Iterable[Piece],
        use: Callable[[Piece, Result], None] = lambda _piece, _result: None,
    ) -> None:
        """``compute`` every piece, in parallel; ``use`` takes the results one at a time, in order, as they come.

        A result that ``use`` takes is to be on the host (`Device.get`): each thread has its own queue on a GPU.
        """
        # Each works on a copy of its piece, so that the base that it caches is let go.
        if self.pool is None:
            with self.device.active():
                for piece in pieces:
                    use(piece, compute(copy(piece)))
            return
        queue = enumerate(pieces)
        lock = threading.Lock()
        early: dict[int, tuple[Piece, Result]] = {}
        due = 0
        failed = False

        def work() -> None:
            nonlocal due, failed
            try:
                with self.device.active():
                    while True:
                        with lock:
                            place, piece = next(queue, (-1, None))
                        if piece is None or failed:
                            return
                        result = compute(copy(piece))
                        with lock:
                            early[place] = piece, result
                            while due in early:
                                use(*early.pop(due))
                                due += 1
            except BaseException:
                failed = True
                raise

        for future in [self.pool.submit(work) for _ in range(self.threads)]:
            future.result()

    def reduce(
        self,
        compute: Callable[[Piece], Any],
        combine: Callable[[Any, Any], Any] = np.add,
        unit: Unit = "slice",
        length: int | None = None,
    ) -> dict[str, Any]:
        """``compute`` (an array in float64) of all pieces, combined over each group: sums, unless told otherwise.

        The outcome is on the host.
        """
        groups: dict[str, Any] = {}

        def use(piece: Piece, value: Any) -> None:
            group = piece.tensor.group
            groups[group] = combine(groups[group], value) if group in groups else value

        pieces = self.pieces(unit, length or self.device.statistics_entries)
        self.each(lambda piece: self.device.get(compute(piece)), pieces, use)
        return groups

    def gram(self) -> dict[str, Float64]:
        """Inner products of all models' vectors, (models, models) in float64, over each group."""

        def products(piece: Piece) -> Float64:
            n, size = piece.count, piece.size
            strips = -(-size // _GRAM_STRIP)
            x = np.zeros((n, strips * _GRAM_STRIP), like=self.device.like)
            for i in range(n):
                x[i, :size] = piece.vector(i)
            stacked = x.reshape(n, strips, _GRAM_STRIP).transpose(1, 0, 2)
            total: Float64 = (stacked @ stacked.transpose(0, 2, 1)).sum(axis=0)
            return total

        return self.reduce(products, length=self._shortened(self.device.statistics_entries))

    def norms(self) -> dict[str, Float64]:
        """Each model's norm over each group, (models,) in float64."""
        squares = self.reduce(lambda p: np.array([square(p.vector(i)) for i in range(p.count)]))
        return {group: np.sqrt(total) for group, total in squares.items()}


def square(x: Array) -> float:
    """‖x‖², summed in float64."""
    flat = x.reshape(-1)
    return float(np.einsum("i,i->", flat, flat, dtype=np.float64))
