"""Large objects on their way to an S3 store: boto3 sends a file straight from disk, part by part.

DVC's own transfer (s3fs) holds each part in memory and sends all parts from one event loop: half as fast, and 50 MB
for each part on its way. It remains what sends the many small objects.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from boto3.s3.transfer import TransferConfig
from dvc.repo import Repo
from s3fs.core import calculate_chunksize

from tasks.record import config, store

LARGE = 16_000_000
"""Bytes from which an object is sent here."""
CONCURRENCY = 4
"""Parts on their way at a time."""


def large_objects(repo: Repo, md5s: Collection[str]) -> set[str]:
    """Send those of some objects of the cache that are large to the default remote; returns which these were.

    A remote that is not S3 gets nothing here. Parts are cut as s3fs cuts them, so that an object's ETag says the same
    whoever has sent it.

    Raises:
        boto3's and botocore's errors: the store does not take them.
    """
    remote = config.remote(Path(repo.root_dir), repo.config["core"]["remote"])
    sizes = {md5: Path(repo.cache.local.oid_to_path(md5)).stat().st_size for md5 in md5s}
    large = {md5 for md5, size in sizes.items() if size >= LARGE} if remote.is_s3 else set()
    if not large:
        return large
    s3 = store.client(remote)
    for md5 in sorted(large):
        part = calculate_chunksize(sizes[md5])
        settings = TransferConfig(
            multipart_threshold=2 * part, multipart_chunksize=part, max_concurrency=CONCURRENCY, use_threads=True
        )
        key = "/".join(filter(None, [remote.prefix, "files/md5", md5[:2], md5[2:]]))
        s3.upload_file(repo.cache.local.oid_to_path(md5), remote.bucket, key, Config=settings)
    return large
