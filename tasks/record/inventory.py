"""What a remote holds, object by object, and moving single ones: the part of `tasks.record.objects` that runs in DVC's
process, through DVC's own file systems, so that any of its remotes will do.
"""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

from dvc.repo import Repo

JOBS = 2
"""Parallel uploads; each holds up to 50 MB of a file's parts in memory."""


def stored(repo: Repo, *, remote: str) -> dict[str, Any]:
    """Every object that a remote holds: md5 → (bytes, when it was last written, in seconds since 1970)."""
    store = repo.cloud.get_remote_odb(remote)
    found: dict[str, tuple[int, float]] = {}
    if store.fs.exists(store.path):
        listed = store.fs.fs.find(store.path, detail=True)
        if not isinstance(listed, dict):  # a folder: DVC's own file system gives paths alone
            listed = {path: store.fs.info(path) for path in listed}
        for path, about in listed.items():
            found["".join(Path(path).parts[-2:])] = (about["size"], _modified(about))
    return {"objects": found}


def _modified(about: dict[str, Any]) -> float:
    """File systems disagree on how they call it; where one does not tell, all its objects count as new."""
    when = about.get("LastModified", about.get("mtime", time.time()))
    return float(when.timestamp() if isinstance(when, datetime) else when)


def take(repo: Repo, *, remote: str, objects: list[str], into: str) -> dict[str, Any]:
    """Download objects as they are, whatever their bytes, to files named after them; those not there are left out."""
    store = repo.cloud.get_remote_odb(remote)
    there = [md5 for md5 in objects if store.exists(md5)]
    for md5 in there:
        store.fs.get_file(store.oid_to_path(md5), str(Path(into, md5)))
    return {"taken": there}


def send(repo: Repo, *, remote: str, objects: list[str]) -> dict[str, Any]:
    """Upload objects of the cache, whatever the remote has under their names; the listing of a folder after its files.

    ``dvc push`` would not do: where the remote has a folder's listing, DVC believes that it has the files too.
    """
    store, cache = repo.cloud.get_remote_odb(remote), repo.cache.local
    for some in _listings_last(objects):
        store.add([cache.oid_to_path(md5) for md5 in some], cache.fs, some, check_exists=False, jobs=JOBS)
    return {}


def discard(repo: Repo, *, remote: str, objects: list[str]) -> dict[str, Any]:
    """Delete objects from a remote, listings of folders first, so that none is ever there without its files."""
    store = repo.cloud.get_remote_odb(remote)
    for some in reversed(_listings_last(objects)):
        store.fs.remove([store.oid_to_path(md5) for md5 in some])
    return {}


def _listings_last(objects: list[str]) -> list[list[str]]:
    files = [md5 for md5 in objects if not md5.endswith(".dir")]
    listings = [md5 for md5 in objects if md5.endswith(".dir")]
    return [some for some in (files, listings) if some]


def used(repo: Repo, *, remote: str, revisions: list[str]) -> dict[str, Any]:
    """The objects that the working tree and the given commits refer to in any way that DVC knows."""
    found = repo.used_objs(revs=revisions or None, remote=remote)
    return {"objects": sorted({info.value for objects in found.values() for info in objects if info.value})}
