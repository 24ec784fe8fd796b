"""What a remote holds, object by object, and moving single ones: the part of `tasks.storage.objects` that runs in DVC's
process.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from dvc.repo import Repo

from tasks.storage.transfer import opened, reached


def probe(repo: Repo, *, remote: str) -> dict[str, Any]:
    """Write, read and delete one small file in a remote; of one on HTTP, which knows no deletion, look at the options.

    Raises:
        TransferError: one of that fails, or other bytes come back.
    """
    with opened(repo, remote) as store:
        if store.fs.protocol not in ("http", "https"):
            path = store.fs.join(store.path, f".chronomerge-probe-{secrets.token_hex(8)}")
            store.fs.makedirs(store.path, exist_ok=True)
            store.fs.fs.pipe_file(path, b"probe")
            content = store.fs.fs.cat_file(path)
            store.fs.remove(path)
            if content != b"probe":
                raise ValueError("it gives back other bytes than were written; do not trust it")
    return {}


def stored(repo: Repo, *, remote: str) -> dict[str, Any]:
    """Every object that a remote holds: md5 → (bytes, when it was last written, in seconds since 1970)."""
    with reached(repo, remote) as store:
        return {"objects": store.listed()}


def take(repo: Repo, *, remote: str, objects: list[str], into: str) -> dict[str, Any]:
    """Download objects to files named after them; the answer names those that came with their own bytes."""
    targets = {md5: Path(into, md5) for md5 in objects}
    for path in targets.values():
        path.unlink(missing_ok=True)
    with reached(repo, remote) as store:
        store.fetch(targets)
    return {"taken": [md5 for md5, path in targets.items() if path.exists()]}


def discard(repo: Repo, *, remote: str, objects: list[str]) -> dict[str, Any]:
    """Delete objects from a remote, listings of folders first, so that none is ever there without its files."""
    listings = [md5 for md5 in objects if md5.endswith(".dir")]
    files = [md5 for md5 in objects if not md5.endswith(".dir")]
    with reached(repo, remote) as store:
        for some in filter(None, (listings, files)):
            store.delete(some)
    return {}


def used(repo: Repo, *, remote: str, revisions: list[str]) -> dict[str, Any]:
    """The objects that the working tree and the given commits refer to in any way that DVC knows."""
    used_objects = repo.used_objs(revs=revisions or None, remote=remote)
    return {"objects": sorted({info.value for objects in used_objects.values() for info in objects if info.value})}
