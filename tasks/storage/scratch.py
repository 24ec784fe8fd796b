"""Folders for what is on its way, that do not outlive their processes by more than one other."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


@contextmanager
def folder(home: Path) -> Iterator[Path]:
    """A folder in ``home`` for the block, named after this process; what killed processes have left of theirs goes."""
    home.mkdir(parents=True, exist_ok=True)
    for left in home.iterdir():
        if not psutil.pid_exists(int(left.name.partition("-")[0])):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=home, prefix=f"{os.getpid()}-") as made:
        yield Path(made)
