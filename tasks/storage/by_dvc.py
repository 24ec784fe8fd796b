"""The objects of states in any store that DVC reaches, through DVC's own file systems."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

from dvc_data.hashfile.db import HashFileDB
from dvc_objects.fs import localfs

from tasks.storage import atomic
from tasks.storage.bucket import Fact, side_by_side
from tasks.storage.cache import md5_of

JOBS = 2
"""Parallel transfers; each may hold up to 50 MB of a file's parts in memory."""
QUERIES = 16
"""Parallel questions about objects; they hold no content."""
GROUP = 32
"""Objects to a batch: an outage ends a transfer after one batch, not after all objects have failed."""


class ByDvc:
    """The objects of a remote; the methods are those of `tasks.storage.bucket.Bucket`."""

    def __init__(self, store: HashFileDB) -> None:
        self._store = store

    def existing(self, md5s: Iterable[str]) -> set[str]:
        """Those of some objects that it holds."""
        return set(self._store.oids_exist(list(md5s), jobs=QUERIES))

    def facts(self, md5s: Iterable[str]) -> dict[str, Fact]:
        """What it says of those of some objects that it holds."""
        names = sorted(self.existing(md5s))
        told = self._store.fs.info([self._store.oid_to_path(md5) for md5 in names], batch_size=QUERIES)
        return {
            md5: Fact(about["size"], str(about.get("ETag", "")).strip('"'))
            for md5, about in zip(names, told, strict=True)
        }

    def send(self, paths: Mapping[str, Path]) -> dict[str, str]:
        """Upload objects (md5 → file); no ETag is known of any."""
        # Listings last: other tools take a listing as proof that its files are stored.
        ordered = sorted(paths, key=lambda md5: (md5.endswith(".dir"), md5))
        for start in range(0, len(ordered), GROUP):
            group = ordered[start : start + GROUP]
            failed: dict[str, BaseException] = {}
            self._store.add(
                [str(paths[md5]) for md5 in group], localfs, group, verify=False, check_exists=False, batch_size=JOBS,
                on_error=failed.__setitem__,
            )  # fmt: skip
            if failed:
                raise next(iter(failed.values()))
        self._store.fs.fs.invalidate_cache()
        return {}

    def fetch(self, targets: Mapping[str, Path]) -> set[str]:
        """Download objects (md5 → file), each with its own bytes or not at all; returns those that do not exist."""
        there = self.existing(targets)
        side_by_side(lambda md5: self._fetch(md5, targets[md5]), there, jobs=JOBS)
        return targets.keys() - there

    def _fetch(self, md5: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with closing(atomic.Replacement(target)) as made:
            self._store.fs.get_file(self._store.oid_to_path(md5), str(made.path))
            if md5_of(made.path) == md5.removesuffix(".dir"):
                made.commit()

    def digest(self, md5: str) -> str:
        """The md5 of what it holds under a name: the object is read."""
        digested = hashlib.md5()
        with self._store.fs.open(self._store.oid_to_path(md5), "rb") as file:
            while part := file.read(1 << 20):
                digested.update(part)
        return digested.hexdigest()

    def delete(self, md5s: Collection[str]) -> None:
        """Remove objects."""
        self._store.fs.remove([self._store.oid_to_path(md5) for md5 in md5s])

    def listed(self) -> dict[str, tuple[int, float]]:
        """All files in the folder of the objects: name → bytes, and when it was last written (seconds since 1970)."""
        store = self._store
        if not store.fs.exists(store.path):
            return {}
        files = store.fs.fs.find(store.path, detail=True)
        if not isinstance(files, dict):  # a folder: DVC's own file system gives paths alone
            files = {path: store.fs.info(path) for path in files}
        return {"".join(Path(path).parts[-2:]): (about["size"], _modified(about)) for path, about in files.items()}


def _modified(about: dict[str, Any]) -> float:
    """File systems name it differently; where one does not report it, all its objects count as new."""
    when = about.get("LastModified", about.get("mtime", time.time()))
    return float(when.timestamp() if isinstance(when, datetime) else when)
