"""A checkpoint read under the names of another dialect: nothing is copied, ranges of bytes are found where they are."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import UserError
from tasks.model import dialects
from tasks.model.dialects import Change, Dialect, Rule
from tasks.model.dtypes import BITS, stored_as
from tasks.model.sources import TensorEntry, TensorSource, raw_bytes


@dataclass(frozen=True, slots=True)
class _Range:
    """Where the bytes of a tensor come from: from ``start`` on in the joined bytes of ``sources``."""

    sources: tuple[str, ...]
    start: int
    transposed: bool


class Translated:
    """``source`` under other names, of the same bits; see `to_open_clip` and `from_open_clip`."""

    def __init__(self, source: TensorSource, entries: Mapping[str, TensorEntry], ranges: Mapping[str, _Range]) -> None:
        self.label, self.notes, self.entries = source.label, source.notes, entries
        self.own_names: Collection[str] = getattr(source, "own_names", source.entries)
        """The names in the file."""
        self._source, self._ranges = source, ranges

    def read_into(self, name: str, start: int, buffer: NDArray[Any]) -> None:
        """Fill ``buffer`` with the raw bytes of a tensor, from byte ``start`` on."""
        stretch = self._ranges[name]
        flat = buffer.reshape(-1).view(np.uint8)
        if stretch.transposed:
            entry = self._source.entries[stretch.sources[0]]
            stored = raw_bytes(self._source, stretch.sources[0], 0, entry.bytes).view(stored_as(entry.dtype))
            turned = np.ascontiguousarray(stored.reshape(entry.shape).T).reshape(-1).view(np.uint8)
            flat[:] = turned[start : start + flat.size]
            return
        skip, filled = stretch.start + start, 0
        for one in stretch.sources:
            size = self._source.entries[one].bytes
            if skip < size and filled < flat.size:
                count = min(size - skip, flat.size - filled)
                self._source.read_into(one, skip, flat[filled : filled + count])
                filled += count
            skip = max(0, skip - size)


def to_open_clip(source: TensorSource, dialect: Dialect) -> Translated:
    """A checkpoint of ``dialect`` under open_clip's names.

    Raises:
        UserError: a part of a packed tensor is missing, or the parts do not fit together; names them.
    """
    return _translate(source, dialect, of_open_clip=False)


def from_open_clip(source: TensorSource, dialect: Dialect) -> Translated:
    """A checkpoint of open_clip's under the names of ``dialect``.

    Raises:
        UserError: a tensor has no name in the dialect, or its shape cannot be divided.
    """
    if not dialect.speaks_open_clip(source.entries):
        known = {name for rule in dialect.rules_for(source.entries, of_open_clip=True) for name in rule.open_clip}
        strange = sorted(source.entries.keys() - known)
        raise UserError(
            f"{source.label}: {dialect.name} has no tensor for {', '.join(map(repr, strange[:5]))}"
            + (f" and {len(strange) - 5} more" if len(strange) > 5 else "")
            + "; it is of another architecture"
        )
    return _translate(source, dialect, of_open_clip=True)


def as_the_base(source: TensorSource, base: TensorSource) -> TensorSource:
    """A checkpoint under the names of ``base``: prefixes of wrappers are as the base has them, another dialect is
    translated.

    A checkpoint of unknown names comes back as it is; so does one of which less than half would fit the base, so that
    messages name the tensors that it has.

    Raises:
        UserError: the checkpoint is of a known dialect that the base's names cannot be translated to.
    """
    of_base = dialects.unwrapped(base.entries)
    given = source
    source, plain_base = plainly_named(source), plainly_named(base)
    theirs, ours = dialects.of(source.entries), dialects.of(plain_base.entries)
    if theirs is not ours:
        notes = list(given.notes)
        if theirs:
            source = _beside(to_open_clip(source, theirs), plain_base)
        if ours:
            source = from_open_clip(_at_the_root(source), ours)
        common = sum(plain_base.entries.get(name) is not None for name in source.entries)
        if 2 * common < len(source.entries):
            given.notes[:] = notes
            return given
        origin = theirs.name if theirs else "open_clip"
        source.notes.append(f"{source.label}: {origin} names, translated to the base's")
        source.label += f" (translated from {origin} names)"
    else:
        source = max(  # the plainest of those that have the most names of the base
            (_renamed(given, names) for names in dialects.wrappings(given.entries)),
            key=lambda one: sum(of_base.get(name, name) in base.entries for name in one.entries),
        )
        source = _without_unknown_buffers(source, plain_base)
    return _renamed(source, {of_base.get(name, name): name for name in source.entries})


def _without_unknown_buffers(source: TensorSource, base: TensorSource) -> TensorSource:
    """Buffers of older versions that a base of the same names does not have."""
    buffers = _buffers_in(source.entries)
    return source if buffers is None or any(map(buffers.fullmatch, base.entries)) else without_buffers(source, buffers)


def _buffers_in(names: Collection[str]) -> re.Pattern[str] | None:
    """The names of buffers of older versions in a checkpoint with these names; None where it is no CLIP."""
    known = dialects.of(names)
    if known is None and dialects.naming(names) != "open_clip":
        return None
    return known.ignored if known else dialects.available()["transformers_clip"].ignored_in_open_clip


def learned(source: TensorSource) -> TensorSource:
    """``source`` without the buffers of older versions of CLIP, whatever the prefix of its names; a note names them."""
    plain = dialects.unwrapped(source.entries)
    buffers = _buffers_in(plain)
    named = [own for name, own in plain.items() if buffers is not None and buffers.fullmatch(name)]
    return without_buffers(source, re.compile("|".join(map(re.escape, named)))) if named else source


def without_buffers(source: TensorSource, buffers: re.Pattern[str]) -> TensorSource:
    """``source`` without the tensors of these names, which hold nothing learned; a note names them."""
    if not (left := _left_out(source, buffers)):
        return source
    return _renamed(source, {name: name for name in source.entries.keys() - set(left)})


def plainly_named(source: TensorSource) -> TensorSource:
    """A checkpoint without the prefixes of wrappers (``module.`` and others) that all its names have."""
    return _renamed(source, dialects.unwrapped(source.entries))


_TEXT = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")


def _beside(source: TensorSource, base: TensorSource) -> TensorSource:
    """open_clip has the text tower at the root, or (``custom_text``) under ``text.``: as the base has it."""
    if not any(name.startswith("text.") for name in base.entries):
        return source
    return _renamed(source, {f"text.{name}" if name.startswith(_TEXT) else name: name for name in source.entries})


def _at_the_root(source: TensorSource) -> TensorSource:
    """The text tower of a ``custom_text`` model where open_clip's plain models have it; SigLIP's stays."""
    if any(name.startswith("visual.trunk.") for name in source.entries):
        return source
    return _renamed(source, {name.removeprefix("text."): name for name in source.entries})


def _renamed(source: TensorSource, names: Mapping[str, str]) -> TensorSource:
    """``source`` with the names that ``names`` maps to its own; itself where it has just these."""
    if names.keys() == source.entries.keys():
        return source
    entries = {new: source.entries[old] for new, old in names.items()}
    return Translated(source, entries, {new: _Range((old,), 0, False) for new, old in names.items()})


def _translate(source: TensorSource, dialect: Dialect, *, of_open_clip: bool) -> Translated:
    entries: dict[str, TensorEntry] = {}
    ranges: dict[str, _Range] = {}
    for rule in dialect.rules_for(source.entries, of_open_clip=of_open_clip):
        sides = (rule.open_clip, rule.open_clip_parts), (rule.dialect, rule.dialect_parts)
        (given, shares), (wanted, parts) = sides if of_open_clip else reversed(sides)
        joined = _joined(source, given, shares)
        if rule.change is Change.TRANSPOSED:
            if len(joined.shape) != 2:
                raise UserError(f"{source.label}: tensor {given[0]!r} has shape {list(joined.shape)}, not a matrix's")
            entries[wanted[0]] = replace(joined, shape=joined.shape[::-1])
            ranges[wanted[0]] = _Range(given, 0, transposed=True)
            continue
        start = 0
        for name, shape in zip(wanted, _shapes(source, rule, joined, parts, of_open_clip=of_open_clip), strict=True):
            entries[name] = replace(joined, shape=shape)
            ranges[name] = _Range(given, start, transposed=False)
            start += entries[name].bytes
    _left_out(source, dialect.ignored_in_open_clip if of_open_clip else dialect.ignored)
    return Translated(source, entries, ranges)


def _left_out(source: TensorSource, buffers: re.Pattern[str]) -> list[str]:
    """The names of the buffers in a checkpoint, which a note of it then has."""
    names = sorted(name for name in source.entries if buffers.fullmatch(name))
    if names:
        source.notes.append(f"{source.label}: {', '.join(names)} left out: nothing that is learned")
    return names


def _joined(source: TensorSource, names: tuple[str, ...], shares: tuple[int, ...]) -> TensorEntry:
    """The entry of tensors joined along their first dimension; ``shares`` are the proportions of their rows.

    Raises:
        UserError: one of them is missing, or they differ in dtype, in proportion or in the other dimensions.
    """
    missing = [name for name in names if name not in source.entries]
    if missing:
        raise UserError(f"{source.label}: lacks {missing[0]!r}, which belongs with {_first(source, names)!r}")
    parts = [source.entries[name] for name in names]
    if len(parts) == 1:
        return parts[0]
    alike = len({(p.dtype, p.shape[1:], len(p.shape)) for p in parts}) == 1 and parts[0].shape
    units = {(p.shape[0] // share, p.shape[0] % share) for p, share in zip(parts, shares, strict=True) if p.shape}
    if not alike or len(units) > 1 or BITS[parts[0].dtype] % 8:
        told = ", ".join(f"{name} {p.dtype} {list(p.shape)}" for name, p in zip(names, parts, strict=True))
        raise UserError(f"{source.label}: these tensors do not fit together: {told}")
    return replace(parts[0], shape=(sum(p.shape[0] for p in parts), *parts[0].shape[1:]))


def _first(source: TensorSource, names: tuple[str, ...]) -> str:
    return next(name for name in names if name in source.entries)


def _shapes(
    source: TensorSource, rule: Rule, joined: TensorEntry, parts: tuple[int, ...], *, of_open_clip: bool
) -> list[tuple[int, ...]]:
    shape = joined.shape
    if rule.change is Change.SCALAR:
        if joined.size != 1:
            raise UserError(f"{source.label}: {rule.dialect[0]!r} has shape {list(shape)}, not one number's")
        return [(1,) if of_open_clip else ()]
    if rule.change is Change.BATCHED:
        if of_open_clip and shape[:1] != (1,):
            raise UserError(f"{source.label}: {rule.open_clip[0]!r} has shape {list(shape)}, not [1, …]")
        return [shape[1:] if of_open_clip else (1, *shape)]
    if parts == (1,):
        return [shape]
    if not shape or shape[0] % sum(parts):
        names = rule.dialect if of_open_clip else rule.open_clip
        raise UserError(f"{source.label}: {list(shape)} rows cannot be divided into {', '.join(names)}")
    unit = shape[0] // sum(parts)
    return [(unit * part, *shape[1:]) for part in parts]
