"""Computing the pieces of a merged model and writing them: LiNeS, the output's dtype, and copies."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tasks.errors import UserError
from tasks.merge.layout import MergeLayout
from tasks.merge.stream import Piece, Window
from tasks.merge.technique import Technique
from tasks.merge.types import Array
from tasks.model.dtypes import encode, fits, width
from tasks.model.sinks import Sink
from tasks.model.sources import TensorSource, raw_bytes

_COPIED_AT_ONCE = 1 << 22


def write_merged(
    window: Window,
    technique: Technique,
    compute: Callable[[Piece], Array],
    sink: Sink,
    slice_entries: int | None,
    tick: Callable[[int], None],
) -> None:
    """Merge all tensors of a window, piece by piece; ``compute`` is the technique's, ``tick`` gets entries done.

    Raises:
        UserError: an input is not finite, or a result does not fit the output's dtype.
    """
    lines = technique.lines
    alpha: float = 1.0
    if lines is not None:
        alpha = _norm_ratio(window, technique, compute) if lines.alpha == "norm" else lines.alpha

    def one(piece: Piece) -> None:
        tensor = piece.tensor
        merged = compute(piece).astype(tensor.precision, copy=False).reshape(-1)
        for part in piece.parts():
            x = merged[part.start - piece.start : part.stop - piece.start]
            if technique.relative or lines is not None:
                base = part.base.reshape(-1)
                if not technique.relative:
                    x = x - base
                if lines is not None:
                    x = x * tensor.precision(alpha + lines.beta * tensor.depth)
                x = np.add(x, base, out=x)
            encoded = encode(x, tensor.dtype)
            if not fits(encoded, tensor.dtype):
                raise UserError(
                    f"the merged tensor {tensor.name!r} overflows {tensor.dtype}; choose a smaller scale or float32"
                )
            stored = window.device.get(encoded)
            for name in (tensor.name, *tensor.tied):
                sink.write(name, part.start * width(tensor.dtype), stored)
        tick(piece.size)

    window.each(one, window.pieces(technique.unit, slice_entries or window.device.slice_entries))


def needs_all_at_once(technique: Technique) -> bool:
    """Whether `write_merged` needs all tensors of the model in one window."""
    return technique.lines is not None and technique.lines.alpha == "norm"


def _norm_ratio(window: Window, technique: Technique, compute: Callable[[Piece], Array]) -> float:
    """‖Σ τ_k‖ / (N ‖τ‖) over the window, in L1 norms: LiNeS's alpha."""

    def lengths(piece: Piece) -> NDArray[np.float64]:
        merged, sums = compute(piece).reshape(-1), np.zeros(2)
        for part in piece.parts():
            tau = merged[part.start - piece.start : part.stop - piece.start]
            total = part.vector(0)
            for i in range(1, piece.count):
                total += part.vector(i)
            if not technique.relative:
                tau = tau - part.base.reshape(-1)
                total -= piece.count * part.base
            sums += [float(np.abs(x).sum(dtype=np.float64)) for x in (total, tau)]
        return sums

    total, merged = sum(window.reduce(lengths, unit=technique.unit).values())
    return float(total / merged / len(window.experts)) if merged else 0.0


def copy_kept(plan: MergeLayout, reference: TensorSource, sink: Sink) -> None:
    """Copy what is not merged from the reference, byte for byte."""
    for name in plan.kept:
        entry = plan.entries[name]
        for start in range(0, entry.bytes, _COPIED_AT_ONCE):
            sink.write(name, start, raw_bytes(reference, name, start, min(_COPIED_AT_ONCE, entry.bytes - start)))
