"""References: what a finished node left behind, by content; and the ones that a project has stored, one a key."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from tasks import layout
from tasks.storage import atomic
from tasks.storage.cache import Entry


@dataclass(frozen=True)
class Reference:
    """What a finished node left behind: output path → entry in the cache. Small, and plain JSON."""

    node: str
    key: str
    outs: Mapping[str, Entry]
    seconds: float
    """Wall time of the run that made the outputs, in seconds."""
    machine: Mapping[str, str | int]
    """The device and the thread count that made them."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "node": self.node,
            "key": self.key,
            "outs": {path: entry.as_dict() for path, entry in self.outs.items()},
            "seconds": self.seconds,
            "machine": dict(self.machine),
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Reference:
        outs = {path: Entry(**entry) for path, entry in raw["outs"].items()}
        return cls(raw["node"], raw["key"], outs, raw["seconds"], raw["machine"])


def store(project: Path, reference: Reference) -> None:
    """Store the reference of a node that has finished. Equal keys write the same outputs, so the last one may win."""
    path = _file(project, reference.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, json.dumps(reference.as_dict(), indent=1) + "\n")


def find(project: Path, key: str) -> Reference | None:
    """The reference stored under a key; None if there is none, or a power failure has left half a file."""
    return _read(_file(project, key))


def recent(project: Path, age: timedelta) -> Iterator[Reference]:
    """All references stored within ``age`` from now."""
    oldest = time.time() - age.total_seconds()
    for path in sorted(_folder(project).glob("*.json")):
        reference = _read(path) if path.stat().st_mtime >= oldest else None
        if reference:
            yield reference


def _read(path: Path) -> Reference | None:
    try:
        return Reference.from_dict(json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _folder(project: Path) -> Path:
    return layout.private(project) / "references"


def _file(project: Path, key: str) -> Path:
    return _folder(project) / f"{key}.json"
