"""The manifest of a state that nobody recorded."""

from __future__ import annotations

from typing import Any

from tasks.record.manifest import VERSION


def content(**changes: Any) -> dict[str, Any]:
    """What ``manifest.json`` holds of step 0 of a timeline ``x``; ``changes`` replace or add keys."""
    return {
        "version": VERSION, "timeline": "x", "step": 0, "arrival": None, "previous": None,
        "protocol": {"init": "ema", "deploy": "ema"}, "technique": {"name": "linear", "weight": 0.5}, "seed": 0,
        "budget": {}, "inputs": {}, "outputs": {}, "code": {"commit": "c" * 40, "dirty": False}, "versions": {},
        "device": {}, "recorded": {"at": "2026-01-01T00:00:00+00:00", "host": "somewhere"}, "seconds": {},
        "bytes": {"total": 7, "new": 7}, **changes,
    }  # fmt: skip
