"""Arrivals whose files the project keeps: ``data/arrivals/NAME``, with DVC's pointer ``data/arrivals/NAME.dvc``."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

FOLDER = PurePosixPath("data/arrivals")


def pointer(project: Path, path: str) -> Path | None:
    """The pointer that the file or folder at a project's ``path`` is brought back by, if there is one."""
    parts = PurePosixPath(path).parts
    depth = len(FOLDER.parts)
    if parts[:depth] != FOLDER.parts or len(parts) == depth:
        return None
    own = project / FOLDER / f"{parts[depth]}.dvc"
    return own if own.is_file() else None
