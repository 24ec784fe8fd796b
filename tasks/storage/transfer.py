"""Objects between a project's cache and its store: exactly those named, and never a byte that is not theirs.

DVC's own ``push``, ``status`` and ``fetch`` take a folder's listing in the store as a promise that its files are
there, and compare names only. Here each object is asked for, and its bytes are compared on both ways.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dvc.config
import dvc_objects.fs.errors
from dvc.repo import Repo
from dvc_data.hashfile.db import HashFileDB
from s3fs.core import calculate_chunksize

from tasks.storage import upload

JOBS = 2
"""Parallel transfers; each holds up to 50 MB of a file's parts in memory."""
QUERIES = 16
"""Parallel questions about objects; they hold no content."""
GROUP = 32
"""Objects to a batch: an outage ends a transfer after one batch, not after all objects have failed."""


class TransferError(Exception):
    """A transfer failed; networks and stores recover, so another try makes sense."""


def push(repo: Repo, md5s: Collection[str], known: Collection[str], remote: str | None = None) -> int:
    """Make the store hold objects of the cache, byte for byte; returns how many were sent.

    Those in ``known`` belong to a state that is recorded, and were compared when it was: they only have to exist.

    Raises:
        TransferError: the store refuses them, or stores other bytes (those objects are removed from it again).
    """
    with opened(repo, remote) as (store, cache):
        absent = set(md5s) - set(store.oids_exist(md5s, jobs=QUERIES))
        large = upload.large_objects(repo, remote or repo.config["core"]["remote"], absent)
        _send(store, cache, absent, large, set(md5s) - set(known))
    return len(absent)


def keep(repo: Repo, *, remote: str, objects: list[str]) -> dict[str, Any]:
    """Make a store hold objects of the cache, whether a state is to refer to them or not.

    Raises:
        TransferError: as `push`.
    """
    return {"pushed": push(repo, objects, (), remote)}


def send(repo: Repo, *, remote: str, objects: list[str]) -> dict[str, Any]:
    """Upload objects of the cache to a store, whatever it has under their names, and compare them there.

    Raises:
        TransferError: as `push`.
    """
    with opened(repo, remote) as (store, cache):
        large = upload.large_objects(repo, remote, objects)
        _send(store, cache, set(objects), large, set())
    return {}


def fetch(repo: Repo, md5s: Collection[str]) -> list[str]:
    """Download objects into the cache; those with wrong bytes are deleted again. Returns those that do not exist.

    Raises:
        TransferError: the download fails.
    """
    with opened(repo) as (store, cache):
        there = set(store.oids_exist(md5s, jobs=QUERIES))
        _add(store, cache, there)
    return sorted(set(md5s) - there)


@contextmanager
def opened(repo: Repo, name: str | None = None) -> Iterator[tuple[HashFileDB, HashFileDB]]:
    """A store (by default the default remote) and the cache; what goes wrong inside the block says which store it was.

    Raises:
        TransferError: in place of whatever is raised inside, but not of errors in DVC's configuration.
    """
    remote = repo.cloud.get_remote(name)
    try:
        store = repo.cloud.get_remote_odb(name)
        store.fs.fs.invalidate_cache()  # what it held a minute ago is no answer
        yield store, repo.cache.local
    except (dvc.config.ConfigError, dvc_objects.fs.errors.ConfigError):
        raise  # another try would end the same way
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TransferError(f"store {remote.name!r} ({remote.fs.unstrip_protocol(remote.path)}): {reason}") from error


def _send(store: HashFileDB, cache: HashFileDB, md5s: Set[str], tags: Mapping[str, str], also: Set[str]) -> None:
    """Upload objects, and compare them and those in ``also`` with the bytes here; wrong ones are removed again.

    Those in ``tags`` have been sent already; it says which ETags they must have.
    """
    _add(cache, store, md5s - tags.keys())
    store.fs.fs.invalidate_cache()  # it has not seen the large ones come
    compared = sorted(md5s | also)
    facts = store.fs.info([store.oid_to_path(md5) for md5 in compared], batch_size=QUERIES)
    held = zip(compared, facts, strict=True)
    wrong = [md5 for md5, fact in held if not _same(store, md5, fact, Path(cache.oid_to_path(md5)), tags.get(md5))]
    for md5 in wrong:
        store.delete(md5)
    if wrong:
        raise OSError(f"it stored other bytes than were sent for {len(wrong)} objects ({wrong[0]}, …)")


def _add(source: HashFileDB, target: HashFileDB, md5s: Collection[str]) -> None:
    """Copy objects; DVC checks the hash of each download, and deletes one with wrong bytes."""
    # Listings last: other tools take a listing as proof that its files are stored.
    ordered = sorted(md5s, key=lambda md5: (md5.endswith(".dir"), md5))
    for start in range(0, len(ordered), GROUP):
        group = ordered[start : start + GROUP]
        failed: dict[str, BaseException] = {}
        target.add(
            [source.oid_to_path(md5) for md5 in group], source.fs, group, verify=target.fs.protocol == "local",
            check_exists=False, batch_size=JOBS, on_error=failed.__setitem__,
        )  # fmt: skip
        if failed:
            raise next(iter(failed.values()))


def _same(store: HashFileDB, md5: str, facts: Mapping[str, Any], sent: Path, expected: str | None) -> bool:
    """Whether a stored object has the bytes that were sent; ``expected`` is its ETag where that is known.

    On S3 most often the ETag tells: it is the md5 of what came in one piece, and a hash of the parts' md5s for what
    came in several (50 MiB each, as s3fs cuts them). Encrypting and other stores have no such ETags: then the object is
    read again.
    """
    size = sent.stat().st_size
    if facts["size"] != size:
        return False
    digest = md5.removesuffix(".dir")
    tag = str(facts.get("ETag", "")).strip('"')
    if "-" in tag and not expected:
        expected = upload.tag_of_parts(sent, calculate_chunksize(size))
    if tag in (digest, expected):
        return True
    digested = hashlib.md5()
    with store.fs.open(store.oid_to_path(md5), "rb") as file:
        while part := file.read(1 << 20):
            digested.update(part)
    return digested.hexdigest() == digest
