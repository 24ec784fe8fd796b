"""Content from the store into the cache, hashed before it is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tasks.errors import UserError
from tasks.storage.cache import Cache, Entry
from tasks.storage.dvc import Dvc

TRIES = 3
"""How often an object with wrong bytes is asked for."""


def bring(entries: Mapping[str, Entry], cache: Cache, dvc: Dvc, workspace: Path, owner: str) -> int:
    """Bring what the cache lacks of some entries (path → content) from the store; returns bytes.

    Wrong bytes are deleted and asked for again, `TRIES` times in all. ``workspace`` has the store as its default
    remote; ``owner`` names the content in messages.

    Raises:
        UserError: the store lacks an object, or gives wrong bytes for it every time.
        RemoteError: the store cannot be reached, or breaks off.
    """
    fetched: set[str] = set()
    while lacking := _missing(entries, cache):  # listings first, then what they list
        for _ in range(TRIES):
            absent = dvc("fetch", workspace, md5s=sorted(lacking))["absent"]
            if absent:
                raise UserError(f"the store does not hold {_named(entries, cache, absent[0], owner)}")
            wrong = lacking & _missing(entries, cache)
            if not wrong:
                break
        else:
            name = _named(entries, cache, min(wrong), owner)
            raise UserError(f"the store gives wrong bytes for {name}; nothing was stored")
        fetched |= lacking
    return sum(size for md5, size in cache.objects(entries.values()).items() if md5 in fetched)


def _missing(entries: Mapping[str, Entry], cache: Cache) -> set[str]:
    return {md5 for entry in entries.values() for md5 in cache.missing(entry)}


def _named(entries: Mapping[str, Entry], cache: Cache, md5: str, owner: str) -> str:
    """What an object is to its owner, for messages."""
    paths = (
        path
        for path, entry in entries.items()
        if md5 == entry.md5
        or (entry.is_folder and entry.md5 not in cache.missing(entry) and md5 in cache.md5s([entry]))
    )
    return f"{next(paths)} of {owner} (object {md5})"
