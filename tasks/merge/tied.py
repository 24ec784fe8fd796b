"""Tied tensors: one tensor that a checkpoint has under several names, such as an embedding and an output layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tasks.model.dtypes import FLOATS, width
from tasks.model.sources import TensorSource, equal, raw_bytes

_SAMPLED = 4096
"""Bytes in the middle of a tensor that are compared first."""


@dataclass(frozen=True)
class TiedNames:
    """Which names stand for one tensor in all models."""

    representative: dict[str, str] = field(default_factory=dict)
    """Other name → the name that is merged, and that all models have."""
    notes: list[str] = field(default_factory=list)

    def names(self) -> dict[str, tuple[str, ...]]:
        """Merged name → its other names."""
        return {n: tuple(a for a, b in self.representative.items() if b == n) for n in self.representative.values()}


def find_tied(sources: Mapping[str, TensorSource]) -> TiedNames:
    """Tensors of the first model that are equal to one another in all models, or missing there under one of the names.

    Constant tensors, such as biases that are zero, are not evidence of a tie. Where two are equal in some models and
    not in others, a note says so, and each is merged by itself. Compares a few kilobytes a tensor, and all bytes of
    those where these are equal.
    """
    alike: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, entry in next(iter(sources.values())).entries.items():
        if entry.dtype in FLOATS and entry.size > 1:
            alike.setdefault((entry.dtype, entry.shape), []).append(name)
    ties = TiedNames()
    for names in alike.values():
        if len(names) > 1:
            samples = {label: _samples(source, names) for label, source in sources.items()}
            for suspects in _suspects(samples.values()):
                _judge(sources, samples, suspects, ties)
    return ties


def _samples(source: TensorSource, names: Iterable[str]) -> dict[str, bytes]:
    """The middle of each tensor; empty for a constant one."""
    samples: dict[str, bytes] = {}
    for name in names:
        entry = source.entries.get(name)
        if entry is None or entry.dtype not in FLOATS:
            continue
        wide = width(entry.dtype)
        count = min(entry.bytes, _SAMPLED)
        sample = raw_bytes(source, name, (entry.bytes - count) // 2 // wide * wide, count).tobytes()
        samples[name] = b"" if sample == sample[:wide] * (count // wide) else sample
    return samples


def _suspects(samples: Iterable[Mapping[str, bytes]]) -> list[tuple[str, ...]]:
    """Sets of names whose samples are equal in some model."""
    sets: set[tuple[str, ...]] = set()
    for of_model in samples:
        by_sample: dict[bytes, list[str]] = {}
        for name, sample in of_model.items():
            if sample:
                by_sample.setdefault(sample, []).append(name)
        sets.update(tuple(sorted(names)) for names in by_sample.values() if len(names) > 1)
    return sorted(sets)


def _judge(
    sources: Mapping[str, TensorSource],
    samples: Mapping[str, Mapping[str, bytes]],
    suspects: tuple[str, ...],
    ties: TiedNames,
) -> None:
    everywhere = [name for name in suspects if all(name in source.entries for source in sources.values())]
    if not everywhere:
        return
    first = everywhere[0]
    for name in suspects:
        if name == first or name in ties.representative or name in ties.representative.values():
            continue
        with_both = [label for label, source in sources.items() if name in source.entries]
        tied = [
            label
            for label in with_both
            if samples[label].get(first) == samples[label].get(name)
            and equal(sources[label], first, sources[label], name)
        ]
        if tied == with_both:
            ties.representative[name] = ties.representative.get(first, first)
        elif tied:
            apart = next(label for label in with_both if label not in tied)
            ties.notes.append(
                f"{first} and {name} are one tensor in {tied[0]} and two in {apart}; each was merged by itself"
            )
