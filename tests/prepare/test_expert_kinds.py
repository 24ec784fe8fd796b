"""Experts of every kind become checkpoints of the base's names: by folder, file, part, adapter and hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTextModelWithProjection, CLIPVisionModel, CLIPVisionModelWithProjection

from tasks.errors import UnavailableError, UserError
from tasks.model import checkpoints, dialects, models
from tasks.model.origins import located
from tasks.model.translated import to_open_clip
from tasks.params import Arrival, Base
from tasks.prepare import check_hub, fetch_arrival, node
from tests import hub, tokenizers
from tests.model.test_adapters import trained
from tests.model.test_translated import CONTEXT, EMBED, LAYERS, TEXT, WIDTH, WORDS, clip_config, source, tensors
from tests.prepare.conftest import params

Weights = dict[str, torch.Tensor]
ARCHITECTURE = {
    "embed_dim": EMBED, "quick_gelu": True,
    "vision_cfg": {
        "layers": LAYERS, "width": WIDTH, "head_width": WIDTH // 2, "patch_size": 8, "image_size": 16,
    },
    "text_cfg": {"context_length": CONTEXT, "vocab_size": WORDS, "width": TEXT, "heads": 2, "layers": LAYERS},
}  # fmt: skip


def theirs(seed: int) -> CLIPModel:
    torch.manual_seed(seed)
    return CLIPModel(clip_config()).eval()


def ours(state: dict[str, torch.Tensor]) -> Weights:
    """Under open_clip's names."""
    given = source({name: tensor.clone() for name, tensor in state.items()})
    return tensors(to_open_clip(given, dialects.available()["transformers_clip"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A timeline's model folder, and its base."""
    home = tmp_path_factory.mktemp("kinds")
    (home / "m.json").write_text(json.dumps(ARCHITECTURE))
    models.resolve(Base(model="m.json", pretrained="x.safetensors"), home, home / "model")
    checkpoints.save(home / "base.safetensors", ours(theirs(0).state_dict()))
    return home


@pytest.fixture
def arrive(folder: Path, tmp_path: Path) -> Callable[..., tuple[Weights, dict[str, Any]]]:
    """Fetch and prepare an expert; gives its weights and what is noted of it."""
    (tmp_path / "data/history").mkdir(parents=True)
    (tmp_path / "data/history/model").symlink_to(folder / "model")

    def run(expert: str | Path, base: str = "m.safetensors", **settings: Any) -> tuple[Weights, dict[str, Any]]:
        one = Arrival(name="vendor", expert=str(expert), **settings)
        step = params(arrival=one, step=1)
        step = step.model_copy(update={"base": Base(model="m.json", pretrained=base)})
        fetch_arrival(
            step, one, tmp_path / "data/raw/arrival", tmp_path, project=tmp_path, base=folder / "base.safetensors"
        )
        node.prepare_arrival(tmp_path, step)
        prepared = tmp_path / "data/step/arrival"
        return load_file(prepared / "expert.safetensors"), json.loads((prepared / "expert.json").read_text())

    return run


def same(given: Weights, wanted: Weights) -> None:
    assert given.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(given[name], tensor.reshape(given[name].shape)), name


@pytest.mark.parametrize("sharded", [False, True])
def test_a_folder_of_transformers(arrive: Any, tmp_path: Path, sharded: bool) -> None:
    expert = theirs(1)
    expert.save_pretrained(tmp_path / "vendor", **({"max_shard_size": "100KB"} if sharded else {}))
    assert (tmp_path / "vendor/model.safetensors.index.json").exists() == sharded
    weights, about = arrive("vendor")
    same(weights, ours(expert.state_dict()))
    assert about["read_as"] == "transformers CLIPModel"
    assert about["of_base"] == []
    raw = tmp_path / "data/raw/arrival"
    assert {path.name for path in raw.iterdir()} == {"expert"}  # as it came, and no base
    assert (raw / "expert/config.json").exists()


def test_a_file_and_a_torch_file_with_a_wrapper(arrive: Any, tmp_path: Path) -> None:
    expert = theirs(1).state_dict()
    save_file(expert, tmp_path / "vendor.safetensors")
    same(arrive("vendor.safetensors")[0], ours(expert))
    torch.save({"epoch": 3, "state_dict": {f"module.{n}": t for n, t in ours(expert).items()}}, tmp_path / "vendor.pt")
    weights, about = arrive("vendor.pt")
    same(weights, ours(expert))
    assert about["read_as"] == "open_clip"


@pytest.mark.parametrize("kind", [CLIPVisionModel, CLIPVisionModelWithProjection, CLIPTextModelWithProjection])
def test_a_tower_alone_is_completed_by_the_base(arrive: Any, tmp_path: Path, folder: Path, kind: Any) -> None:
    torch.manual_seed(2)
    config = clip_config()
    expert = kind(config.text_config if "Text" in kind.__name__ else config.vision_config)
    expert.save_pretrained(tmp_path / "vendor")
    weights, about = arrive("vendor")
    base = load_file(folder / "base.safetensors")
    of_base = {name for name, tensor in weights.items() if torch.equal(tensor, base[name])}
    assert weights.keys() == base.keys()
    assert set(about["of_base"]) <= of_base
    assert ("transformer.resblocks.0.mlp.c_fc.weight" in about["of_base"]) == ("Vision" in kind.__name__)
    assert ("visual.conv1.weight" in about["of_base"]) == ("Text" in kind.__name__)
    assert ("visual.proj" in about["of_base"]) == (kind is not CLIPVisionModelWithProjection)
    assert any("tower alone" in note for note in about["notes"])
    assert str(tmp_path) not in json.dumps(about)
    assert (tmp_path / "data/raw/arrival/base.safetensors").read_bytes() == (folder / "base.safetensors").read_bytes()


def test_half_a_tower_is_not_completed(arrive: Any, tmp_path: Path) -> None:
    state = ours(theirs(1).state_dict())
    half = {n: t for n, t in state.items() if n.startswith("visual.") and "resblocks.1" not in n}
    save_file(half, tmp_path / "vendor.safetensors")
    weights, about = arrive("vendor.safetensors")
    assert weights.keys() == half.keys()  # which the node train refuses by name
    assert about["of_base"] == []


def test_an_adapter_becomes_what_peft_merges(arrive: Any, tmp_path: Path) -> None:
    wanted = trained(theirs(0), tmp_path / "adapter", target_modules=["q_proj", "v_proj", "fc1"])
    weights, about = arrive("adapter")
    expected = ours(wanted)
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name].reshape(tensor.shape), rtol=1e-5, atol=2e-6)
    assert about["read_as"] == "a PEFT adapter"
    assert {p.name for p in (tmp_path / "data/raw/arrival").iterdir()} == {"expert", "base.safetensors"}


def test_an_adapter_for_another_base_is_refused(arrive: Any, tmp_path: Path) -> None:
    trained(theirs(0), tmp_path / "adapter", target_modules=["q_proj"])
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/one"}))
    with pytest.raises(
        UserError, match=r"expert adapter: is an adapter for 'org/one', and the timeline's base is 'hf:"
    ):
        arrive("adapter", base="hf:org/other")
    assert not (tmp_path / "data/raw/arrival").exists()
    arrive("adapter", base="hf-hub:org/One@main")
    config = clip_config()
    config.vision_config.hidden_size = 32
    config.vision_config.intermediate_size = 128
    trained(CLIPModel(config), tmp_path / "narrow", target_modules=["q_proj"])
    with pytest.raises(UserError, match=r"^expert narrow: changes .* as if of shape .*; is it for another base\?$"):
        arrive("narrow")


def test_an_adapter_that_is_not_supported_is_refused_by_name(arrive: Any, tmp_path: Path) -> None:
    trained(theirs(0), tmp_path / "adapter", target_modules=["q_proj"])
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "peft_type": "IA3"}))
    with pytest.raises(UserError, match=r"expert adapter.* adapters of the kind 'IA3' are not supported"):
        arrive("adapter")


def test_a_tensor_of_another_shape_is_an_error_or_the_bases(arrive: Any, tmp_path: Path, folder: Path) -> None:
    state = ours(theirs(1).state_dict())
    state["positional_embedding"] = torch.zeros(CONTEXT + 3, TEXT)
    save_file(state, tmp_path / "vendor.safetensors")
    weights, _ = arrive("vendor.safetensors")
    checkpoints.save(tmp_path / "e.safetensors", weights)
    with pytest.raises(UserError, match=r"'positional_embedding' has shape \[15, 48\].*on_mismatch: base"):
        checkpoints.check_compatible(tmp_path / "e.safetensors", folder / "base.safetensors")
    weights, about = arrive("vendor.safetensors", on_mismatch="base")
    assert about["of_base"] == ["positional_embedding"]
    base = load_file(folder / "base.safetensors")
    same(weights, {**state, "positional_embedding": base["positional_embedding"]})


@pytest.mark.parametrize("dialect", ["open_clip", "transformers"])
def test_weights_of_8_bits_are_refused(arrive: Any, tmp_path: Path, dialect: str) -> None:
    state = theirs(1).state_dict()
    given = ours(state) if dialect == "open_clip" else state
    save_file({name: tensor.to(torch.float8_e5m2) for name, tensor in given.items()}, tmp_path / "vendor.safetensors")
    with pytest.raises(UserError, match=r"^expert vendor.safetensors: .*tensor '.*' is F8_E5M2, too coarse .*$"):
        arrive("vendor.safetensors")


def test_a_repository_of_a_hub_is_kept_with_its_commit(arrive: Any, tmp_path: Path) -> None:
    expert = theirs(1)
    expert.save_pretrained(tmp_path / "vendor")
    with hub.serving() as server, server.used(tmp_path / "home"):
        commit = server.commit("org/vendor", tmp_path / "vendor")
        weights, about = arrive("hf:org/vendor@main")
        same(weights, ours(expert.state_dict()))
        origin = json.loads((tmp_path / "data/raw/arrival/origin.json").read_text())
        assert (origin["address"], origin["commit"]) == ("hf:org/vendor@main", commit)
        assert set(origin["files"]) == {"config.json", "model.safetensors"}
        server.commit("org/pickles", {"config.json": "{}", "pytorch_model.bin": b"x"})
        server.commit("org/empty", {"README.md": "nothing"})
        for name, words in (
            ("pickles", r"weights in pickles only \(pytorch_model.bin\); name that file"), ("empty", "has no weights"),
        ):  # fmt: skip
            with pytest.raises(UserError, match=f"hf:org/{name}: .*{words}"):
                arrive(f"hf:org/{name}")
        one, _ = arrive("hf:org/vendor/model.safetensors")
        same(one, ours(expert.state_dict()))
    assert about["read_as"] == "transformers CLIPModel"


def test_an_expert_with_another_tokenizer_is_refused(arrive: Any, tmp_path: Path) -> None:
    theirs(1).save_pretrained(tmp_path / "vendor")
    tokenizers.save(tmp_path / "vendor")
    with pytest.raises(
        UserError, match=r"expert vendor: its tokenizer is another than the base's: the token .* is numb"
    ):
        arrive("vendor")
    (tmp_path / "vendor/tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json: not a readable tokenizer"):
        arrive("vendor")


def test_what_a_hub_does_not_have_is_found_before_anything_is_downloaded(tmp_path: Path) -> None:
    theirs(1).save_pretrained(tmp_path / "vendor")

    def refused(address: str, words: str, kind: type[UserError] = UserError) -> None:
        with pytest.raises(kind, match=rf"^stream: arrival vendor: expert hf:[^\n]*{words}[^\n]*$"):
            check_hub([Arrival(name="vendor", expert=address)])

    with hub.serving() as server:
        server.commit("org/vendor", tmp_path / "vendor")
        server.commit("org/gated", tmp_path / "vendor")
        server.repositories["models/org/gated"].gated = True
        server.commit("org/empty", {"README.md": "nothing yet"})
        with server.used(tmp_path / "home"):
            check_hub([Arrival(name="vendor", expert="hf:org/vendor"), Arrival(name="other", update=["icons:food"])])
            assert not list((tmp_path / "home").rglob("*.safetensors"))
            refused("hf:org/none", "no such repository, or it is private")
            refused("hf:org/vendor@v9", "has no revision 'v9'")
            refused("hf:org/vendor/models.safetensors", "near matches: model.safetensors")
            refused("hf:org/empty", "has no weights")
            refused("hf:org/gated", "access to the repository is restricted; log in with")
            server.down = True
            refused("hf:org/vendor/config.json", "does not answer", UnavailableError)
            server.down = False
            located("hf:org/vendor")
        with server.used(tmp_path / "home", hub.OTHER_TOKEN):
            refused("hf:org/gated", "access to the repository is restricted; ask for it on its page")
        server.requests.clear()
        with server.used(tmp_path / "home", offline=True):
            check_hub([Arrival(name="vendor", expert="hf:org/vendor")])  # the cache has it all
            refused("hf:org/gated", "HF_HUB_OFFLINE is set, and the cache in .* lacks it")
        assert not server.requests
