"""Techniques with a sequential form: at work over all experts at once, or over one more expert and a running state.

Both run the same code on the same numbers, so they give the same bits.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tasks.errors import UserError
from tasks.merge import select
from tasks.merge.layout import Tensor
from tasks.merge.measured import Measured
from tasks.merge.reading import read
from tasks.merge.stream import Piece, Window, square
from tasks.merge.technique import Technique, numbers
from tasks.merge.types import Array
from tasks.model.dtypes import FLOATS, INTEGERS, stored_as
from tasks.model.sinks import FileSink
from tasks.model.sources import TensorEntry, TensorSource

_KEPT = ("F32", "F64", *INTEGERS)
"""Dtypes that a state's arrays may have."""

State = dict[str, NDArray[Any]]
"""The running state of a sequential form: arrays of one piece's shape, or of their own, changed in place."""


class Accumulator(Technique):
    """A technique with an exact sequential form: a state, an update with one expert, and what the state amounts to.

    The batch form is the same code over all experts, so that both give the same bits; one that overrides `plan` for a
    faster batch form says how close they are.
    """

    state: ClassVar[tuple[str, ...]]
    """Names of the arrays of the running state, all zero at first."""
    state_norms: ClassVar[tuple[str, ...]] = ()
    """Arrays whose squared norm `finalise` needs (`Summary.squares`): over `grouping`, after the last update."""
    output_settings: ClassVar[frozenset[str]] = frozenset()
    """Settings that `finalise` alone reads: they may change from one time step to the next."""

    @property
    def sequential(self) -> bool:
        return self.lines is None or self.lines.alpha != "norm"

    def kept_as(self, array: str, tensor: Tensor) -> TensorEntry | None:  # noqa: ARG002
        """Shape and dtype of one array of the state for one tensor; None where the tensor has no such array.

        By default the tensor's own, in the precision it is computed in. An array of another shape (a Gram matrix, a
        sum by class) needs whole tensors (``unit = "tensor"``); dtypes are safetensors' names, F32, F64 and integers.
        """
        return TensorEntry(tensor.state_dtype, tensor.shape)

    def ranks(self, size: int) -> tuple[int, ...]:  # noqa: ARG002
        """Ranks r (1 ≤ r ≤ size) of magnitudes wanted: `Expert.thresholds` holds each r-th largest |x| of the group."""
        return ()

    @property
    def needs_norms(self) -> bool:
        """Whether `update` needs `Expert.norm`."""
        return False

    @classmethod
    def by_part(cls) -> tuple[str, ...]:
        """Every setting that is a number: each tensor is taken in and finalised with the settings of its own part.

        One that overrides `plan` says itself what it looks up by part.
        """
        return numbers(cls) if cls.plan is Accumulator.plan else super().by_part()

    @abstractmethod
    def update(self, state: State, x: Array, expert: Expert) -> None:
        """Take one expert's piece (its task vector where `relative`) into the state, in place."""

    @abstractmethod
    def finalise(self, state: State, summary: Summary) -> Array:
        """What the state amounts to: the merged task vector where `relative`, otherwise the merged weights.

        The state is stored by then; its arrays may be used up.
        """

    def plan(self, window: Window) -> Callable[[Piece], Array]:
        return batch_plan(self, window)


@dataclass(frozen=True, slots=True)
class Expert:
    """What an `Accumulator` may know of the expert it is given, for one piece."""

    piece: Piece
    weight: float
    total: float
    """Sum of the weights so far, this one included."""
    thresholds: Sequence[float]
    """As `Accumulator.ranks` asked."""
    norm: float
    """‖x‖ over the group, where `Accumulator.needs_norms`."""
    key: int
    """128-bit key of this expert's random numbers in this tensor."""
    measured: Measured | None = None
    """Its statistics, where the technique needs them."""
    data_weight: float = 1.0
    """`Technique.data_weight`."""

    @property
    def share(self) -> float:
        """This expert's share of the weights so far."""
        return self.weight / self.total if self.weight else 0.0

    def random16(self) -> NDArray[np.uint16]:
        """Uniform 16-bit integers, one an entry: a function of seed, technique, tensor, expert and position alone.

        They are drawn on the host whatever the device, so that a GPU drops the same entries.
        """
        first, shape = self.piece.start // 16, self.piece.shape
        skipped = self.piece.start - first * 16
        # Philox is counter based: one count is four 64-bit words, sixteen of our integers.
        words = np.random.Philox(key=self.key, counter=first).random_raw(-(-(skipped + self.piece.size) // 4))
        draws: NDArray[np.uint16] = words.astype("<u8", copy=False).view("<u2")
        return self.piece.window.device.put(draws[skipped : skipped + self.piece.size].reshape(shape))


@dataclass(frozen=True, slots=True)
class Summary:
    """What is known of all experts together when the state is turned into a model; over the group of the piece."""

    piece: Piece
    count: int
    """Number of experts."""
    total: float
    """Sum of their weights."""
    norms: float
    """Σ weight·‖x‖, where `Accumulator.needs_norms`."""
    moved: int
    """Number of experts with ‖x‖ > 0, where `Accumulator.needs_norms`."""
    squares: Mapping[str, float]
    """Squared norms of the arrays named in `Accumulator.state_norms`."""


@dataclass
class RunningState:
    """What earlier experts left: scalars here, arrays in files, one checkpoint an array of the state."""

    count: int = 0
    total: float = 0.0
    norms: dict[str, float] = field(default_factory=dict)
    """Σ weight·‖x‖ by group."""
    moved: dict[str, int] = field(default_factory=dict)
    """Number of experts with ‖x‖ > 0, by group."""
    arrays: Mapping[str, TensorSource] = field(default_factory=dict)

    def state(self, technique: Accumulator, piece: Piece) -> State:
        """The arrays for one piece: zero where there is no earlier state.

        Raises:
            UserError: one holds NaN or infinity.
        """
        name, device = piece.tensor.name, piece.window.device
        state: State = {}
        for array, entry in arrays_of(technique, piece.tensor).items():
            shape, start = _part(entry, piece)
            if not self.arrays:
                state[array] = np.zeros(shape, stored_as(entry.dtype), like=device.like)
            elif entry.dtype in FLOATS:
                precision = np.float64 if entry.dtype == "F64" else np.float32
                stop = start + math.prod(shape)
                state[array] = read(self.arrays[array], name, start, stop, device, precision).reshape(shape)
            else:
                raw = np.empty(shape, stored_as(entry.dtype))
                self.arrays[array].read_into(name, start * raw.itemsize, raw)
                state[array] = device.put(raw)
        return state


def arrays_of(technique: Accumulator, tensor: Tensor) -> dict[str, TensorEntry]:
    """How each array of a technique's state is kept for one tensor.

    Raises:
        UserError: the technique cuts tensors into pieces, and an array has another shape than they.
    """
    entries: dict[str, TensorEntry] = {}
    for array in technique.state:
        entry = technique.kept_as(array, tensor)
        if entry is None:
            continue
        if entry.dtype not in _KEPT:
            raise UserError(
                f"{technique.name}: its state keeps {array!r} as {entry.dtype}; a state holds {', '.join(_KEPT)}"
            )
        if technique.unit != "tensor" and entry.shape != tensor.shape:
            raise UserError(
                f"{technique.name}: its state keeps {array!r} in a shape of its own, {list(entry.shape)} for "
                f'{list(tensor.shape)}; that needs unit = "tensor"'
            )
        entries[array] = entry
    return entries


def _part(entry: TensorEntry, piece: Piece) -> tuple[tuple[int, ...], int]:
    """The shape of a piece of a kept array, and the entry it starts at."""
    if entry.shape == piece.tensor.shape:
        return piece.shape, piece.start
    return entry.shape, 0


def _require_kept(technique: Accumulator, array: str, entry: TensorEntry, stored: NDArray[Any], piece: Piece) -> None:
    """Refuse an array that an update left in another shape or dtype than it is kept in."""
    shape, _ = _part(entry, piece)
    if stored.shape != shape or stored.dtype != np.dtype(stored_as(entry.dtype)):
        raise UserError(
            f"{technique.name}: for {piece.tensor.name!r} its update left {array!r} as {stored.dtype} "
            f"{list(stored.shape)}, and the state keeps {entry.dtype} {list(shape)}; change the array in place"
        )


def state_entries(technique: Accumulator, tensors: Iterable[Tensor]) -> dict[str, dict[str, TensorEntry]]:
    """Of each array of a state, the tensors in its file."""
    entries: dict[str, dict[str, TensorEntry]] = {array: {} for array in technique.state}
    for tensor in tensors:
        for array, entry in arrays_of(technique, tensor).items():
            entries[array][tensor.name] = entry
    return entries


def batch_plan(technique: Accumulator, window: Window) -> Callable[[Piece], Array]:
    """The batch form. Where the outcome needs the finished state's norm, the state waits in a temporary file."""
    if not technique.state_norms:
        return accumulate(technique, window, RunningState(), {})
    sinks: dict[str, FileSink] = {}
    for array, entries in state_entries(technique, window.tensors).items():
        sinks[array] = FileSink(window.scratch / f"{array}.safetensors", entries)
        window.cleanup.callback(sinks[array].abandon)
    return accumulate(technique, window, RunningState(), sinks)


def accumulate(
    technique: Accumulator, window: Window, earlier: RunningState, sinks: Mapping[str, FileSink]
) -> Callable[[Piece], Array]:
    """Bring ``earlier`` up to date with the window's experts, writing its arrays to ``sinks`` where there are any.

    Returns what computes a piece of the merged model; it also writes the state where no norm of it is needed first.
    """
    ranks = {group: window.of(technique, window.first[group]).ranks(size) for group, size in window.sizes.items()}
    thresholds = select.largest(window, _magnitudes, ranks, len(window.experts)) if any(ranks.values()) else {}
    norms = window.norms() if technique.needs_norms else {}
    count = earlier.count + len(window.experts)

    @cache
    def taken(weights: tuple[float, ...]) -> tuple[list[int], list[float]]:
        """The order in which experts are taken in, and the sum of the weights after each."""
        # Negative weights last, so that the total so far stays positive.
        order = sorted(range(len(weights)), key=lambda i: weights[i] < 0)
        totals = list(np.cumsum([earlier.total, *(weights[i] for i in order)])[1:].tolist())
        if technique.normalizes and not 0 < totals[-1] < np.inf:
            raise UserError(
                f"{technique.name}: the weights sum to {totals[-1]:g}; choose weights whose sum is more than 0"
            )
        return order, totals

    for tensor in window.tensors:
        taken(tuple(window.weights_of(tensor)))
    for group, each in norms.items():
        weights = window.weights_of(window.first[group])
        for i in taken(tuple(weights))[0]:
            earlier.norms[group] = earlier.norms.get(group, 0.0) + weights[i] * float(each[i])
        earlier.moved[group] = earlier.moved.get(group, 0) + int(np.count_nonzero(each))

    def advanced(piece: Piece) -> State:
        state = earlier.state(technique, piece)
        group = piece.tensor.group
        chosen, weights = technique.at(piece), window.weights_of(piece.tensor)
        for i, total in zip(*taken(tuple(weights)), strict=True):
            expert = Expert(
                piece=piece,
                weight=weights[i],
                total=total,
                thresholds=[float(t) for t in thresholds[group][i]] if thresholds else (),
                norm=float(norms[group][i]) if norms else 0.0,
                key=window.keys(i, piece.tensor.name),
                measured=window.measured[i] if window.measured else None,
                data_weight=window.data_weights[i] if window.data_weights else 1.0,
            )
            chosen.update(state, piece.vector(i), expert)
        for array, entry in arrays_of(technique, piece.tensor).items() if sinks else ():
            stored = window.device.get(state[array])
            _require_kept(technique, array, entry, stored, piece)
            sinks[array].write(piece.tensor.name, _part(entry, piece)[1] * stored.itemsize, stored)
        return state

    def summary(piece: Piece, squares: Mapping[str, float]) -> Summary:
        group = piece.tensor.group
        norms, moved = earlier.norms.get(group, 0.0), earlier.moved.get(group, 0)
        total = taken(tuple(window.weights_of(piece.tensor)))[1][-1]
        return Summary(piece=piece, count=count, total=total, norms=norms, moved=moved, squares=squares)

    if not technique.state_norms:
        return lambda piece: technique.at(piece).finalise(advanced(piece), summary(piece, {}))

    def settle(piece: Piece) -> NDArray[np.float64]:
        state = advanced(piece)
        return np.array([square(state[array]) for array in technique.state_norms])

    squares = window.reduce(settle, unit=technique.unit)

    def finished(piece: Piece) -> Array:
        state: State = {}
        for array, entry in arrays_of(technique, piece.tensor).items():
            shape, start = _part(entry, piece)
            values = np.empty(shape, stored_as(entry.dtype))
            sinks[array].read_back(piece.tensor.name, start * values.itemsize, values)
            state[array] = window.device.put(values)
        lengths = dict(zip(technique.state_norms, squares[piece.tensor.group].tolist(), strict=True))
        return technique.at(piece).finalise(state, summary(piece, lengths))

    return finished


def _magnitudes(piece: Piece, experts: Sequence[int]) -> Array:
    vectors = piece.vectors(experts)
    return np.abs(vectors, out=vectors)
