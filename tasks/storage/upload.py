"""Large objects on their way to an S3 store: boto3 sends a file straight from disk, part by part.

DVC's own transfer (s3fs) holds each part in memory and sends all parts from one event loop: half as fast, and 50 MB
for each part on its way. The many small objects are still sent by DVC.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from boto3.s3.transfer import TransferConfig
from dvc.repo import Repo
from s3fs.core import calculate_chunksize

from tasks.storage import dvc_config, store

LARGE = 16_000_000
"""Bytes from which an object is sent here."""
CONCURRENCY = 4
"""Parts on their way at a time."""


def large_objects(repo: Repo, name: str, md5s: Collection[str]) -> dict[str, str]:
    """Send those objects of the cache that are large to a remote; returns their ETags if all goes well.

    A remote that is not S3 gets nothing here. Parts are cut as s3fs cuts them, so that an object's ETag says the same
    whoever has sent it.

    Raises:
        boto3's and botocore's errors: the store refuses them.
    """
    remote = dvc_config.remote(Path(repo.root_dir), name)
    paths = {md5: Path(repo.cache.local.oid_to_path(md5)) for md5 in md5s}
    large = {md5: size for md5, path in paths.items() if (size := path.stat().st_size) >= LARGE}
    if not remote.is_s3 or not large:
        return {}
    s3, tags = store.client(remote), {}
    with ThreadPoolExecutor(1) as aside:
        for md5, size in sorted(large.items()):
            part = calculate_chunksize(size)
            in_parts = size >= 2 * part  # as s3fs decides
            tag = aside.submit(tag_of_parts, paths[md5], part) if in_parts else None  # while the parts are sent
            settings = TransferConfig(
                multipart_threshold=2 * part, multipart_chunksize=part, max_concurrency=CONCURRENCY
            )
            s3.upload_file(str(paths[md5]), remote.bucket, remote.object_key(md5), Config=settings)
            tags[md5] = tag.result() if tag else md5
    return tags


def tag_of_parts(path: Path, length: int) -> str:
    """The ETag of a file that was sent in parts of ``length`` bytes: a hash of the parts' md5s, and their number."""
    parts = []
    with path.open("rb") as file:
        for start in range(0, path.stat().st_size, length):
            part = hashlib.md5()
            while (wanted := min(1 << 20, start + length - file.tell())) and (piece := file.read(wanted)):
                part.update(piece)
            parts.append(part.digest())
    return f"{hashlib.md5(b''.join(parts)).hexdigest()}-{len(parts)}"
