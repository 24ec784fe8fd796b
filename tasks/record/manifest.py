"""``manifest.json``: what a state is made of and what made it, for people and programs to read."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from tasks import nodes
from tasks.gate import Verdict
from tasks.nodes import Reference
from tasks.params import Params
from tasks.record.states import State
from tasks.record.worktree import Code
from tasks.storage.cache import Cache, Entry


def build(
    params: Params,
    previous: State | None,
    start: State | None,
    code: Code,
    inputs: Mapping[str, Entry],
    references: Iterable[Reference],
    training: Mapping[str, Any],
    verdict: Verdict,
    cache: Cache,
) -> dict[str, Any]:
    """Everything about a state that is not in its params; hashes are DVC's (md5, of content).

    ``previous`` is the state recorded before, ``starts_from`` the one whose history went on. ``bytes`` counts each
    content once; ``new`` is what the previous state does not refer to.
    """
    finished = list(references)
    outputs = {path: entry for reference in finished for path, entry in reference.outs.items()}
    sizes = cache.objects([*inputs.values(), *outputs.values()])
    known = cache.objects(previous.entries.values()) if previous else {}
    return {
        "timeline": params.timeline,
        "step": params.step,
        "line": previous.line if previous else 1,
        "arrival": params.arrival.name if params.arrival else None,
        "previous": previous.tag if previous else None,
        "starts_from": start.tag if start else None,
        "protocol": {"init": params.time.init, "deploy": params.time.deploy, "ema_start": params.time.ema_start},
        "technique": {"name": params.time.technique.name, **params.time.technique.settings},
        "gate": verdict.as_dict(),
        "seed": params.seed,
        "budget": dict(training),
        "inputs": {path: entry.as_dict() for path, entry in inputs.items()},
        "outputs": {path: entry.as_dict() for path, entry in outputs.items()},
        "code": {"commit": code.commit, "dirty": code.dirty, "tree": code.tree},
        "versions": nodes.versions(),
        "device": {reference.node: dict(reference.machine) for reference in finished},
        "recorded": {"at": datetime.now(UTC).isoformat(timespec="seconds"), "host": socket.gethostname()},
        "seconds": {reference.node: reference.seconds for reference in finished},
        "bytes": {"total": sum(sizes.values()), "new": sum(s for m, s in sizes.items() if m not in known)},
    }


def text(manifest: Mapping[str, Any]) -> str:
    """A manifest as its file holds it."""
    return json.dumps(manifest, indent=1) + "\n"
