"""The project and the timeline that a command means when it names none: those of the current folder."""

from __future__ import annotations

from pathlib import Path


def project() -> Path:
    from tasks.storage.git import top_level

    return top_level(Path.cwd())


def timeline(project: Path) -> str:
    from tasks.params import load

    return load(project / "params.yaml").timeline
