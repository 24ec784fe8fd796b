"""The commit that each repository of a hub is at now, written into the sources of params."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.errors import UnavailableError
from tasks.prepare.hosted import Hosted
from tasks.prepare.registry import parse


def pin(content: Mapping[str, Any], project: Path) -> list[str]:
    """Pin the sources of a params.yaml in place; returns those whose hub does not answer, which stay as they are.

    Raises:
        UserError: there is no such repository, or no access to it.
    """
    known: dict[tuple[str, str], str | None] = {}
    for one in _sources(content):
        address = one["source"], one["path"]
        if address not in known:
            known[address] = _pinned(one, project)
        if path := known[address]:
            one["path"] = path
            known[one["source"], path] = path
    return [path for (_, path), at in known.items() if at is None]


def _pinned(spec: Mapping[str, Any], project: Path) -> str | None:
    source = parse(dict(spec), spec["path"])
    if not isinstance(source, Hosted):
        return str(spec["path"])
    try:
        return source.pinned(project).path
    except UnavailableError:
        return None


def _sources(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The sources in mapping form, of arrivals, of the variants of a grid and of test sets."""
    streams = [content["stream"], *(one["stream"] for one in content["grid"].get("variants", {}).values())]
    for stream in streams:
        for arrival in stream:
            yield from arrival.get("update", [])
    for sets in content["evaluate"].values():
        for one in sets:
            yield from one["test"]
