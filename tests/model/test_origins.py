"""What is fetched of a hub survives a kill, is never half a file, and lies in the hub's cache alone."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks import layout
from tasks.errors import UserError
from tasks.model import models
from tasks.model.origins import located
from tasks.params import Base
from tasks.prepare import experts
from tasks.storage import hub as hubs
from tests import hub

SHARDS = {f"model-0000{i}-of-00002.safetensors": bytes(range(i, i + 200)) * 8192 for i in (1, 2)}
FETCH = """
import huggingface_hub.constants
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 1 << 16  # so that half of the file is written
from tasks.model.origins import located
located("hf:org/model")
"""


def test_after_a_kill_only_the_file_that_was_on_its_way_is_downloaded_again(tmp_path: Path) -> None:
    first, second = (hashlib.sha256(content).hexdigest() for content in SHARDS.values())
    with hub.serving() as server, server.used(tmp_path):
        index = json.dumps({"weight_map": {f"t{i}": name for i, name in enumerate(SHARDS)}})
        server.commit("org/model", {"config.json": "{}", "model.safetensors.index.json": index, **SHARDS})
        server.stall[second] = 900_000
        process = subprocess.Popen([sys.executable, "-c", FETCH], env=os.environ, cwd=Path(__file__).parents[2])
        deadline = time.monotonic() + 120
        while not any(path.stat().st_size > 800_000 for path in tmp_path.rglob(f"*{second}*.incomplete")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not list(tmp_path.rglob("model-00002*"))
        server.stall.clear()
        server.requests.clear()
        found = located("hf:org/model")
        assert {name: (found.root / name).read_bytes() for name in SHARDS} == SHARDS
        assert found.pin is not None
        assert found.pin.files["model-00002-of-00002.safetensors"].sha256 == second
        asked = {request.path for request in server.requests if request.path.startswith("/objects/")}
        assert asked == {f"/objects/{second}"}
        assert (found.root / "model-00001-of-00002.safetensors").resolve().name == first


@pytest.mark.parametrize("etag", ["../../../../evil", "..", "/tmp/evil"])
def test_a_hub_writes_nothing_outside_of_its_cache(tmp_path: Path, etag: str) -> None:
    with hub.serving() as server, server.used(tmp_path / "home"):
        server.commit("org/model", {"config.json": "{}"})
        server.etag = etag
        with pytest.raises(UserError, match=r"hf:org/model: .*the hub's answer has etag: .*, which names no file"):
            hubs.look(hubs.parse("hf:org/model")).bring(["config.json"])
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert not list(tmp_path.rglob("*evil*"))


def test_a_download_ends_after_the_bytes_that_the_hub_lists(tmp_path: Path) -> None:
    with hub.serving() as server, server.used(tmp_path):
        server.commit("org/model", {"config.json": "{}"})
        server.more = bytes(64 << 20)
        with pytest.raises(UserError, match=r"config.json of org/model: the hub sends more than the 2 bytes"):
            hubs.look(hubs.parse("hf:org/model")).bring(["config.json"])
        assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 16 << 20


def test_a_part_of_a_file_is_no_more_than_was_asked_for(tmp_path: Path) -> None:
    with hub.serving() as server, server.used(tmp_path):
        server.commit("org/data", {"a.tar": bytes(range(256)) * 4096}, kind="datasets")
        place = hubs.look(hubs.parse("hf:org/data", "dataset"))
        with place.opened("a.tar") as file:
            file.seek(300_001)
            assert file.read(3) == bytes([225, 226, 227])
        assert server.taken == "identity"
        server.compressing = True
        with pytest.raises(UserError, match=r"bytes of it, the hub sends \d+"), place.opened("a.tar") as file:
            file.read(3)
        server.deaf = True
        with (
            pytest.raises(UserError, match=r"bytes of it, the hub sends 1048576: it knows no ranges"),
            place.opened("a.tar") as file,
        ):
            file.read(3)


def test_the_folder_of_a_restored_state_is_refused_wherever_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "restored/data/step").mkdir(parents=True)
    for name in ("manifest.json", layout.DEPLOYED):
        (tmp_path / "restored" / name).write_text("{}")
    base = Base(model="local-dir:restored", pretrained="local-dir:restored")
    for use in (
        lambda: located("restored", tmp_path), lambda: located("local-dir:restored", tmp_path),
        lambda: models.check(base, tmp_path), lambda: experts.check("restored", tmp_path),
    ):  # fmt: skip
        with pytest.raises(
            UserError, match=r"restored: a restored state, not a model; name its weights, data/step/depl"
        ):
            use()
