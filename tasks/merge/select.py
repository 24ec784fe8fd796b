"""Exact order statistics of streams, without sorting them.

A sample brackets the wanted value; one pass counts what lies above the bracket and collects what lies inside, a percent
or so; the answer is among those (Floyd and Rivest 1975). Where a bracket misses, or holds too much (many equal values),
two passes of histograms over the bits of the floats, which are ordered as their values are, find the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.merge.device import HOST
from tasks.merge.stream import Piece, Window
from tasks.merge.types import Array

_Rows = Callable[[Piece], Array]

_WHOLE = 1 << 14
"""Tensors up to this size are taken whole as their sample."""
_SAMPLED = 64
"""One entry in so many of a larger tensor is sampled, in runs of `_RUN`."""
_RUN = 1024
_DEVIATIONS = 6.0
"""Half the width of a bracket, in standard deviations of the sample's quantile."""
_ROWS = 8
"""Rows searched together: what is collected of them is held, and should not grow with the number of models."""


def largest(
    window: Window,
    values: Callable[[Piece, Sequence[int]], Array],
    ranks: Mapping[str, tuple[int, ...]],
    rows: int,
) -> dict[str, Array]:
    """Exact order statistics of each group: for each of ``rows`` rows of values ≥ 0, its r-th largest.

    ``values`` gives those rows of a piece that are asked for, (rows, entries); ``ranks`` has the r's (1 ≤ r ≤ size) of
    each group. Returns (rows, ranks) per group.
    """
    answers_of: dict[str, list[list[float | None]]] = {}
    for first in range(0, rows, _ROWS):
        some = range(first, min(rows, first + _ROWS))
        for group, searches in _search(window, partial(_of, values, some), ranks).items():
            answers_of.setdefault(group, []).extend([s.answer for s in row] for row in searches)
    return {group: np.array(answers, window.precisions[group]) for group, answers in answers_of.items()}


def threshold(window: Window, values: Callable[[Piece], Array], shares: Mapping[str, float]) -> dict[str, Array]:
    """The least of the largest values of each group: of its share (0 to 1) of the values that are more than 0.

    ``values`` gives those of a piece, (entries), none below 0. Infinite where the share is of no value. What is more
    than 0 is counted in the pass that finds it.
    """
    searches = _sample(window, lambda piece: values(piece)[None], {}, shares)
    _collect(window, lambda piece: values(piece)[None], searches)
    _count(window, lambda piece: values(piece)[None], searches)
    return {group: np.array(rows[0][0].answer, window.precisions[group]) for group, rows in searches.items()}


def _of(values: Callable[[Piece, Sequence[int]], Array], rows: Sequence[int], piece: Piece) -> Array:
    return values(piece, rows)


def _search(window: Window, values: _Rows, ranks: Mapping[str, tuple[int, ...]]) -> _Searches:
    searches = _sample(window, values, ranks)
    _collect(window, values, searches)
    _count(window, values, searches)
    return searches


class _Search:
    """The search for one group's, one row's r-th largest value."""

    __slots__ = ("answer", "high", "low", "rank", "share")

    def __init__(self, rank: int, share: float | None = None) -> None:
        self.rank, self.share = rank, share
        self.low: Any = np.float32(0)
        self.high: Any = np.float32(np.inf)
        self.answer: float | None = None

    def settle(self, positive: int) -> None:
        """The rank, where it is a share of the values that are more than 0."""
        if self.share is not None:
            self.rank = int(self.share * positive)
            if self.rank == 0:
                self.answer = np.inf


_Searches = dict[str, list[list[_Search]]]
"""Group → row → rank."""


def _sample(
    window: Window, values: _Rows, wanted: Mapping[str, tuple[int, ...]], shares: Mapping[str, float] | None = None
) -> _Searches:
    pieces = []
    stands: dict[str, float] = {}  # how many entries of a tensor each sampled one stands for
    on_host = window.on(HOST)  # runs are short: not worth a GPU's while
    for tensor in window.tensors:
        size = tensor.size
        if size <= _WHOLE:
            pieces.append(Piece(window, tensor, 0, size, (size,)))
            stands[tensor.name] = 1.0
            continue
        runs = max(_WHOLE, size // _SAMPLED) // _RUN
        for i in range(runs):
            start = (size - _RUN) * i // (runs - 1)
            pieces.append(Piece(on_host, tensor, start, start + _RUN, (_RUN,)))
        stands[tensor.name] = size / (runs * _RUN)
    sampled: dict[str, list[tuple[Array, float]]] = {}

    def use(piece: Piece, value: Array) -> None:
        sampled.setdefault(piece.tensor.group, []).append((value, stands[piece.tensor.name]))

    window.each(lambda piece: window.device.get(values(piece)), pieces, use)
    searches: _Searches = {}
    for group in list(sampled):
        samples, size = sampled.pop(group), window.sizes[group]
        stands_for = np.concatenate([np.full(v.shape[1], share) for v, share in samples])
        spread = float(np.square(stands_for[stands_for > 1]).sum())
        searches[group] = [
            _bracket(np.concatenate(row), stands_for, spread, size, _started(shares, group, wanted))
            for row in zip(*(v for v, _ in samples), strict=True)
        ]
    return searches


def _started(
    shares: Mapping[str, float] | None, group: str, wanted: Mapping[str, tuple[int, ...]]
) -> list[_Search]:  # fmt: skip
    return [_Search(rank) for rank in wanted[group]] if shares is None else [_Search(0, shares[group])]


def _bracket(
    sample: Array, stands_for: NDArray[np.float64], spread: float, size: int, searches: list[_Search]
) -> list[_Search]:
    positive = float(stands_for[sample > 0].sum()) if any(search.share is not None for search in searches) else 0.0
    for search in searches:
        search.settle(round(positive))
    if spread == 0.0:  # the sample is everything
        left = [search for search in searches if search.answer is None]
        if left:
            ordered = np.partition(sample, [size - search.rank for search in left])
            for search in left:
                search.answer = float(ordered[size - search.rank])
        return searches
    if stands_for.min() == stands_for.max():
        falling = np.sort(sample)[::-1]
        at = np.cumsum(stands_for)
    else:
        order = np.argsort(sample)[::-1]
        falling, at = sample[order], np.cumsum(stands_for[order])
    for search in searches:
        share = search.rank / size
        margin = _DEVIATIONS * np.sqrt(spread * max(share * (1 - share), 1e-4)) + 1
        if search.share is not None:  # its rank is an estimate, and as far off as the sample's quantile
            search.answer = None
            margin *= 2
        first, last = np.searchsorted(at, [search.rank - margin, search.rank + margin])
        if first > 0:
            search.high = falling[first]
        if last < len(sample):
            search.low = falling[last]
    return searches


def _collect(window: Window, values: _Rows, searches: _Searches) -> None:
    open_groups = {g for g, rows in searches.items() if any(s.answer is None for row in rows for s in row)}
    pieces = (p for p in _pieces(window) if p.tensor.group in open_groups)
    get = window.device.get

    def inside(piece: Piece) -> tuple[list[list[tuple[int, int, Array | None]]], int]:
        precision = window.precisions[piece.tensor.group]
        x = values(piece).astype(precision, copy=False)
        rows = searches[piece.tensor.group]
        results: list[list[tuple[int, int, Array | None]]] = [[] for _ in rows]
        for j in range(len(rows[0])):
            # All rows in one operation each: threads get in each other's way over many short ones.
            beyond = x > np.asarray([[row[j].high] for row in rows], precision, like=x)
            mask = x >= np.asarray([[row[j].low] for row in rows], precision, like=x)
            mask ^= beyond
            above = [int(np.count_nonzero(row)) for row in beyond]
            counts = [int(np.count_nonzero(row)) for row in mask]
            narrow = max(counts) <= max(1024, x.shape[1] // 4)
            chosen = np.split(get(x[mask]), np.cumsum(counts)[:-1]) if narrow else [None] * len(rows)
            for result, row, k, n, part in zip(results, rows, above, counts, chosen, strict=True):
                result.append((k, n, part.copy() if part is not None and row[j].low < row[j].high else None))
        return results, int(np.count_nonzero(x > 0)) if rows[0][0].share is not None else 0

    gathered: dict[str, list[list[list[tuple[int, int, Array | None]]]]] = {}
    positive: dict[str, int] = {}

    def use(piece: Piece, result: tuple[list[list[tuple[int, int, Array | None]]], int]) -> None:
        group = piece.tensor.group
        gathered.setdefault(group, []).append(result[0])
        positive[group] = positive.get(group, 0) + result[1]

    window.each(inside, pieces, use)
    for group, results in gathered.items():
        for i, row in enumerate(searches[group]):
            for j, search in enumerate(row):
                search.settle(positive[group])
                if search.answer is not None:
                    continue
                parts = [result[i][j] for result in results]
                above = sum(part[0] for part in parts)
                count = sum(part[1] for part in parts)
                if not above < search.rank <= above + count:
                    continue  # the bracket missed
                if search.low == search.high:
                    search.answer = float(search.low)
                    continue
                candidates = [part[2] for part in parts if part[2] is not None]
                if sum(map(len, candidates)) == count:
                    inner = np.concatenate(candidates)
                    k = count - (search.rank - above)
                    search.answer = float(np.partition(inner, k)[k])


def _count(window: Window, values: _Rows, searches: _Searches) -> None:
    """A histogram for each 16 bits, from the highest: exact in fixed memory, whatever the values."""
    left = {
        (group, i, search.rank): search
        for group, rows in searches.items()
        for i, row in enumerate(rows)
        for search in row
        if search.answer is None
    }
    for (group, i, rank), search in left.items():
        pieces = [p for p in _pieces(window) if p.tensor.group == group]
        precision = np.dtype(window.precisions[group])
        bits = np.dtype(f"u{precision.itemsize}")
        prefix, rest = 0, rank
        for shift in range(8 * precision.itemsize - 16, -1, -16):
            counts = _histogram(window, values, pieces, i, (precision, bits, shift, prefix))
            from_top = np.cumsum(counts[::-1])
            place = int(np.searchsorted(from_top, rest))
            rest -= int(from_top[place - 1]) if place else 0
            prefix = prefix << 16 | (len(counts) - 1 - place)
        search.answer = float(np.array(prefix, bits).view(precision))


def _pieces(window: Window) -> Iterator[Piece]:
    return window.pieces("slice", window.device.search_entries)


def _histogram(
    window: Window,
    values: _Rows,
    pieces: list[Piece],
    row: int,
    digit: tuple[np.dtype[Any], np.dtype[Any], int, int],
) -> NDArray[np.int64]:
    """Counts of the 16 bits from ``shift`` on, of values whose higher bits are ``prefix``."""
    precision, bits, shift, prefix = digit
    total = np.zeros(1 << 16, np.int64)

    def count(piece: Piece) -> NDArray[np.int64]:
        keys = np.ascontiguousarray(values(piece)[row].astype(precision, copy=False)).view(bits)
        if shift + 16 < 8 * bits.itemsize:
            keys = keys[(keys >> bits.type(shift + 16)) == bits.type(prefix)]
        bins = ((keys >> bits.type(shift)) & bits.type(0xFFFF)).astype(np.int64)
        return window.device.get(np.bincount(bins, minlength=1 << 16))

    def use(_: Piece, counts: NDArray[np.int64]) -> None:
        np.add(total, counts, out=total)

    window.each(count, pieces, use)
    return total
