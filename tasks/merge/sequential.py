"""Accumulators at work: over all experts at once, or over one more expert and the state that the earlier ones left.

Both run the same code on the same numbers, so they give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tasks.errors import UserError
from tasks.merge.sinks import FileSink
from tasks.merge.sources import Entry, Source, read
from tasks.merge.stream import Piece, Window, square
from tasks.merge.technique import Accumulator, Array, Expert, State, Summary


@dataclass
class Past:
    """What earlier experts left: scalars here, arrays in files, one checkpoint an array of the state."""

    count: int = 0
    total: float = 0.0
    norms: dict[str, float] = field(default_factory=dict)
    """Σ weight·‖x‖ by group."""
    moved: dict[str, int] = field(default_factory=dict)
    """Number of experts with ‖x‖ > 0, by group."""
    arrays: Mapping[str, Source] = field(default_factory=dict)

    def state(self, technique: Accumulator, piece: Piece) -> State:
        if not self.arrays:
            return {array: piece.zeros() for array in technique.state}
        name, device = piece.tensor.name, piece.window.device
        return {
            array: read(self.arrays[array], name, piece.start, piece.stop, device).reshape(piece.shape)
            for array in technique.state
        }


def batch_plan(technique: Accumulator, window: Window) -> Callable[[Piece], Array]:
    """The batch form. Where the outcome needs the finished state's norm, the state waits in a temporary file."""
    if not technique.state_norms:
        return accumulate(technique, window, Past(), {})
    entries = {t.name: Entry("F32", t.shape) for t in window.tensors}
    sinks: dict[str, FileSink] = {}
    for array in technique.state:
        sinks[array] = FileSink(window.scratch / f"{array}.safetensors", entries)
        window.cleanup.callback(sinks[array].abandon)
    return accumulate(technique, window, Past(), sinks)


def accumulate(
    technique: Accumulator, window: Window, past: Past, sinks: Mapping[str, FileSink]
) -> Callable[[Piece], Array]:
    """Bring ``past`` up to date with the window's experts, writing its arrays to ``sinks`` where there are any.

    Returns what computes a piece of the merged model; it also writes the state where no norm of it is needed first.
    """
    ranks = {group: technique.ranks(size) for group, size in window.sizes.items()}
    thresholds = window.largest(_magnitudes, ranks, len(window.experts)) if any(ranks.values()) else {}
    norms = window.norms() if technique.needs_norms else {}
    count = past.count + len(window.experts)
    # Negative weights last, so that the total so far stays positive.
    order = sorted(range(len(window.experts)), key=lambda i: window.weights[i] < 0)
    totals = list(np.cumsum([past.total, *(window.weights[i] for i in order)])[1:].tolist())
    if technique.normalizes and not 0 < totals[-1] < np.inf:
        raise UserError(f"{technique.name}: the weights sum to {totals[-1]:g}; they should sum to more than 0")
    for group, each in norms.items():
        for i in order:
            past.norms[group] = past.norms.get(group, 0.0) + window.weights[i] * float(each[i])
        past.moved[group] = past.moved.get(group, 0) + int(np.count_nonzero(each))

    def advanced(piece: Piece) -> State:
        state = past.state(technique, piece)
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
            sink.write(piece.tensor.name, piece.start * 4, window.device.get(state[array]))
        return state

    def summary(piece: Piece, squares: Mapping[str, float]) -> Summary:
        group = piece.tensor.group
        norms, moved = past.norms.get(group, 0.0), past.moved.get(group, 0)
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
            values = np.empty(piece.shape, np.float32)
            sinks[array].read_back(piece.tensor.name, piece.start * 4, values)
            state[array] = window.device.put(values)
        of_group = dict(zip(technique.state_norms, squares[piece.tensor.group].tolist(), strict=True))
        return technique.finalise(state, summary(piece, of_group))

    return finished


def _magnitudes(piece: Piece, experts: Sequence[int]) -> Array:
    vectors = piece.vectors(experts)
    return np.abs(vectors, out=vectors)
