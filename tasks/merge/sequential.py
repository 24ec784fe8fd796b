"""Techniques with a sequential form: at work over all experts at once, or over one more expert and a running state.

Both run the same code on the same numbers, so they give the same bits.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tasks.errors import UserError
from tasks.merge import select
from tasks.merge.reading import read
from tasks.merge.stream import Piece, Window, square
from tasks.merge.technique import Technique
from tasks.merge.types import Array
from tasks.model.sinks import FileSink
from tasks.model.sources import TensorEntry, TensorSource

State = dict[str, Array]
"""The running state of a sequential form: arrays of one piece's shape, changed in place."""


class Accumulator(Technique):
    """A technique with an exact sequential form: a state, an update with one expert, and what the state amounts to.

    The batch form is the same code over all experts, so that both give the same bits; one that overrides `plan` for a
    faster batch form says how close they are.
    """

    state: ClassVar[tuple[str, ...]]
    """Names of the arrays of the running state, all zero at first."""
    state_norms: ClassVar[tuple[str, ...]] = ()
    """Arrays whose squared norm `finalise` needs (`Summary.squares`): over `grouping`, after the last update."""

    @property
    def sequential(self) -> bool:
        return self.lines is None or self.lines.alpha != "norm"

    def ranks(self, size: int) -> tuple[int, ...]:  # noqa: ARG002
        """Ranks r (1 ≤ r ≤ size) of magnitudes wanted: `Expert.thresholds` holds each r-th largest |x| of the group."""
        return ()

    @property
    def needs_norms(self) -> bool:
        """Whether `update` needs `Expert.norm`."""
        return False

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
        if not self.arrays:
            return {array: piece.zeros() for array in technique.state}
        name, device = piece.tensor.name, piece.window.device
        return {
            array: read(self.arrays[array], name, piece.start, piece.stop, device, piece.tensor.precision).reshape(
                piece.shape
            )
            for array in technique.state
        }


def batch_plan(technique: Accumulator, window: Window) -> Callable[[Piece], Array]:
    """The batch form. Where the outcome needs the finished state's norm, the state waits in a temporary file."""
    if not technique.state_norms:
        return accumulate(technique, window, RunningState(), {})
    entries = {t.name: TensorEntry(t.state_dtype, t.shape) for t in window.tensors}
    sinks: dict[str, FileSink] = {}
    for array in technique.state:
        sinks[array] = FileSink(window.scratch / f"{array}.safetensors", entries)
        window.cleanup.callback(sinks[array].abandon)
    return accumulate(technique, window, RunningState(), sinks)


def accumulate(
    technique: Accumulator, window: Window, earlier: RunningState, sinks: Mapping[str, FileSink]
) -> Callable[[Piece], Array]:
    """Bring ``earlier`` up to date with the window's experts, writing its arrays to ``sinks`` where there are any.

    Returns what computes a piece of the merged model; it also writes the state where no norm of it is needed first.
    """
    ranks = {group: technique.ranks(size) for group, size in window.sizes.items()}
    thresholds = select.largest(window, _magnitudes, ranks, len(window.experts)) if any(ranks.values()) else {}
    norms = window.norms() if technique.needs_norms else {}
    count = earlier.count + len(window.experts)
    # Negative weights last, so that the total so far stays positive.
    order = sorted(range(len(window.experts)), key=lambda i: window.weights[i] < 0)
    totals = list(np.cumsum([earlier.total, *(window.weights[i] for i in order)])[1:].tolist())
    if technique.normalizes and not 0 < totals[-1] < np.inf:
        raise UserError(f"{technique.name}: the weights sum to {totals[-1]:g}; choose weights whose sum is more than 0")
    for group, each in norms.items():
        for i in order:
            earlier.norms[group] = earlier.norms.get(group, 0.0) + window.weights[i] * float(each[i])
        earlier.moved[group] = earlier.moved.get(group, 0) + int(np.count_nonzero(each))

    def advanced(piece: Piece) -> State:
        state = earlier.state(technique, piece)
        group = piece.tensor.group
        for i, total in zip(order, totals, strict=True):
            expert = Expert(
                piece=piece,
                weight=window.weights[i],
                total=total,
                thresholds=[float(t) for t in thresholds[group][i]] if thresholds else (),
                norm=float(norms[group][i]) if norms else 0.0,
                key=window.keys(i, piece.tensor.name),
            )
            technique.update(state, piece.vector(i), expert)
        for array, sink in sinks.items():
            stored = window.device.get(state[array])
            sink.write(piece.tensor.name, piece.start * stored.itemsize, stored)
        return state

    def summary(piece: Piece, squares: Mapping[str, float]) -> Summary:
        group = piece.tensor.group
        norms, moved = earlier.norms.get(group, 0.0), earlier.moved.get(group, 0)
        return Summary(piece=piece, count=count, total=totals[-1], norms=norms, moved=moved, squares=squares)

    if not technique.state_norms:
        return lambda piece: technique.finalise(advanced(piece), summary(piece, {}))

    def settle(piece: Piece) -> NDArray[np.float64]:
        state = advanced(piece)
        return np.array([square(state[array]) for array in technique.state_norms])

    squares = window.reduce(settle, unit=technique.unit)

    def finished(piece: Piece) -> Array:
        state: State = {}
        for array in technique.state:
            values = np.empty(piece.shape, piece.tensor.precision)
            sinks[array].read_back(piece.tensor.name, piece.start * values.itemsize, values)
            state[array] = window.device.put(values)
        of_group = dict(zip(technique.state_norms, squares[piece.tensor.group].tolist(), strict=True))
        return technique.finalise(state, summary(piece, of_group))

    return finished


def _magnitudes(piece: Piece, experts: Sequence[int]) -> Array:
    vectors = piece.vectors(experts)
    return np.abs(vectors, out=vectors)
