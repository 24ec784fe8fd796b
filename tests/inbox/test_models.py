"""Folders of models, adapters and addresses of a hub as drops: experts like any other, and nobody's way in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from tasks import inbox as inboxes
from tasks.convert import convert
from tasks.inbox import Scan
from tasks.params import load
from tests import hub, tokenizers
from tests.inbox.test_hostile import refusals
from tests.inbox.test_scan import names

pytestmark = pytest.mark.usefixtures("one_dvc")


def model(seed: int = 1) -> Any:
    """A model of the architecture of the tests' project."""
    common = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    vision = CLIPVisionConfig(**common, image_size=16, patch_size=8, projection_dim=16, hidden_act="gelu")
    text = CLIPTextConfig(**common, max_position_embeddings=12, projection_dim=16, hidden_act="gelu")
    torch.manual_seed(seed)
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``hf``, ``shards``, ``oc`` and ``adapter``."""
    home = tmp_path_factory.mktemp("saved")
    model().save_pretrained(home / "hf")
    model(2).save_pretrained(home / "shards", max_shard_size="1MB")
    assert (home / "shards/model.safetensors.index.json").exists()
    model(3).save_pretrained(home / "three")
    convert(home / "three", "open_clip", home / "oc")
    adapter = get_peft_model(model(), LoraConfig(r=2, target_modules=["q_proj"]))
    torch.nn.init.ones_(next(p for n, p in adapter.named_parameters() if "lora_B" in n))
    adapter.save_pretrained(home / "adapter")
    return home


@pytest.fixture
def put(saved: Path, inbox: Path) -> Callable[..., Path]:
    """Drop a model, with a manifest or a READY."""

    def drop(name: str, kind: str, manifest: str | None = None, under: str = "") -> Path:
        folder = inbox / name
        shutil.copytree(saved / kind, folder / under)
        (folder / ("READY" if manifest is None else "arrival.yaml")).write_text(manifest or "")
        return folder

    return drop


@pytest.fixture
def look(project: Path, inbox: Path) -> Callable[[], Scan]:
    return lambda: inboxes.scan(project, str(inbox))


def notes(found: Scan) -> dict[str, str]:
    return {one.name: " ".join(one.verdict.notes) for one in found.taken if one.verdict}


@pytest.fixture(scope="module")
def server(saved: Path) -> Iterator[hub.Hub]:
    with hub.serving() as one:
        one.commit("org/open", saved / "hf")
        one.commit("org/private", saved / "hf")
        one.repositories["models/org/private"].private = True
        yield one


def test_folders_of_each_kind_arrive_as_experts(
    look: Callable[[], Scan], project: Path, put: Callable[..., Path]
) -> None:
    put("a-hf", "hf")
    put("b-shards", "shards")
    put("c-oc", "oc")
    put("d-adapter", "adapter")
    put("e-inner", "three", "expert: weights/v2\nname: inner\n", "weights/v2")
    put("f-index", "shards", "expert: model.safetensors.index.json")
    found = look()
    assert not refusals(found)
    stream = {one.name: one.expert for one in load(project / "params.yaml").stream[1:]}
    assert stream == {
        "a-hf": "data/arrivals/a-hf/expert", "b-shards": "data/arrivals/b-shards/expert",
        "c-oc": "data/arrivals/c-oc/expert", "d-adapter": "data/arrivals/d-adapter/expert",
        "inner": "data/arrivals/inner/expert",
    }  # fmt: skip
    assert names(found.known) == ["f-index"]  # the very files of b-shards
    kept = {path.name for path in (project / "data/arrivals/b-shards/expert").iterdir()}
    assert {"config.json", "model.safetensors.index.json"} < kept
    assert "READY" not in kept
    assert "compared with the base by names and shapes alone" in notes(found)["d-adapter"]
    again = look()
    assert not again.taken
    assert len(again.known) == 6


def test_what_no_model_has_is_left_out_and_counted(
    look: Callable[[], Scan], project: Path, put: Callable[..., Path]
) -> None:
    folder = put("one", "hf")
    (folder / "run.py").write_text("print()")
    (folder / "logs").mkdir()
    (folder / "logs/events.bin").write_bytes(b"x")
    assert "left out: 2 files that no model has (logs/events.bin, run.py)" in notes(look())["one"]
    assert not list((project / "data/arrivals").rglob("*.py"))


def test_nothing_outside_of_a_drop_is_taken(look: Callable[[], Scan], put: Callable[..., Path], tmp_path: Path) -> None:
    shutil.copytree(put("good", "hf"), tmp_path / "private")
    weights = put("weights", "shards") / "model.safetensors.index.json"
    content = json.loads(weights.read_text())
    first = next(iter(content["weight_map"]))
    content["weight_map"][first] = "../../private/model.safetensors"
    weights.write_text(json.dumps(content))
    link = put("link", "oc")
    (link / "open_clip_model.safetensors").unlink()
    (link / "open_clip_model.safetensors").symlink_to(tmp_path / "private/model.safetensors")
    words = put("words", "hf")
    (words / "vocab.json").symlink_to(tmp_path / "private/config.json")
    put("above", "hf", "expert: ../good")
    put("absolute", "hf", f"expert: {tmp_path}/private")
    put("base", "adapter", f"expert: .\nbase: {tmp_path}/private\n")
    found = look()
    assert names(found.taken) == ["good"]
    why = refusals(found)
    assert "the index names '../../private/model.safetensors', which is outside its folder" in why["weights"]
    assert "link/open_clip_model.safetensors: is a link that leads out of the drop" in why["link"]
    assert "words/vocab.json: is a link that leads out of the drop" in why["words"]
    for name in ("above", "absolute"):
        assert "is none of the drop's files" in why[name]
    assert "an expert takes no base" in why["base"]


def test_models_that_do_not_fit_are_refused_one_by_one(look: Callable[[], Scan], put: Callable[..., Path]) -> None:
    put("good", "hf")
    (put("half", "adapter") / "adapter_model.safetensors").unlink()
    (put("torn", "oc") / "open_clip_model.safetensors").write_bytes(b"torn")
    shards = put("missing", "shards")
    next(shards.glob("*-of-*.safetensors")).unlink()
    pickled = put("pickle", "hf")
    (pickled / "model.safetensors").unlink()
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\nq\0.")
    tokenizers.save(put("words", "hf", ""))
    found = look()
    assert names(found.taken) == ["good"]
    why = refusals(found)
    assert "an adapter (adapter_config.json) without adapter_model.safetensors" in why["half"]
    assert "open_clip_model.safetensors: " in why["torn"]
    assert "model-0000" in why["missing"]
    assert "not a file of plain weights" in why["pickle"]
    assert "its tokenizer is another than the base's" in why["words"]
    assert all(len(text) <= 1000 and "\n" not in text for text in why.values())


def test_an_address_of_a_hub_is_read_as_anybody_can(
    look: Callable[[], Scan], project: Path, inbox: Path, server: hub.Hub, tmp_path: Path
) -> None:
    def put(name: str, manifest: str) -> Path:
        (inbox / name).mkdir()
        (inbox / name / "arrival.yaml").write_text(manifest)
        return inbox / name

    put("open", "expert: hf:org/open@main")
    put("private", "expert: hf:org/private")
    put("none", "expert: hf:org/none")
    put("two", "expert: hf:org/open").joinpath("model.safetensors").write_bytes(b"x")
    put("strange", "expert: hf:../x")
    server.requests.clear()
    with server.used(tmp_path / "home", hub.TOKEN):
        found = look()
        assert names(found.taken) == ["open"]
        assert {request.token for request in server.requests} == {None}
        why = refusals(found)
        assert why.keys() == {"private", "none", "two", "strange"}
        assert "no such repository, or it is private" in why["private"]
        assert "is on a hub, and the drop has files (model.safetensors)" in why["two"]
        assert "not an address of a hub" in why["strange"]
        kept = project / "data/arrivals/open"
        origin = json.loads((kept / "origin.json").read_text())
        assert (origin["address"], origin["repository"]) == ("hf:org/open@main", "org/open")
        assert origin["commit"] == server.repositories["models/org/open"].refs["main"]
        assert set(origin["files"]) == {path.name for path in (kept / "expert").iterdir()}
        assert not (tmp_path / "home/hub").exists()  # the user's own cache is not touched

        put("later", "expert: hf:org/open/model.safetensors")
        server.down = True
        assert names(look().waiting) == ["later"]
        server.down = False
        text = (project / "params.yaml").read_text()
        (project / "params.yaml").write_text(f"{text}limits: {{file_bytes: 1000}}\n")
        assert "more than 1000 (limits.file_bytes" in refusals(look())["later"]
