"""Large objects sent by boto3, into a real S3 server."""

import os
from pathlib import Path

import pytest
from dvc.repo import Repo

from tasks.storage import dvc_config, store, upload
from tasks.storage.cache import Cache
from tasks.storage.dvc_config import Remote


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    with Repo.init(str(tmp_path), no_scm=True) as repo:
        return repo


def put(folder: Path, name: str, size: int) -> str:
    """The md5 of a new object in the cache."""
    (folder / name).write_bytes(os.urandom(size))
    return Cache(dvc_config.cache_dir(folder)).put(folder / name).md5


def test_large_objects_are_sent_once_and_whole(repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "calculate_chunksize", lambda _: 6_000_000)  # several parts without a gigabyte
    large, small = put(tmp_path, "large", 18_000_000), put(tmp_path, "small", 1000)
    with store.open_store(tmp_path, "embedded") as remote:
        dvc_config.write_local(tmp_path, {"core": {"remote": remote.name}})
        repo = Repo(str(tmp_path))
        tags = upload.large_objects(repo, remote.name, {large, small})
        s3 = store.client(remote)
        (there,) = s3.list_objects_v2(Bucket=remote.bucket, Prefix=remote.prefix)["Contents"]
        assert there["Key"] == f"states/files/md5/{large[:2]}/{large[2:]}"
        assert tags == {large: there["ETag"].strip('"')}
        assert tags[large].endswith("-3")
        body = s3.get_object(Bucket=remote.bucket, Key=there["Key"])["Body"].read()
        assert body == (tmp_path / "large").read_bytes()
        assert not repo.status(cloud=True)  # DVC looks for it in the same place


@pytest.mark.usefixtures("repo")
def test_a_remote_that_is_not_s3_is_left_to_dvc(tmp_path: Path) -> None:
    large = put(tmp_path, "large", upload.LARGE)
    dvc_config.write_remote(tmp_path, Remote("disk", str(tmp_path / "elsewhere")))
    dvc_config.write_local(tmp_path, {"core": {"remote": "disk"}})
    assert upload.large_objects(Repo(str(tmp_path)), "disk", {large}) == {}
