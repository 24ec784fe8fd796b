"""The request that a worker gets for a node, and its answer."""

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
    """A node to run: its code and params as archives, its inputs as hashes."""

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
    """Paths that go into the store."""
    metrics: tuple[str, ...]
    """Paths that come back with the answer."""
    remote: str
    """The DVC remote; each machine has credentials of its own for it."""
    threads: int | None
    """As in params.yaml; None: all of the machine of the worker."""
    versions: Mapping[str, str]
    machine: Mapping[str, str | int]
    """Versions, device and thread count in the key: with these the result is bit-exact."""
    topic: str
    """The Dask topic of its progress messages."""


@dataclass(frozen=True)
class Done:
    """The result of a node."""

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
    """Remove what differs between checkouts of one commit."""
    if Path(one.name).name in IGNORED:
        return None
    return one.replace(mtime=0, uid=0, gid=0, uname="", gname="", deep=False)


def unpack(code: bytes, folder: Path) -> None:
    """Extract an archive of `packed` into a folder; a name that leads outside it is an error."""
    with tarfile.open(fileobj=io.BytesIO(code)) as archive:
        archive.extractall(folder, filter="data")
