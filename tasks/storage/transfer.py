"""Objects between a project's cache and its store: exactly those named, and never a byte that is not theirs.

DVC's own ``push``, ``status`` and ``fetch`` take a folder's listing in the store as a promise that its files are
there, and compare names only. Here each object is asked for, and its bytes are compared on both ways.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dvc.config
import dvc_objects.fs.errors
from dvc.repo import Repo
from dvc_data.hashfile.db import HashFileDB

from tasks.storage import bucket, dvc_config
from tasks.storage.bucket import Bucket, Fact
from tasks.storage.by_dvc import ByDvc


class TransferError(Exception):
    """A transfer failed; networks and stores recover, so another try makes sense."""


def push(repo: Repo, md5s: Collection[str], known: Collection[str], remote: str | None = None) -> int:
    """Make the store hold objects of the cache, byte for byte; returns how many were sent.

    Those in ``known`` belong to a state that is recorded, and were compared when it was: they only have to exist.

    Raises:
        TransferError: the store refuses them, or stores other bytes (those objects are removed from it again).
    """
    with reached(repo, remote) as store:
        absent = set(md5s) - store.existing(md5s)
        _send(repo, store, absent, set(md5s) - set(known))
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
    with reached(repo, remote) as store:
        _send(repo, store, set(objects), set())
    return {}


def fetch(repo: Repo, md5s: Collection[str]) -> list[str]:
    """Download objects into the cache; those with wrong bytes are not kept. Returns those that do not exist.

    Raises:
        TransferError: the download fails.
    """
    targets = {md5: _cached(repo, md5) for md5 in md5s}
    with reached(repo) as store:
        absent = store.fetch(targets)
    for path in targets.values():
        with suppress(FileNotFoundError):
            path.chmod(0o444)  # nothing is to write to it, and DVC need not hash it again
    return sorted(absent)


@contextmanager
def reached(repo: Repo, name: str | None = None) -> Iterator[Bucket | ByDvc]:
    """The objects of a store (by default the default remote): on S3 by boto3, elsewhere by DVC; see `opened`."""
    remote = dvc_config.remote(Path(repo.root_dir), name or repo.config["core"]["remote"])
    if remote.is_s3 and remote.options.keys() <= bucket.OPTIONS:
        with _errors_named(repo, name):
            yield Bucket(remote)
    else:
        with opened(repo, name) as store:
            yield ByDvc(store)


@contextmanager
def opened(repo: Repo, name: str | None = None) -> Iterator[HashFileDB]:
    """A store as DVC has it; what goes wrong inside the block says which store it was.

    Raises:
        TransferError: in place of whatever is raised inside, but not of errors in DVC's configuration.
    """
    with _errors_named(repo, name):
        store = repo.cloud.get_remote_odb(name)
        store.fs.fs.invalidate_cache()  # what it held a minute ago is no answer
        yield store


@contextmanager
def _errors_named(repo: Repo, name: str | None) -> Iterator[None]:
    remote = repo.cloud.get_remote(name)
    try:
        yield
    except (dvc.config.ConfigError, dvc_objects.fs.errors.ConfigError):
        raise  # another try would end the same way
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TransferError(f"store {remote.name!r} ({remote.fs.unstrip_protocol(remote.path)}): {reason}") from error


def _send(repo: Repo, store: Bucket | ByDvc, md5s: Set[str], also: Set[str]) -> None:
    """Upload objects, and compare them and those in ``also`` with the bytes here; wrong ones are removed again."""
    tags = store.send({md5: _cached(repo, md5) for md5 in md5s})
    compared = md5s | also
    facts = store.facts(compared)
    wrong = [
        md5 for md5 in sorted(compared)
        if md5 not in facts or not _same(store, md5, facts[md5], _cached(repo, md5), tags.get(md5))
    ]  # fmt: skip
    if wrong:
        store.delete(wrong)
        raise OSError(f"it stored other bytes than were sent for {len(wrong)} objects ({wrong[0]}, …)")


def _cached(repo: Repo, md5: str) -> Path:
    """Where the cache has an object, or would."""
    return Path(repo.cache.local.oid_to_path(md5))


def _same(store: Bucket | ByDvc, md5: str, fact: Fact, sent: Path, expected: str | None) -> bool:
    """Whether a stored object has the bytes that were sent; ``expected`` is its ETag where that is known.

    On S3 most often the ETag tells: it is the md5 of what came in one piece, and a hash of the parts' md5s for what
    came in several (50 MiB each, as s3fs cuts them). Encrypting and other stores have no such ETags: then the object is
    read again.
    """
    size = sent.stat().st_size
    if fact.size != size:
        return False
    if "-" in fact.tag and not expected:
        expected = bucket.tag_of_parts(sent, bucket.part_size(size))
    digest = md5.removesuffix(".dir")
    return fact.tag in (digest, expected) or store.digest(md5) == digest
