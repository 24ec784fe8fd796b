"""Stored bytes against recorded hashes: every object that states are made of, in the cache and in the remote.

Every object is read to its end in both places. What a store says of its objects without giving them (an ETag) is
what it was told when they came, not what it would give back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import UserError
from tasks.params import load
from tasks.progress import Progress, silent
from tasks.record import retention, stores
from tasks.record.state import State
from tasks.storage import dvc_config, store
from tasks.storage.cache import Cache, listing
from tasks.storage.dvc import RemoteError
from tasks.storage.dvc_config import Remote

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

JOBS = 4
"""Objects read at a time, each by blocks of `BLOCK` bytes: nothing goes to disk, and little to memory."""
BLOCK = 1 << 20
TRIES = 4
"""Of one object, where the connection breaks."""


@dataclass(frozen=True)
class Digest:
    """What one place gives for an object: md5 and number of its bytes; the text, if it is a folder's listing."""

    md5: str
    size: int
    text: str | None


@dataclass(frozen=True)
class DamagedObject:
    """One object that is not as it should be in one place, and every path of a state that needs it."""

    md5: str
    needed_by: tuple[tuple[str, str], ...]
    """(tag, path) each."""


@dataclass(frozen=True)
class Holding:
    """What one place (the cache, the remote) has of what states need."""

    intact: int
    bytes: int
    damaged: tuple[DamagedObject, ...]
    missing: tuple[DamagedObject, ...]


@dataclass(frozen=True)
class Integrity:
    """The cache, and the remote, object by object."""

    objects: int
    cache: Holding
    remote: Holding

    @property
    def same(self) -> bool:
        """Whether the remote has all, and no byte is wrong anywhere; a cache may lack what the remote has."""
        return not (self.cache.damaged or self.remote.damaged or self.remote.missing)


def check_stored(project: Path, states: Iterable[State], progress: Progress) -> dict[str, Integrity]:
    """Read every stored byte of some states, in the cache and in the project's store; what was found, by store."""
    wanted = list(states)
    name = load(project / "params.yaml").store.remote
    stores.require_embedded(project, name, wanted[0])
    with store.open_store(project, name) as remote:
        return {name: check(wanted, Cache(dvc_config.cache_dir(project)), remote, progress)}


def check(states: Iterable[State], cache: Cache, remote: Remote, progress: Progress = silent) -> Integrity:
    """Read every object of some states in the cache and in the remote, each once.

    Weights that a state has let go are not asked for. What a folder holds is unknown where its listing is intact in
    neither place; then the listing alone is reported.

    Raises:
        RemoteError: the remote cannot be reached.
        UserError: the remote is not S3; or a folder's listing leads outside it.
    """
    if not remote.is_s3:
        raise UserError(f"store {remote.name!r} ({remote.url}) is no S3 store, and only those can be read through")
    s3 = store.client(remote)
    places = [
        _PlaceReader("the cache", lambda md5: _of_cache(cache, md5), progress),
        _PlaceReader(f"the store {remote.name}", lambda md5: _of_remote(s3, remote, md5), progress),
    ]
    entries = [
        (state.tag, path, entry)
        for state in states
        for path, entry in retention.held(state, retention.let_go(state.project)).items()
    ]
    uses: dict[str, list[tuple[str, str]]] = {}
    for tag, path, entry in entries:
        uses.setdefault(entry.md5, []).append((tag, path))
    folders = sorted({entry.md5 for _, _, entry in entries if entry.is_folder})
    for place in places:
        place.read(folders)
    for tag, path, entry in entries:
        text = next(filter(None, (place.text(entry.md5) for place in places)), None) if entry.is_folder else None
        for name, md5 in listing(text, entry.md5).items() if text else ():
            uses.setdefault(md5, []).append((tag, f"{path}/{name}"))
    files = sorted(set(uses) - set(folders))
    for place in places:
        place.read(files)
    here, there = (place.against(uses) for place in places)
    return Integrity(len(uses), here, there)


class _PlaceReader:
    """What one place has given so far."""

    def __init__(self, name: str, digest: Callable[[str], Digest | None], progress: Progress):
        self._name, self._digest, self._progress = name, digest, progress
        self._found: dict[str, Digest | None] = {}

    def read(self, objects: Sequence[str]) -> None:
        with ThreadPoolExecutor(JOBS) as pool:
            for done, (md5, digest) in enumerate(zip(objects, pool.map(self._digest, objects), strict=True), 1):
                self._found[md5] = digest
                self._progress(f"reading {self._name}", done, len(objects))

    def text(self, md5: str) -> str | None:
        digest = self._intact(md5)
        return digest.text if digest else None

    def _intact(self, md5: str) -> Digest | None:
        digest = self._found[md5]
        return digest if digest and digest.md5 == md5.removesuffix(".dir") else None

    def against(self, uses: Mapping[str, Sequence[tuple[str, str]]]) -> Holding:
        intact = [digest for md5 in uses if (digest := self._intact(md5))]
        missing = [md5 for md5 in uses if self._found[md5] is None]
        damaged = [md5 for md5 in uses if self._found[md5] and not self._intact(md5)]

        def findings(objects: Sequence[str]) -> tuple[DamagedObject, ...]:
            return tuple(DamagedObject(md5, tuple(uses[md5])) for md5 in objects)

        return Holding(len(intact), sum(digest.size for digest in intact), findings(damaged), findings(missing))


def _of_cache(cache: Cache, md5: str) -> Digest | None:
    path = cache.path(md5)
    if not path.exists():
        return None
    with path.open("rb") as file:
        return _digest(md5, iter(lambda: file.read(BLOCK), b""))


def _of_remote(s3: S3Client, remote: Remote, md5: str) -> Digest | None:
    from botocore.exceptions import BotoCoreError, ClientError

    key = remote.object_key(md5)
    tries = TRIES
    while True:
        try:
            return _digest(md5, s3.get_object(Bucket=remote.bucket, Key=key)["Body"].iter_chunks(BLOCK))
        except s3.exceptions.NoSuchKey:
            return None
        except (BotoCoreError, ClientError, OSError) as error:
            tries -= 1
            if not tries:
                raise RemoteError(f"reading {key} from store {remote.name!r} failed: {error}") from error


def _digest(md5: str, blocks: Iterable[bytes]) -> Digest:
    hashed, size, text = hashlib.md5(usedforsecurity=False), 0, bytearray()
    for block in blocks:
        hashed.update(block)
        size += len(block)
        if md5.endswith(".dir"):
            text += block
    return Digest(hashed.hexdigest(), size, text.decode(errors="replace") if md5.endswith(".dir") else None)
