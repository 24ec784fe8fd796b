"""An inbox, data and experts in a real S3 store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks import inbox as inboxes
from tasks.arrive import Request, UnreachableError, arrive, s3
from tasks.params import load
from tests import s3 as s3_server
from tests.arrive.conftest import drop
from tests.inbox.test_scan import names

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_dvc")]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with s3_server.bucket(tmp_path_factory.mktemp("s3"), "drops") as made:
        yield made


def upload(bucket: Any, folder: Path, prefix: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            bucket.upload_file(str(path), f"{prefix}/{path.relative_to(folder).as_posix()}")


def test_an_inbox_in_s3(project: Path, tmp_path: Path, bucket: Any) -> None:
    def scan() -> inboxes.Scan:
        return inboxes.scan(project, "s3://drops/in/")

    spring = drop(tmp_path / "spring", {"cat": 2, "dog": 1})
    upload(bucket, spring, "in/spring")
    assert names(scan().waiting) == ["spring"]
    bucket.put_object(Key="in/spring/arrival.yaml", Body=b"prompt: an icon of a {}\n")
    found = scan()
    assert names(found.taken) == ["spring"]
    assert load(project / "params.yaml").stream[-1].update == [
        {"source": "images", "path": "data/arrivals/spring", "template": "an icon of a {}"}
    ]
    assert len(list((project / "data/arrivals/spring").rglob("*.png"))) == 3
    assert names(scan().known) == ["spring"]
    upload(bucket, spring, "in/again")
    bucket.put_object(Key="in/again/READY", Body=b"")
    assert "the very files of 'spring'" in scan().known[0].why
    bucket.upload_file(str(spring / "dog/0.png"), "in/spring/cat/2.png")
    assert names(scan().changed) == ["spring"]
    (spring / "cat/0.png").write_bytes(b"torn")
    upload(bucket, spring, "in/bad")
    bucket.put_object(Key="in/bad/READY", Body=b"")
    found = scan()
    assert "s3://drops/in/bad/cat/0.png: not an image" in found.refused[0].why
    assert len(found.known) == 1


def test_data_and_experts_in_s3(project: Path, tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(bucket, drop(tmp_path / "given", {"cat": 2}, seed=4), "data/given")
    for given in ("s3://drops/data/given", "images:s3://drops/data/given", "s3://drops/data/given/#train"):
        verdict = arrive(project, Request("new", (given,)), dry_run=True)
        assert verdict.outcome == "would arrive", verdict.problems
    bucket.put_object(Key="e.safetensors", Body=b"short")
    (problem,) = arrive(project, Request("vendor", expert="s3://drops/e.safetensors"), dry_run=True).problems
    assert problem.startswith("expert s3://drops/e.safetensors: a text file, not a safetensors file")
    (problem,) = arrive(project, Request("new", ("s3://drops/none",)), dry_run=True).problems
    assert problem == "s3://drops/none: nothing is stored there"
    for key in ("../../x.png", "a//b.png", "/etc/x.png"):
        monkeypatch.setattr(s3, "objects", lambda _, key=key: {key: s3.Stored(1, "")})
        (problem,) = arrive(project, Request("new", ("s3://drops/odd",)), dry_run=True).problems
        assert f"holds the key {key!r}, which is no path of a file" in problem


def test_a_store_that_does_not_answer_says_nothing_of_a_drop(
    project: Path, tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(bucket, drop(tmp_path / "given", {"cat": 2}, seed=5), "outage/one")
    bucket.put_object(Key="outage/one/READY", Body=b"")
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
        with pytest.raises(UnreachableError, match="refuses these credentials") as caught:
            inboxes.scan(project, "s3://drops/outage")
        assert "not-the-secret" not in str(caught.value)
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        with pytest.raises(UnreachableError, match="cannot be read"):
            inboxes.scan(project, "s3://drops/outage")
    assert not (project / ".chronomerge/refused").exists()
    assert names(inboxes.scan(project, "s3://drops/outage").taken) == ["one"]
