"""What a worker is told of a node, and what it answers."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.storage.cache import IGNORED, Entry


@dataclass(frozen=True)
class Job:
    """A node to run: its code and its params whole, its inputs by name."""

    node: str
    command: tuple[str, ...]
    """What the node's ``cmd`` in ``dvc.yaml`` has after ``python -m``: a module and its arguments."""
    code: bytes
    """The package ``tasks``, `packed`."""
    settings: bytes
    """``dvc.yaml``, ``params.yaml`` and files of the user's own that it names, `packed`."""
    inputs: Mapping[str, Entry]
    """Files that the store holds: path → content."""
    outs: tuple[str, ...]
    """What goes into the store."""
    metrics: tuple[str, ...]
    """What comes back with the answer."""
    remote: str
    """The DVC remote; each machine has credentials of its own for it."""
    threads: int | None
    """As in params.yaml; None is all that the worker's machine has."""
    versions: Mapping[str, str]
    machine: Mapping[str, str | int]
    """Versions, device and thread count that the key was made of: what the result is bit-exact on."""
    topic: str
    """Where progress is told."""


@dataclass(frozen=True)
class Done:
    """What a node left behind."""

    outs: Mapping[str, Entry]
    metrics: Mapping[str, bytes]
    seconds: float
    """Wall time of the node's own work."""
    worker: str
    """Its address."""


def packed(folder: Path, names: Iterable[str]) -> bytes:
    """Files and folders below ``folder``, as a gzipped tar archive: equal content, equal bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            archive.add(folder / name, name, filter=_plain)
    return gzip.compress(buffer.getvalue(), compresslevel=1, mtime=0)


def _plain(one: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Without what differs from one checkout of the same commit to another."""
    if Path(one.name).name in IGNORED:
        return None
    return one.replace(mtime=0, uid=0, gid=0, uname="", gname="", deep=False)


def unpack(code: bytes, folder: Path) -> None:
    """What `packed` made, into a folder; a name that leads outside it is an error."""
    with tarfile.open(fileobj=io.BytesIO(code)) as archive:
        archive.extractall(folder, filter="data")
