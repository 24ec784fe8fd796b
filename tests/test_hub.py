"""The hub of the tests, as huggingface_hub itself uses it: what other tests rely on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from tests import hub

WEIGHTS = bytes(range(256)) * 4096


@pytest.fixture(scope="module")
def server() -> Iterator[hub.Hub]:
    with hub.serving() as one:
        yield one


def test_files_come_by_commit_and_large_ones_from_another_host_without_the_token(
    server: hub.Hub, tmp_path: Path
) -> None:
    first = server.commit("org/model", {"config.json": "{}", "model.safetensors": WEIGHTS})
    second = server.commit("org/model", {"config.json": '{"a": 1}'})
    assert first != second
    server.requests.clear()
    with server.used(tmp_path, hub.TOKEN):
        folder = Path(snapshot_download("org/model"))
        assert folder.name == second
        assert (folder / "config.json").read_text() == '{"a": 1}'
        assert (folder / "model.safetensors").read_bytes() == WEIGHTS
        older = Path(hf_hub_download("org/model", "config.json", revision=first))
        assert (older.parent.name, older.read_text()) == (first, "{}")
    assert {r.token for r in server.requests if r.host.startswith("127.")} == {hub.TOKEN}
    assert {r.token for r in server.requests if r.host.startswith("localhost")} == {None}


def test_a_download_that_breaks_off_goes_on_where_it_stopped(server: hub.Hub, tmp_path: Path) -> None:
    server.commit("org/cut", {"model.safetensors": WEIGHTS})
    server.cut[hashlib.sha256(WEIGHTS).hexdigest()] = 300_000
    server.requests.clear()
    with server.used(tmp_path), pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16)  # what is lost of a broken download
        assert Path(hf_hub_download("org/cut", "model.safetensors")).read_bytes() == WEIGHTS
    ranges = [r.range for r in server.requests if r.range]
    assert len(ranges) == 1
    assert 0 < int(ranges[0].removeprefix("bytes=").partition("-")[0]) <= 300_000


def test_what_is_refused_is_refused_as_the_hub_does(server: hub.Hub, tmp_path: Path) -> None:
    server.commit("org/gated", {"config.json": "{}"})
    server.repositories["models/org/gated"].gated = True
    for token in (None, hub.OTHER_TOKEN):
        with server.used(tmp_path, token), pytest.raises(GatedRepoError):
            hf_hub_download("org/gated", "config.json")
    with server.used(tmp_path, hub.TOKEN):
        hf_hub_download("org/gated", "config.json")
        with pytest.raises(RevisionNotFoundError):
            hf_hub_download("org/gated", "config.json", revision="never")
        with pytest.raises(RepositoryNotFoundError):
            HfApi().model_info("org/none")


def test_a_folder_is_published_in_one_commit(server: hub.Hub, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (folder / "model.safetensors").write_bytes(WEIGHTS[:1000])
    with server.used(tmp_path / "home", hub.TOKEN):
        api = HfApi()
        api.create_repo("org/published", exist_ok=True)
        api.create_repo("org/published", exist_ok=True)
        done = api.upload_folder(repo_id="org/published", folder_path=folder)
        assert server.repositories["models/org/published"].refs["main"] == done.oid
        found = server.files("org/published")
        assert found["model.safetensors"] == WEIGHTS[:1000]
        assert found["README.md"].startswith(b"---")
        assert Path(hf_hub_download("org/published", "model.safetensors")).read_bytes() == WEIGHTS[:1000]
    with server.used(tmp_path / "home", hub.OTHER_TOKEN), pytest.raises(Exception, match="write access"):
        HfApi().upload_folder(repo_id="org/published", folder_path=folder, delete_patterns="*")
