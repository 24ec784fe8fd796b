"""Reading from S3-compatible storage, with the usual AWS environment variables."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tasks.arrive import drops
from tasks.errors import UserError
from tasks.params import Limits
from tasks.progress import Progress
from tasks.storage import store
from tasks.storage.dvc_config import Remote

SCHEME = "s3://"
JOBS = 8
"""Parallel downloads."""


class UnreachableError(UserError):
    """The storage did not do as asked: nothing is known of what is in it, and another try may tell."""


@dataclass(frozen=True)
class Stored:
    """An object as a listing has it."""

    size: int
    tag: str
    """Its ETag: another one after every change."""


def objects(address: str) -> dict[str, Stored]:
    """What lies at or below ``s3://BUCKET/KEY``: key relative to it (``""`` for an object of that very key) → object.

    Raises:
        UserError: no such address.
        UnreachableError: no access, or no answer.
    """
    bucket, key = _split(address)
    with _complaints(address):
        pages = store.client(Remote("s3", address)).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
        listed = {one["Key"]: Stored(one["Size"], one["ETag"]) for page in pages for one in page.get("Contents", ())}
    if key in listed and not key.endswith("/"):
        return {"": listed[key]}
    prefix = f"{key.rstrip('/')}/" if key else ""
    return {
        name.removeprefix(prefix): about
        for name, about in sorted(listed.items())
        if name.startswith(prefix) and not name.endswith("/")  # some programs make objects for folders
    }


def download(
    address: str, into: Path, progress: Progress, limits: Limits | None = None, ignored: Collection[str] = ()
) -> Path:
    """Download a file, or all below a prefix but ``ignored`` keys, into ``into``; returns the file or the folder there.

    Raises:
        UserError: there is nothing, a key that is no path below the folder, or more than the limits allow.
        UnreachableError: no access, or no answer, or it breaks off.
    """
    wanted = {name: about for name, about in objects(address).items() if name not in ignored}
    if not wanted:
        raise UserError(f"{address}: nothing is stored there")
    if limits:
        total = sum(about.size for about in wanted.values())
        for name, about in wanted.items():
            drops.require_within(limits, total, about.size, f"{address}/{name}", address)
    bucket, key = _split(address)
    home = into / (PurePosixPath(key).name or bucket)
    for name in wanted:
        if name and (name.startswith("/") or {"..", "."} & set(PurePosixPath(name).parts) or "//" in name):
            raise UserError(f"{address}: holds the key {name!r}, which is no path of a file")
    client = store.client(Remote("s3", address))

    def fetch(name: str) -> None:
        target = home / name if name else home
        target.parent.mkdir(parents=True, exist_ok=True)
        client.download_file(bucket, f"{key.rstrip('/')}/{name}".lstrip("/") if name else key, str(target))

    with _complaints(address), ThreadPoolExecutor(JOBS) as pool:
        for done, _ in enumerate(pool.map(fetch, wanted), start=1):
            progress(f"downloading {address}", done, len(wanted))
    return home


def text(address: str) -> str:
    """The content of a small object.

    Raises:
        UserError: it is no text.
        UnreachableError: no access, or no answer.
    """
    bucket, key = _split(address)
    with _complaints(address):
        content = store.client(Remote("s3", address)).get_object(Bucket=bucket, Key=key)["Body"].read()
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise UserError(f"{address}: not a text") from None


def _split(address: str) -> tuple[str, str]:
    bucket, _, key = address.removeprefix(SCHEME).partition("/")
    if not address.startswith(SCHEME) or not bucket:
        raise UserError(f"{address}: not of the form s3://BUCKET/KEY")
    return bucket, key


@contextmanager
def _complaints(address: str) -> Iterator[None]:
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        raise UnreachableError(f"{address}: the storage {store.reason(error)}") from None
    except (BotoCoreError, Boto3Error, ValueError) as error:
        raise UnreachableError(f"{address}: the storage cannot be read: {store.reason(error)}") from None
