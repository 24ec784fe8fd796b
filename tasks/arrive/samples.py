"""The check of data that arrives: every sample is read as preparation reads it, and compared with what is known.

Two images are the same where they look the same to the model: their pixels, as prepared (decoded, upright, at the
model's size), are hashed. So a copy is found in whatever file it comes, and another header alone makes no other image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from tasks.arrive.verdict import Findings, few
from tasks.errors import UserError
from tasks.model.datasets import as_stored, digest
from tasks.model.jpeg import Jpeg
from tasks.prepare.photographs import Photographs
from tasks.prepare.source import Example, Reading, Source
from tasks.progress import Progress

REPORT_EVERY = 50
"""Samples between two calls of the progress callback."""


def check(
    name: str,
    readings: Sequence[tuple[Source, Reading]],
    tests: Mapping[bytes, str],
    findings: Findings,
    progress: Progress,
    stored: Jpeg | None = None,
) -> None:
    """Read every sample of an arrival. What cannot be decoded complains for itself, through the readings' context.

    ``tests`` has the hash of every test image, and in words where it is; ``stored`` is how images will be stored.
    """
    total = sum(reading.count for _, reading in readings)
    counts: Counter[str] = Counter()
    seen: dict[bytes, tuple[str, str | None]] = {}
    ids: set[str] = set()
    copies: list[str] = []
    for done, example in enumerate(_examples(readings, findings), start=1):
        if example.id in ids:
            findings.complain(f"{example.id}: two samples have this name")
        ids.add(example.id)
        if example.class_name is not None:
            counts[example.class_name] += 1
        key = digest(as_stored(example.image, example.original, stored))
        if key in tests:
            findings.complain(f"{example.id}: is a test image ({tests[key]}); what is tested must not be trained on")
        if key in seen:
            copies.append(_copy(example, *seen[key]))
        else:
            seen[key] = example.id, example.class_name
        if done % REPORT_EVERY == 0 or done == total:
            progress(f"checking {name}", done, total)
    if copies:
        findings.note(f"{len(copies)} exact duplicate{'s'[: len(copies) > 1]} within it: {few(copies)}")
    for source, reading in readings:
        _require_all_classes(source, reading, findings)
    if not total and not findings.problems:
        findings.complain(f"{name}: its sources select no samples")
    findings.facts |= {"samples": len(ids), "classes": dict(sorted(counts.items()))}


def _examples(readings: Sequence[tuple[Source, Reading]], findings: Findings) -> Iterator[Example]:
    for _, reading in readings:
        try:
            yield from reading.examples
        except UserError as error:
            findings.complain(str(error))


def _copy(example: Example, first: str, its_class: str | None) -> str:
    """Of the same image twice, in words; in two classes, which one is right?"""
    if example.class_name == its_class:
        return f"{example.id} is {first}"
    return f"{example.id}, as {example.class_name!r}, is {first}, as {its_class!r}"


def _require_all_classes(source: Source, reading: Reading, findings: Findings) -> None:
    """Classes that a source names must have samples. (Those of folders complain as they are found empty.)"""
    if isinstance(source, Photographs):
        for name in source.classes:
            if name not in reading.classes and (not source.only or name in source.only):
                findings.complain(f"{source.name}: {source.path}: the class {name!r} has no sample; leave it out")
