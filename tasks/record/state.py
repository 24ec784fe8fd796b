"""A temporal state: one git commit, its files read when they are asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tasks import layout
from tasks.record import manifest, names
from tasks.record.manifest import Manifest
from tasks.storage.cache import Entry
from tasks.storage.git import show


@dataclass(frozen=True)
class State:
    """One recorded state; its files are read from git when they are asked for."""

    project: Path
    timeline: str
    step: int
    commit: str
    line: int = 1
    """1, and one more after each rollback."""

    @property
    def tag(self) -> str:
        return names.short_tag(self.timeline, self.step, self.line)

    @property
    def name(self) -> str:
        """The state as a person says it, within its timeline: ``3``, or ``3.2`` on the second line."""
        return f"{self.step}" + (f".{self.line}" if self.line > 1 else "")

    @cached_property
    def manifest(self) -> Manifest:
        return manifest.read(show(self.project, self.commit, manifest.FILE), self.tag)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        return dict(json.loads(show(self.project, self.commit, "metrics.json")))

    @cached_property
    def params(self) -> dict[str, Any]:
        return dict(YAML(typ="safe").load(show(self.project, self.commit, "params.yaml")))

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Path → content of every input and output that DVC keeps, from ``dvc.lock`` and the ``.dvc`` files."""
        kept = [out for out in self._outs if out["path"] not in layout.RECORDED]  # metrics are kept by git
        return {out["path"]: Entry(out["md5"], out["size"], out.get("nfiles")) for out in kept}

    @property
    def locked(self) -> dict[str, str]:
        """Path → md5 of every input and output, metrics too, as DVC's files name them."""
        return {out["path"]: out["md5"] for out in self._outs}

    @property
    def contradictions(self) -> tuple[str, ...]:
        """Paths for which manifest.json and DVC's own files name different content: somebody has edited one of them."""
        named = {path: entry.md5 for path, entry in self.manifest.contents.items()}
        locked = self.locked
        return tuple(sorted(path for path in {*named, *locked} if named.get(path) != locked.get(path)))

    @cached_property
    def _outs(self) -> list[dict[str, Any]]:
        lock = YAML(typ="safe").load(show(self.project, self.commit, "dvc.lock"))
        outs = [out for stage in lock["stages"].values() for out in stage.get("outs", ())]
        for path in layout.INPUTS:
            pointer = YAML(typ="safe").load(show(self.project, self.commit, f"{path}.dvc"))
            outs.append({**pointer["outs"][0], "path": path})
        return outs

    def unreadable(self) -> dict[str, str]:
        """The record files that cannot be read, or lack what is read of them everywhere → why."""
        readers: dict[str, Callable[[], object]] = {
            manifest.FILE: lambda: self.manifest,
            "metrics.json": lambda: self.metrics["top1"],
            "params.yaml": lambda: self.params["store"]["git"],
            "dvc.lock": lambda: self.entries,
        }
        found = {}
        for name, read in readers.items():
            try:
                read()
            except Exception as error:  # whatever a damaged file makes a parser raise
                found[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        return found
