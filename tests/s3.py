"""A bucket of a real S3 server, reached as a user would: through the AWS environment variables."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest

from tasks.storage import store


@contextmanager
def bucket(home: Path, name: str) -> Iterator[Any]:
    """A new bucket of a server that keeps its data in a folder; boto3's resource."""
    (home / ".dvc").mkdir()
    with store.open_store(home, "embedded") as remote, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", remote.options["endpointurl"])
        patch.setenv("AWS_ACCESS_KEY_ID", remote.options["access_key_id"])
        patch.setenv("AWS_SECRET_ACCESS_KEY", remote.options["secret_access_key"])
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        made = boto3.Session().resource("s3").Bucket(name)
        made.create()
        yield made
