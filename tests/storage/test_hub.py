"""Repositories of a hub: what an address means, what is fetched and pinned, and every way in which it can fail."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.errors import UnavailableError, UserError
from tasks.storage import hub
from tests import hub as servers

WEIGHTS = bytes(range(256)) * 2048
FILES = {"config.json": "{}", "model.safetensors": WEIGHTS}


@pytest.fixture(scope="module")
def server() -> Iterator[servers.Hub]:
    with servers.serving() as one:
        one.commit("org/model", {"config.json": "old"})
        one.commit("org/model", FILES)
        yield one


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf:org/name", hub.Address("org/name")),
        ("hf-hub:org/name", hub.Address("org/name")),
        ("hf:org/na.me_1@v1.0", hub.Address("org/na.me_1", "v1.0")),
        ("hf:org/name/a/b.safetensors", hub.Address("org/name", None, "a/b.safetensors")),
        ("hf:org/name@refs%2Fpr%2F1/m.safetensors", hub.Address("org/name", "refs/pr/1", "m.safetensors")),
    ],
)
def test_an_address_is_read_and_written(text: str, address: hub.Address) -> None:
    assert hub.is_address(text)
    assert hub.parse(text) == address
    assert str(address) == text.replace("hf-hub:", "hf:")


@pytest.mark.parametrize(
    "text",
    ["hf:", "hf:name", "hf:org/", "hf:/etc/passwd", "hf:org/..", "hf:../name", "hf:org/name/../x", "hf:org/name//x",
     "hf:org/name@", "hf:org/name@..", "hf:org/name@a%2F..%2Fb", "hf:org/name@v1@v2", "hf:org/n--m", "hf:org/name/a\\b",
     "hf:org/" + "n" * 96, "hf:o rg/name"],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UserError) as error:
        hub.parse(text)
    assert str(error.value).startswith(text)
    assert "\n" not in str(error.value)


def test_files_are_copied_and_pinned(server: servers.Hub, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    with server.used(tmp_path / "home"):
        snapshot = hub.look(hub.parse("hf:org/model@main"))
        assert snapshot.names == {"config.json", "model.safetensors"}
        assert not list((tmp_path / "home").rglob("*.safetensors"))  # looking downloads none
        pin = snapshot.copy(
            ["model.safetensors"], tmp_path / "raw", lambda what, done, total, *_: told.append((what, done, total))
        )
    assert pin.as_dict() == {
        "repository": "org/model", "revision": "main",
        "commit": server.repositories["models/org/model"].refs["main"],
        "files": {"model.safetensors": {"size": len(WEIGHTS), "sha256": hashlib.sha256(WEIGHTS).hexdigest()}},
    }  # fmt: skip
    assert (tmp_path / "raw/model.safetensors").read_bytes() == WEIGHTS
    assert not (tmp_path / "raw/model.safetensors").is_symlink()
    assert told[-1] == ("downloading model.safetensors of org/model", len(WEIGHTS), len(WEIGHTS))


def test_an_older_commit_gives_its_own_bytes(server: servers.Hub, tmp_path: Path) -> None:
    first = next(iter(server.repositories["models/org/model"].commits))
    with server.used(tmp_path):
        snapshot = hub.look(hub.parse(f"hf:org/model@{first}"))
        assert (snapshot.bring(["config.json"]) / "config.json").read_text() == "old"
    assert snapshot.names == {"config.json"}


def test_a_filled_cache_needs_no_hub(server: servers.Hub, tmp_path: Path) -> None:
    with server.used(tmp_path):
        hub.look(hub.parse("hf:org/model")).bring(FILES)
    server.requests.clear()
    with server.used(tmp_path, offline=True):
        snapshot = hub.look(hub.parse("hf:org/model"))
        assert (snapshot.bring(FILES) / "model.safetensors").read_bytes() == WEIGHTS
    assert not server.requests
    server.down = True
    try:
        with server.used(tmp_path):
            assert (hub.look(hub.parse("hf:org/model")).bring(FILES) / "config.json").read_text() == "{}"
    finally:
        server.down = False


def test_a_cache_that_huggingface_hub_filled_file_by_file_does_too(server: servers.Hub, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    with server.used(tmp_path):
        hf_hub_download("org/model", "config.json")
    with server.used(tmp_path, offline=True):
        snapshot = hub.look(hub.parse("hf:org/model"))
        assert snapshot.names == {"config.json"}
        assert (snapshot.bring(["config.json"]) / "config.json").read_text() == "{}"


def test_an_empty_cache_without_a_network_is_one_line(server: servers.Hub, tmp_path: Path) -> None:
    with server.used(tmp_path, offline=True), pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set.*hf download"):
        hub.look(hub.parse("hf:org/model"))
    with servers.serving() as gone:
        pass
    with gone.used(tmp_path), pytest.raises(UnavailableError, match=r"hf:org/model: http\S+ does not answer"):
        hub.look(hub.parse("hf:org/model"))


def test_half_a_repository_in_the_cache_is_one_line(server: servers.Hub, tmp_path: Path) -> None:
    with server.used(tmp_path):
        hub.look(hub.parse("hf:org/model")).bring(["config.json"])
    with server.used(tmp_path, offline=True):
        snapshot = hub.look(hub.parse("hf:org/model"))
        with pytest.raises(UserError, match="HF_HUB_OFFLINE is set, and the cache"):
            snapshot.bring(["model.safetensors"])


def test_a_download_that_breaks_off_goes_on(server: servers.Hub, tmp_path: Path) -> None:
    server.cut[hashlib.sha256(WEIGHTS).hexdigest()] = 200_000
    with server.used(tmp_path), pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16)
        folder = hub.look(hub.parse("hf:org/model")).bring(FILES)
        assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert [request.range for request in server.requests if request.range]


def test_damaged_bytes_in_the_cache_are_named(server: servers.Hub, tmp_path: Path) -> None:
    with server.used(tmp_path):
        snapshot = hub.look(hub.parse("hf:org/model"))
        blob = (snapshot.bring(FILES) / "model.safetensors").resolve()
        blob.write_bytes(bytes(len(WEIGHTS)))
        with pytest.raises(UserError, match=r"model.safetensors is damaged in the cache, .*; remove that file"):
            snapshot.bring(FILES)
        blob.unlink()
        assert (snapshot.bring(FILES) / "model.safetensors").read_bytes() == WEIGHTS


def test_what_the_hub_refuses_is_one_line(server: servers.Hub, tmp_path: Path) -> None:
    server.commit("org/gated", FILES)
    server.repositories["models/org/gated"].gated = True
    cases = [
        (None, "hf:org/none", r"no such repository, or it is private; check the name, or set HF_TOKEN"),
        (servers.TOKEN, "hf:org/none", r"no such repository"),
        (None, "hf:org/model@never", r"the repository has no revision 'never'"),
        (None, "hf:org/gated", r"access to the repository is restricted; log in with `hf auth login`"),
        (servers.OTHER_TOKEN, "hf:org/gated", r"access to the repository is restricted; ask for it on its page"),
        ("hf_wrong", "hf:org/model", r"the hub refuses the token \(status 401\)"),
    ]
    for number, (token, text, message) in enumerate(cases):
        with server.used(tmp_path / str(number), token), pytest.raises(UserError, match=message) as error:
            hub.look(hub.parse(text)).bring(["config.json"])
        assert str(error.value).startswith(text)
        assert "\n" not in str(error.value)
        assert not token or token not in str(error.value)
    with server.used(tmp_path / "missing"), pytest.raises(UserError, match=r"no file 'model.safetensor'; near matches"):
        hub.look(hub.parse("hf:org/model")).bring(["model.safetensor"])


def test_a_stored_login_is_used_and_stays_with_the_hub(server: servers.Hub, tmp_path: Path) -> None:
    server.commit("org/private", FILES)
    server.repositories["models/org/private"].private = True
    server.requests.clear()
    with server.used(tmp_path):
        (tmp_path / "token").write_text(servers.TOKEN)
        hub.look(hub.parse("hf:org/private")).bring(FILES)
    assert {r.token for r in server.requests if r.host.startswith("127.")} == {servers.TOKEN}
    assert {r.token for r in server.requests if r.host.startswith("localhost")} == {None}


@pytest.mark.parametrize("name", ["../outside.json", "/etc/x", "a//b", "a/../../b"])
def test_files_that_would_lie_outside_are_refused(server: servers.Hub, tmp_path: Path, name: str) -> None:
    server.commit("org/hostile", {**FILES, name: "x"})
    with server.used(tmp_path / "home"), pytest.raises(UserError, match="which would lie outside of its folder"):
        hub.look(hub.parse("hf:org/hostile"))
    del server.repositories["models/org/hostile"]


def test_a_repository_of_data_is_another_one(server: servers.Hub, tmp_path: Path) -> None:
    server.commit("org/model", {"data.csv": "a,b"}, kind="datasets")
    with server.used(tmp_path):
        snapshot = hub.look(hub.parse("hf:org/model", "dataset"))
        assert snapshot.names == {"data.csv"}
        assert (snapshot.bring(["data.csv"]) / "data.csv").read_text() == "a,b"
