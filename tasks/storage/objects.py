"""The objects that states are made of, by md5: what lies in the cache, what in the remote, and what entries need."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from tasks.storage.cache import Cache, Entry
from tasks.storage.dvc import Dvc
from tasks.storage.dvc_config import Remote


@dataclass(frozen=True)
class StoredObject:
    """An object somewhere: its bytes, and when it was last written (seconds since 1970)."""

    size: int
    modified: float


@dataclass(frozen=True)
class Depot:
    """A project's cache and remote, with the DVC process that reaches both."""

    project: Path
    cache: Cache
    remote: Remote
    dvc: Dvc

    def take(self, objects: Collection[str], into: Path) -> set[str]:
        """Download objects of the remote to files named after them; returns those that came with their own bytes."""
        wanted = sorted(objects)
        return set(self.dvc("take", self.project, remote=self.remote.name, objects=wanted, into=str(into))["taken"])

    def send(self, objects: Iterable[str]) -> None:
        """Upload objects of the cache, in place of what the remote may hold under their names."""
        self.dvc("send", self.project, remote=self.remote.name, objects=sorted(objects))

    def discard(self, objects: Iterable[str]) -> None:
        """Delete objects from the remote."""
        self.dvc("discard", self.project, remote=self.remote.name, objects=sorted(objects))


def is_object(name: str) -> bool:
    """Whether a name is an object's: an md5, with ``.dir`` for the listing of a folder."""
    return re.fullmatch(r"[0-9a-f]{32}(\.dir)?", name) is not None


def in_cache(cache: Cache) -> tuple[dict[str, StoredObject], list[Path]]:
    """The objects of a cache, and the other files beside them, which an interrupted write leaves."""
    stored, strays = {}, []
    objects = cache.folder / "files" / "md5"
    for path in sorted([*objects.glob("*/*"), *objects.glob(".*")]):
        name = path.parent.name + path.name
        if is_object(name):
            about = path.stat()
            stored[name] = StoredObject(about.st_size, about.st_mtime)
        else:
            strays.append(path)
    return stored, strays


def in_remote(depot: Depot) -> dict[str, StoredObject]:
    """The objects that the remote holds."""
    listed = depot.dvc("stored", depot.project, remote=depot.remote.name)["objects"]
    return {name: StoredObject(*about) for name, about in listed.items() if is_object(name)}


def one(md5: str) -> Entry:
    """An object alone, be it a folder's listing, as an entry of unknown size."""
    return Entry(md5, 0)


def members_in_cache(listings: Iterable[str], cache: Cache) -> dict[str, dict[str, str]]:
    """What folders list, out of the cache: md5 → relative path → md5; without those that are not whole there."""
    return {md5: cache.members(Entry(md5, 0, 0)) for md5 in set(listings) if cache.intact(one(md5))}


def members(listings: Iterable[str], depot: Depot) -> dict[str, dict[str, str]]:
    """What folders list, out of the cache or else the remote; without those that are whole in neither."""
    wanted = set(listings)
    listed = members_in_cache(wanted, depot.cache)
    if elsewhere := wanted - listed.keys():
        with tempfile.TemporaryDirectory() as folder:
            taken = Cache(Path(folder))
            for md5 in depot.take(elsewhere, Path(folder)):
                taken.path(md5).parent.mkdir(parents=True, exist_ok=True)
                Path(folder, md5).rename(taken.path(md5))
            listed |= members_in_cache(elsewhere, taken)
    return listed
