"""Objects that go to a real S3 server and come back, by boto3; and to a store that DVC alone reaches."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
from dvc.repo import Repo
from s3fs.core import calculate_chunksize

from tasks.storage import bucket, dvc_config, inventory, store, transfer
from tasks.storage.bucket import Bucket, Fact
from tasks.storage.by_dvc import ByDvc
from tasks.storage.cache import Cache, md5_of
from tasks.storage.dvc_config import Remote
from tests.record.faults import Fault, FaultPlan, proxied


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with Repo.init(str(tmp_path), no_scm=True):
        return tmp_path


@pytest.fixture
def remote(s3: Remote, tmp_path: Path) -> Remote:
    return Remote(s3.name, f"{s3.url}/{tmp_path.name}", s3.options)


@pytest.fixture
def disk(folder: Path) -> Iterator[tuple[Repo, str]]:
    dvc_config.write_remote(folder, Remote("disk", str(folder / "elsewhere")))
    dvc_config.write_local(folder, {"core": {"remote": "disk"}})
    with Repo(str(folder)) as repo:
        yield repo, "disk"


def put(folder: Path, size: int) -> str:
    """The md5 of a new object in the cache."""
    path = folder / f"{size}"
    path.write_bytes(os.urandom(size))
    return Cache(dvc_config.cache_dir(folder)).put(path).md5


def test_large_objects_are_sent_once_and_whole(folder: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "SENT", 6_000_000)  # several parts without a gigabyte
    large, small = put(folder, 18_000_000), put(folder, 1000)
    dvc_config.write_remote(folder, remote)
    dvc_config.write_local(folder, {"core": {"remote": remote.name}})
    cache = Cache(dvc_config.cache_dir(folder))
    tags = Bucket(remote).send({md5: cache.path(md5) for md5 in (large, small)})
    s3 = store.client(remote)
    rows = s3.list_objects_v2(Bucket=remote.bucket, Prefix=remote.prefix)["Contents"]
    there = {row["Key"]: row["ETag"].strip('"') for row in rows}
    assert set(there) == {f"{remote.prefix}/files/md5/{md5[:2]}/{md5[2:]}" for md5 in (large, small)}
    assert tags == {large: there[remote.object_key(large)]}
    assert tags[large].endswith("-3")
    with Repo(str(folder)) as repo:
        assert not repo.status(cloud=True)  # DVC looks for it in the same place


def test_objects_come_in_parts_and_are_compared(
    tmp_path: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "PART", 1000)
    contents = {hashlib.md5(content).hexdigest(): content for content in map(os.urandom, (0, 1, 1000, 1001, 5500))}
    listing = hashlib.md5(b"[]").hexdigest() + ".dir"
    contents[listing] = b"[]"
    for md5, content in contents.items():
        (tmp_path / md5).write_bytes(content)
    plan = FaultPlan()
    with proxied(remote, plan) as reached:
        here = Bucket(reached)
        here.send({md5: tmp_path / md5 for md5 in contents})
        assert plan.asked[-1].endswith(".dir"), "the listing goes last"
        plan.asked.clear()
        assert Bucket(reached).existing([*contents, "0" * 32]) == set(contents)
        assert len(plan.asked) == 1
        with monkeypatch.context() as patch:  # a store with more than a page
            one_key = functools.partial(here._s3.list_objects_v2, MaxKeys=1)
            patch.setattr(here._s3, "list_objects_v2", one_key)
            assert here.existing([*contents, "0" * 32]) == set(contents)
        assert here.facts(contents).keys() == contents.keys()
        targets = {md5: tmp_path / "back" / md5 for md5 in [*contents, "0" * 32]}
        plan.asked.clear()
        assert here.fetch(targets) == {"0" * 32}
        assert {md5: path.read_bytes() for md5, path in targets.items() if path.exists()} == contents
        assert len(plan.asked) == 5 + 2 + 6  # one request for what fits into a part
        plan.faults = [Fault("truncate", "GET", times=2)]  # the answer of a part breaks off, and again
        longest = max(contents, key=lambda md5: len(contents[md5]))
        targets[longest].unlink()
        assert here.fetch({longest: targets[longest]}) == set()
        assert targets[longest].read_bytes() == contents[longest]
        plan.faults = [Fault("short", "GET", times=1)]  # what the first answer lacks is asked for
        targets[longest].unlink()
        assert here.fetch({longest: targets[longest]}) == set()
        assert targets[longest].read_bytes() == contents[longest]
        plan.faults = [Fault("flip", "GET", times=1)]
        targets[longest].unlink()
        assert here.fetch({longest: targets[longest]}) == set()
        assert not [path for path in (tmp_path / "back").iterdir() if longest in path.name]


class _Answer(BaseHTTPRequestHandler):
    """To every question ten bytes, and what a test has it say of them; without an end where it says no length."""

    protocol_version = "HTTP/1.1"
    said: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        self.send_response(206)
        for name, value in self.said.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):  # the client has gone
            while "Content-Length" not in self.said:
                self.wfile.write(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
            self.wfile.write(bytes(10))

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"Content-Range": f"bytes 0-9/{10**20}", "Content-Length": "10"}, "No space left on device for an object of"),
        ({"Content-Range": "bytes 0-9/*", "Content-Length": "10"}, "does not say how many bytes an object has"),
        ({"Content-Range": "bytes 0-9/-5", "Content-Length": "10"}, "does not say how many bytes an object has"),
        ({"Transfer-Encoding": "chunked"}, "does not say how many bytes an object has"),
        ({"Content-Range": "bytes 0-9/10", "Transfer-Encoding": "chunked"}, None),
    ],
)
def test_a_store_of_somebody_else_fills_neither_disk_nor_memory(
    tmp_path: Path, said: dict[str, str], why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The endpoint may be one that another person's repository names."""
    monkeypatch.setattr(_Answer, "said", said)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        options = {"endpointurl": f"http://127.0.0.1:{server.server_port}", "region": "us-east-1"}
        options |= {"access_key_id": "a", "secret_access_key": "b"}
        target = tmp_path / "back"
        with pytest.raises(OSError, match=why) if why else nullcontext():
            Bucket(Remote("there", "s3://bucket/x", options)).fetch({"0" * 32: target})
        server.shutdown()
    assert not [*tmp_path.iterdir()]


def test_an_error_ends_what_has_not_begun(remote: Remote) -> None:
    names = [f"{number:032x}" for number in range(200)]
    plan = FaultPlan([Fault("500", "HEAD")])
    with proxied(remote, plan) as reached, pytest.raises(Exception, match=r"500|InternalError"):
        Bucket(reached).facts(names)
    assert len({line.split("?")[0] for line in plan.asked}) < 100


def test_parts_are_those_of_s3fs() -> None:
    for size in (1, 10 << 20, 99 << 20, 600_000_000, bucket.SENT * 10_000, bucket.SENT * 10_000 + 1, 5 << 40):
        assert bucket.part_size(size) == calculate_chunksize(size)


def test_a_remote_with_options_of_encryption_is_left_to_dvc(folder: Path, remote: Remote) -> None:
    for options, kind in (({}, Bucket), ({"sse": "AES256"}, ByDvc)):
        dvc_config.write_remote(folder, Remote(remote.name, remote.url, {**remote.options, **options}))
        with Repo(str(folder)) as repo, transfer.reached(repo, remote.name) as reached:
            assert isinstance(reached, kind)


def test_a_folder_as_a_store(disk: tuple[Repo, str], folder: Path) -> None:
    repo, name = disk
    one, other = put(folder, 1000), put(folder, 2000)
    assert transfer.push(repo, [one, other], ()) == 2
    assert transfer.push(repo, [one, other], [one]) == 0
    cache = Cache(dvc_config.cache_dir(folder))
    cache.path(one).unlink()
    assert transfer.fetch(repo, [one, "0" * 32]) == ["0" * 32]
    assert md5_of(cache.path(one)) == one
    assert cache.path(one).stat().st_mode & 0o777 == 0o444
    listed = inventory.stored(repo, remote=name)["objects"]
    assert {md5: size for md5, (size, _) in listed.items()} == {one: 1000, other: 2000}
    damaged = folder / "elsewhere/files/md5" / one[:2] / one[2:]
    damaged.chmod(0o644)
    damaged.write_bytes(bytes(1000))
    (folder / "taken").mkdir()
    (folder / "taken" / one).write_bytes(b"of before")
    assert inventory.take(repo, remote=name, objects=[one, other], into=str(folder / "taken")) == {"taken": [other]}
    with transfer.reached(repo, name) as reached:
        assert reached.facts([one, other]) == {other: Fact(2000, "")}  # DVC itself removes what is damaged there
    assert transfer.push(repo, [one, other], ()) == 1
    inventory.discard(repo, remote=name, objects=[one, other])
    assert inventory.stored(repo, remote=name)["objects"] == {}


def test_objects_of_a_bucket_are_listed_and_deleted(tmp_path: Path, remote: Remote) -> None:
    here = Bucket(remote)
    assert here.listed() == {}
    (tmp_path / "x").write_bytes(b"x")
    md5 = md5_of(tmp_path / "x")
    here.send({md5: tmp_path / "x"})
    assert {name: size for name, (size, _) in here.listed().items()} == {md5: 1}
    assert here.digest(md5) == md5
    here.delete([md5])
    assert Bucket(remote).existing([md5]) == set()
