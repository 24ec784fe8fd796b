"""A timeline of real models: the base from a hub; data, a folder of transformers, a vision tower and an adapter."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, CLIPVisionModelWithProjection

from tests import hub, published
from tests import project as projects
from tests.prepare.conftest import picture
from tests.project import chronomerge, deployed, git

pytestmark = pytest.mark.slow

WORDS = 49408
ADDRESS = "hf-hub:org/base"


def config() -> CLIPConfig:
    """As small as the models of other tests."""
    common = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**common, image_size=16, patch_size=8, projection_dim=16)
    text = CLIPTextConfig(
        **common, vocab_size=WORDS, max_position_embeddings=12, projection_dim=16, bos_token_id=WORDS - 2,
        eos_token_id=WORDS - 1,
    )  # fmt: skip
    return CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)


def moved(model: torch.nn.Module, seed: int) -> Any:
    """A model that has been trained a little, as it were."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    return model


def base() -> CLIPModel:
    torch.manual_seed(0)
    return CLIPModel(config())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hub.Hub]:
    """A hub with the base and an adapter for it."""
    home = tmp_path_factory.mktemp("models")
    base().save_pretrained(home / "base")
    adapter = get_peft_model(base(), LoraConfig(r=2, target_modules=["q_proj", "fc1"]))
    adapter.peft_config["default"].base_model_name_or_path = "org/base"
    moved(adapter, 3).save_pretrained(home / "adapter")
    with hub.serving() as one:
        one.commit("org/base", home / "base")
        one.commit("org/adapter", home / "adapter")
        animals = {
            "train": [(picture(number), number % 3) for number in range(12)],
            "test": [(picture(number), number % 3) for number in range(20, 26)],
        }
        folder = published.clip_benchmark(home / "animals", animals)
        one.commit("clip-benchmark/wds_vtab-animals", folder, kind="datasets")
        yield one


def make(folder: Path) -> Path:
    """A project with the four arrivals; the vision tower and the folder lie beside it."""
    elsewhere = folder.parent / "experts"
    moved(base(), 1).save_pretrained(elsewhere / "full")
    tower = CLIPVisionModelWithProjection(config().vision_config)
    own = tower.state_dict()
    tower.load_state_dict({name: tensor for name, tensor in base().state_dict().items() if name in own}, strict=False)
    moved(tower, 2).save_pretrained(elsewhere / "tower")
    return projects.make(
        folder,
        base={"model": ADDRESS},
        stream=[
            {"name": "data", "update": ["images:drawings/first#train", "clip-benchmark:vtab/animals#train"]},
            {"name": "full", "expert": str(elsewhere / "full")},
            {"name": "tower", "expert": str(elsewhere / "tower")},
            {"name": "adapter", "expert": "hf:org/adapter@main"},
        ],
        evaluate={
            "adaptation": [{"name": "first", "test": ["images:drawings/first#test"]}],
            "retention": [{"name": "animals", "test": ["clip-benchmark:vtab/animals#test"]}],
        },
    )


@pytest.fixture(scope="module")
def ran(
    server: hub.Hub, tmp_path_factory: pytest.TempPathFactory, prefect_api: dict[str, str]
) -> tuple[Path, dict[str, str]]:
    """The timeline, run to its end, and the environment that reaches the hub."""
    home = tmp_path_factory.mktemp("real")
    environment = {**prefect_api, **server.environment(home / "hf", hub.TOKEN)}
    folder = make(home / "project")
    done = chronomerge(folder, "run", **environment)
    assert "recorded state/tiny/0000 to state/tiny/0004" in done.stdout
    assert "2 published data sets: " in done.stdout + done.stderr
    assert "; time for 5 steps: not known before step 1 is recorded" in done.stdout + done.stderr
    return folder, environment


def manifest(folder: Path, step: int) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(git(folder, "show", f"state/tiny/{step:04d}:manifest.json"))
    return read


def test_the_manifests_say_where_each_model_came_from(ran: tuple[Path, dict[str, str]], server: hub.Hub) -> None:
    folder, _ = ran
    origin = manifest(folder, 0)["base"]
    assert origin["address"] == ADDRESS
    assert origin["commit"] == server.repositories["models/org/base"].refs["main"]
    assert set(origin["files"]) == {"config.json", "model.safetensors"}
    assert "expert" not in manifest(folder, 1)
    full, tower, adapter = (manifest(folder, step)["expert"] for step in (2, 3, 4))
    assert (full["read_as"], full["of_base"]) == ("transformers CLIPModel", [])
    assert "transformer.resblocks.0.mlp.c_fc.weight" in tower["of_base"]
    assert not any(name.startswith("visual.") for name in tower["of_base"])
    assert adapter["read_as"] == "a PEFT adapter"
    assert adapter["origin"]["repository"] == "org/adapter"
    assert set(adapter["origin"]["files"]) == {"adapter_config.json", "adapter_model.safetensors"}


def test_the_manifests_pin_each_data_set(ran: tuple[Path, dict[str, str]], server: hub.Hub) -> None:
    folder, _ = ran
    data = manifest(folder, 1)["data"]
    (origin,) = data["data/raw/arrival"]
    (tested,) = data["data/raw/evaluation"]
    commit = server.repositories["datasets/clip-benchmark/wds_vtab-animals"].refs["main"]
    assert origin["commit"] == tested["commit"] == commit
    assert {"train/0.tar", "train/2.tar"} <= origin["files"].keys()
    assert "train/0.tar" not in tested["files"]
    files = server.files("clip-benchmark/wds_vtab-animals", kind="datasets")
    assert origin["files"]["train/0.tar"]["sha256"] == hashlib.sha256(files["train/0.tar"]).hexdigest()


@pytest.mark.long
def test_the_states_need_no_hub_to_verify_restore_and_go_on(ran: tuple[Path, dict[str, str]]) -> None:
    folder, environment = ran
    nowhere = {**environment, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(folder.parent / "empty")}
    for step in ("0", "3", "4"):
        assert "every hash" in (said := chronomerge(folder, "verify", step, **nowhere).stdout) or "same" in said
    chronomerge(folder, "restore", "0", "--to", str(folder.parent / "zero"), **nowhere)
    source = folder.parent / "zero/data/history/source"
    assert {path.name for path in source.iterdir()} == {"config.json", "model.safetensors", "origin.json"}
    assert "nothing to do" in chronomerge(folder, "run", **nowhere).stdout


def test_the_expert_of_an_adapter_is_what_peft_computes(
    ran: tuple[Path, dict[str, str]], server: hub.Hub, tmp_path: Path
) -> None:
    from peft import PeftModel

    from tasks.model import dialects
    from tasks.model.translated import to_open_clip
    from tests.model.test_translated import source, tensors

    folder, environment = ran
    chronomerge(folder, "restore", "4", "--to", str(tmp_path / "four"), **environment)
    for name, content in server.files("org/adapter").items():
        (tmp_path / name).write_bytes(content)
    wanted = PeftModel.from_pretrained(base(), tmp_path).merge_and_unload().state_dict()
    expected = tensors(to_open_clip(source(wanted), dialects.available()["transformers_clip"]))
    for name, tensor in load_file(tmp_path / "four/data/step/expert.safetensors").items():
        torch.testing.assert_close(tensor, expected[name].reshape(tensor.shape), rtol=1e-5, atol=2e-6)


def test_no_token_is_in_a_state_or_a_log(ran: tuple[Path, dict[str, str]]) -> None:
    folder, _ = ran
    found = [
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and hub.TOKEN.encode() in path.read_bytes()
    ]
    assert found == []
    assert hub.TOKEN not in git(folder, "log", "--all", "-p", "--", "manifest.json", "params.yaml")


@pytest.mark.long
def test_killed_it_goes_on_to_the_same_bytes(ran: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    import time

    undisturbed, environment = ran
    folder = make(tmp_path / "project")
    for number in range(6):
        process = projects.start(folder, "run", **environment)
        before = len(projects.tags(folder))
        deadline = time.monotonic() + 120
        while len(projects.tags(folder)) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.1 * number)
        projects.kill(process)
    chronomerge(folder, "run", **environment)
    assert deployed(folder) == deployed(undisturbed)


def test_an_adapter_for_another_base_is_refused_and_nothing_is_recorded(
    ran: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    undisturbed, environment = ran
    config_of = tmp_path / "adapter"
    get_peft_model(base(), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(config_of)
    path = config_of / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "org/other"}))
    done = chronomerge(undisturbed, "arrive", "other", "--expert", str(config_of), check=False, **environment)
    assert done.returncode == 2
    assert "is an adapter for 'org/other', and the timeline's base is 'hf-hub:org/base'" in done.stdout


@pytest.mark.long
def test_what_is_published_is_the_base_of_another_timeline(
    ran: tuple[Path, dict[str, str]], server: hub.Hub, tmp_path: Path
) -> None:
    undisturbed, environment = ran
    chronomerge(undisturbed, "publish", "4", "--to", "hf:org/merged", **environment)
    assert "model.safetensors" in " ".join(server.files("org/merged"))
    second = projects.make(tmp_path / "second", timeline="second", base={"model": "hf-hub:org/merged"}, stream=[])
    chronomerge(second, "run", **environment)
    assert list(deployed(second, "second")) == ["state/second/0000"]
    chronomerge(undisturbed, "restore", "4", "--to", str(tmp_path / "four"), **environment)
    chronomerge(second, "restore", "0", "--to", str(tmp_path / "zero"), **environment)
    published = load_file(tmp_path / "four/data/step/deployed.safetensors")
    again = load_file(tmp_path / "zero/data/step/deployed.safetensors")
    assert published.keys() == again.keys()
    assert all(torch.equal(tensor, again[name].reshape(tensor.shape)) for name, tensor in published.items())
