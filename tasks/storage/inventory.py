"""What a remote holds, object by object, and moving single ones: the part of `tasks.storage.objects` that runs in DVC's
process, through DVC's own file systems, so that any of its remotes will do.
"""

from __future__ import annotations

import secrets
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from dvc.repo import Repo

from tasks.storage.transfer import opened


def probe(repo: Repo, *, remote: str) -> dict[str, Any]:
    """Write, read and delete one small file in a remote; of one on HTTP, which knows no deletion, look at the options.

    Raises:
        TransferError: one of that fails, or other bytes come back.
    """
    with opened(repo, remote) as (store, _):
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
    objects: dict[str, tuple[int, float]] = {}
    with opened(repo, remote) as (store, _):
        if store.fs.exists(store.path):
            listed = store.fs.fs.find(store.path, detail=True)
            if not isinstance(listed, dict):  # a folder: DVC's own file system gives paths alone
                listed = {path: store.fs.info(path) for path in listed}
            for path, about in listed.items():
                objects["".join(Path(path).parts[-2:])] = (about["size"], _modified(about))
    return {"objects": objects}


def _modified(about: dict[str, Any]) -> float:
    """File systems name it differently; where one does not report it, all its objects count as new."""
    when = about.get("LastModified", about.get("mtime", time.time()))
    return float(when.timestamp() if isinstance(when, datetime) else when)


def take(repo: Repo, *, remote: str, objects: list[str], into: str) -> dict[str, Any]:
    """Download objects, whatever their bytes, to files named after them; the answer names those that exist."""
    with opened(repo, remote) as (store, _):
        existing = [md5 for md5 in objects if store.exists(md5)]
        for md5 in existing:
            store.fs.get_file(store.oid_to_path(md5), str(Path(into, md5)))
    return {"taken": existing}


def discard(repo: Repo, *, remote: str, objects: list[str]) -> dict[str, Any]:
    """Delete objects from a remote, listings of folders first, so that none is ever there without its files."""
    listings = [md5 for md5 in objects if md5.endswith(".dir")]
    files = [md5 for md5 in objects if not md5.endswith(".dir")]
    with opened(repo, remote) as (store, _):
        for some in filter(None, (listings, files)):
            store.fs.remove([store.oid_to_path(md5) for md5 in some])
    return {}


def used(repo: Repo, *, remote: str, revisions: list[str]) -> dict[str, Any]:
    """The objects that the working tree and the given commits refer to in any way that DVC knows."""
    used_objects = repo.used_objs(revs=revisions or None, remote=remote)
    return {"objects": sorted({info.value for objects in used_objects.values() for info in objects if info.value})}
