"""Temporal model merging from Python: ``import chronomerge as cm``.

    cm.merge("ties", ["a.safetensors", "b.safetensors"], "base.safetensors", "merged.safetensors")

    cm.run("path/to/project")                    # every pending time step, as `chronomerge run`
    for state in cm.states("path/to/project"):
        print(state.tag, state.metrics["A_KA"], state.manifest.technique.name)
    cm.find(3, "path/to/project").restore("elsewhere")

Importing it takes milliseconds: a name brings what it needs when it is first used. Whatever the caller can mend is a
`UserError`, one sentence with the way out; a store or a network that may recover is an `UnavailableError`.
"""

# ruff: noqa: F401
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chronomerge.project import advance, find, report, restore, rollback, run, states, verify, withdraw
    from tasks.errors import UnavailableError, UserError
    from tasks.measure import measure, measure_clip
    from tasks.merge import Statistics, merge
    from tasks.merge import available as techniques
    from tasks.record import Manifest, State

_HOMES = {
    "UnavailableError": "tasks.errors",
    "UserError": "tasks.errors",
    "measure": "tasks.measure",
    "measure_clip": "tasks.measure",
    "merge": "tasks.merge",
    "Statistics": "tasks.merge",
    "techniques": "tasks.merge:available",
    "Manifest": "tasks.record",
    "State": "tasks.record",
    **dict.fromkeys(
        ("advance", "find", "report", "restore", "rollback", "run", "states", "verify", "withdraw"),
        "chronomerge.project",
    ),
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute or name)


def __dir__() -> list[str]:
    return __all__
