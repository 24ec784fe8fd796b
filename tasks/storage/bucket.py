"""The objects of states in an S3 store, by boto3: small files side by side, large ones in parts side by side.

DVC's own transfer (s3fs) asks for each object before it reads it, sends all from one event loop, holds parts of 50 MB
in memory, and hashes a file after it has come. Here one request reads a small object, an answer goes to the disk piece
by piece, and parts are hashed while the next ones come.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError
from s3transfer.utils import S3_RETRYABLE_DOWNLOAD_ERRORS

from tasks.storage import atomic, dvc_config, store
from tasks.storage.dvc_config import Remote

if TYPE_CHECKING:
    from types_boto3_s3.type_defs import GetObjectOutputTypeDef, ObjectIdentifierTypeDef

SENT = 50 << 20
"""Bytes of a part that is sent, as s3fs has them: then an object's ETag says the same whoever has sent it."""
MOST_PARTS = 10_000
"""Of one object, in S3; larger ones have larger parts."""
LARGE = 16_000_000
"""Bytes from which an object is sent by itself, in parts."""
PARTS = 4
"""Parts of large objects on their way at a time."""
PART = 8 << 20
"""Bytes of a part that is fetched."""
OBJECTS = 16
"""Requests for whole objects on their way at a time."""
TRIES = 4
"""How often a part is asked for whose answer breaks off; botocore repeats requests that are not answered."""
_PIECE = 1 << 20
_LISTED = 1000
"""Objects that one request deletes at most."""
OPTIONS = frozenset(
    {"endpointurl", "region", "profile", "access_key_id", "secret_access_key", "session_token", *dvc_config.TIMEOUTS}
)
"""The options of a remote that `store.client` knows. A remote with others, such as for encryption, is left to DVC."""

T = TypeVar("T")


@dataclass(frozen=True)
class Fact:
    """What a store says of an object: its bytes, and its ETag, empty where there is none."""

    size: int
    tag: str


class Bucket:
    """The objects of an S3 remote, for one transfer: what it has told once, it is not asked again."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._s3 = store.client(remote, connections=OBJECTS + PARTS)
        self._folder = remote.key("files", "md5") + "/"
        self._facts: dict[str, Fact] = {}

    def existing(self, md5s: Iterable[str]) -> set[str]:
        """Those of some objects that it holds: out of the first page of its list, in which a small store has all."""
        wanted = set(md5s) - self._facts.keys()
        asked = wanted
        if len(wanted) > 1:
            page = self._s3.list_objects_v2(Bucket=self._remote.bucket, Prefix=self._folder)
            rows = page.get("Contents", [])
            self._facts |= {_name(row["Key"]): Fact(row["Size"], row.get("ETag", "").strip('"')) for row in rows}
            last = rows[-1]["Key"] if page["IsTruncated"] else None
            asked = {md5 for md5 in wanted if last and self._remote.object_key(md5) > last}
        self.facts(asked)
        return set(md5s) & self._facts.keys()

    def facts(self, md5s: Iterable[str]) -> dict[str, Fact]:
        """What it says of those of some objects that it holds."""
        wanted = set(md5s)
        side_by_side(self._look, wanted - self._facts.keys())
        return {md5: self._facts[md5] for md5 in wanted & self._facts.keys()}

    def _look(self, md5: str) -> None:
        try:
            answer = self._s3.head_object(Bucket=self._remote.bucket, Key=self._remote.object_key(md5))
        except ClientError as error:
            if error.response["Error"]["Code"] not in store.ABSENT:
                raise
        else:
            self._facts[md5] = Fact(answer["ContentLength"], answer.get("ETag", "").strip('"'))

    def send(self, paths: Mapping[str, Path]) -> dict[str, str]:
        """Upload objects (md5 → file); returns the ETags that those in parts must have.

        Listings go last: other tools take a listing as proof that its files are stored.
        """
        for md5 in paths:
            self._facts.pop(md5, None)
        large = sorted(md5 for md5, path in paths.items() if path.stat().st_size >= LARGE)
        listings = {md5 for md5 in paths if md5.endswith(".dir")}
        side_by_side(lambda md5: self._put(md5, paths[md5]), paths.keys() - listings - set(large))
        tags = {}
        with ThreadPoolExecutor(1) as aside:
            for md5 in large:
                part = part_size(size := paths[md5].stat().st_size)
                in_parts = size >= 2 * part  # as s3fs decides
                tag = aside.submit(tag_of_parts, paths[md5], part) if in_parts else None  # while the parts are sent
                self._s3.upload_file(
                    str(paths[md5]), self._remote.bucket, self._remote.object_key(md5),
                    Config=TransferConfig(
                        multipart_threshold=2 * part, multipart_chunksize=part, max_concurrency=PARTS
                    ),
                )  # fmt: skip
                if tag:
                    tags[md5] = tag.result()
        side_by_side(lambda md5: self._put(md5, paths[md5]), listings - set(large))
        return tags

    def _put(self, md5: str, path: Path) -> None:
        with path.open("rb") as file:
            self._s3.put_object(Bucket=self._remote.bucket, Key=self._remote.object_key(md5), Body=file)

    def fetch(self, targets: Mapping[str, Path]) -> set[str]:
        """Download objects (md5 → file), each whole or not at all; returns those that do not exist.

        One that comes with other bytes than its name promises is not kept either.
        """
        with ThreadPoolExecutor(PARTS) as parts:
            there = side_by_side(lambda md5: self._fetched(md5, targets[md5], parts), targets)
        return {md5 for md5, exists in there.items() if not exists}

    def _fetched(self, md5: str, target: Path, parts: ThreadPoolExecutor) -> bool:
        """Download an object, if it exists."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with closing(atomic.Replacement(target)) as made, made.path.open("xb+", buffering=0) as file:
            try:
                come, size = self._part(md5, file.fileno(), 0)
            except ClientError as error:
                if error.response["Error"]["Code"] not in store.ABSENT:
                    raise
                return False
            rest = [parts.submit(self._part, md5, file.fileno(), start) for start in range(come, size, PART)]
            try:
                digest = _digest(file.fileno(), 0, come, hashlib.md5())
                for start, part in zip(range(come, size, PART), rest, strict=True):
                    part.result()
                    _digest(file.fileno(), start, PART, digest)
            finally:
                for part in rest:
                    part.cancel()
                wait(rest)  # they write to the file
            if digest.hexdigest() == md5.removesuffix(".dir"):
                made.commit()
            return True

    def _part(self, md5: str, file: int, start: int) -> tuple[int, int]:
        """Read a part of an object into a file; returns where it ends, and how many bytes the object has."""
        bucket, key = self._remote.bucket, self._remote.object_key(md5)
        for again in reversed(range(TRIES)):
            end = start
            try:
                answer = self._s3.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{start + PART - 1}")
                length, most = _announced(answer, start)
                if not start:
                    _require_room(file, length)
                with closing(answer["Body"]) as body:
                    for piece in body.iter_chunks(_PIECE):
                        end += os.pwrite(file, piece[: most - end], end)
                        if end == most:  # an answer that goes on is none to this question
                            break
            except S3_RETRYABLE_DOWNLOAD_ERRORS:
                if not again:
                    raise
            except ClientError as error:
                if start or error.response["Error"]["Code"] != "InvalidRange":
                    raise
                return 0, 0  # an object without a byte has no range
            else:
                return end, length
        raise AssertionError("unreachable")

    def digest(self, md5: str) -> str:
        """The md5 of what it holds under a name: the object is read."""
        digested = hashlib.md5()
        answer = self._s3.get_object(Bucket=self._remote.bucket, Key=self._remote.object_key(md5))
        for piece in answer["Body"].iter_chunks(_PIECE):
            digested.update(piece)
        return digested.hexdigest()

    def delete(self, md5s: Collection[str]) -> None:
        """Remove objects."""
        keys = [self._remote.object_key(md5) for md5 in sorted(md5s)]
        for start in range(0, len(keys), _LISTED):
            some: list[ObjectIdentifierTypeDef] = [{"Key": key} for key in keys[start : start + _LISTED]]
            answer = self._s3.delete_objects(Bucket=self._remote.bucket, Delete={"Objects": some, "Quiet": True})
            for refused in answer.get("Errors", ()):
                raise OSError(f"it does not delete {refused.get('Key')}: {refused.get('Message')}")

    def listed(self) -> dict[str, tuple[int, float]]:
        """All files in the folder of the objects: name → bytes, and when it was last written (seconds since 1970)."""
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._remote.bucket, Prefix=self._folder)
        rows = [row for page in pages for row in page.get("Contents", ())]
        return {_name(row["Key"]): (row["Size"], row["LastModified"].timestamp()) for row in rows}


def side_by_side(work: Callable[[str], T], names: Iterable[str], jobs: int = OBJECTS) -> dict[str, T]:
    """The results of some work by name; an error ends what has not begun yet."""
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(work, name): name for name in sorted(names)}
        try:
            return {running[done]: done.result() for done in as_completed(running)}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _announced(answer: GetObjectOutputTypeDef, start: int) -> tuple[int, int]:
    """How many bytes an object has, by an answer to a question for a part of it, and where that part ends at most.

    Raises:
        OSError: it does not say.
    """
    said = answer.get("ContentRange", "").rpartition("/")[2]  # empty of a store that knows no ranges, and sends all
    length = said or str(answer.get("ContentLength", ""))
    if not length.isdecimal():
        raise OSError(f"it does not say how many bytes an object has, but {length!r:.40}")
    return int(length), start + PART if said or start else int(length)


def _require_room(file: int, length: int) -> None:
    """Raises:
    OSError: the disk of an open file has no room for so many bytes.
    """
    disk = os.fstatvfs(file)
    if length > disk.f_bavail * disk.f_frsize:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} for an object of {length} bytes")


def _name(key: str) -> str:
    """An object's name, of its key in a bucket."""
    return "".join(key.split("/")[-2:])


def part_size(size: int) -> int:
    """Bytes of the parts in which an object of ``size`` bytes is sent; of less than two, it goes in one piece."""
    return max(SENT, -(-size // MOST_PARTS))


def tag_of_parts(path: Path, length: int) -> str:
    """The ETag of a file that was sent in parts of ``length`` bytes: a hash of the parts' md5s, and their number."""
    with path.open("rb") as file:
        starts = range(0, path.stat().st_size, length)
        parts = [_digest(file.fileno(), start, length, hashlib.md5()).digest() for start in starts]
    return f"{hashlib.md5(b''.join(parts)).hexdigest()}-{len(parts)}"


def _digest(file: int, start: int, length: int, digest: hashlib._Hash) -> hashlib._Hash:
    """Add the bytes of a part of a file, as far as it has them, to a hash."""
    end = start + length
    while piece := os.pread(file, min(_PIECE, end - start), start):
        digest.update(piece)
        start += len(piece)
    return digest
