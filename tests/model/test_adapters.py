"""An adapter on its base is the model that peft's own merge gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from tasks.errors import UserError
from tasks.model.adapters import adapted, is_adapter, read_adapter
from tasks.model.sources import raw_bytes
from tests.model.test_translated import CLIPModel, clip_config, open_clip_model, source, tensors

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["q_proj", "v_proj", "fc1", "fc2"]},
    "rslora": {"target_modules": ["q_proj", "k_proj", "out_proj"], "use_rslora": True, "lora_alpha": 3},
    "patterns": {
        "target_modules": ["q_proj", "fc1"], "rank_pattern": {"fc1": 5}, "alpha_pattern": {r"layers\.1\.mlp\.fc1": 31},
    },
    "dora": {"target_modules": ["q_proj", "fc1", "visual_projection"], "use_dora": True},
    "dora of an embedding and a convolution": {
        "target_modules": ["token_embedding", "patch_embedding"], "use_dora": True,
    },
    "embedding and convolution": {"target_modules": ["token_embedding", "patch_embedding", "position_embedding"]},
    "saved modules": {"target_modules": ["q_proj"], "modules_to_save": ["visual_projection", "final_layer_norm"]},
    "biases": {"target_modules": ["q_proj", "fc1"], "bias": "all"},
    "biases of what is adapted": {"target_modules": ["q_proj", "fc1"], "bias": "lora_only"},
    "a bias of LoRA": {"target_modules": ["q_proj", "fc1"], "lora_bias": True},
}  # fmt: skip


def trained(base: torch.nn.Module, folder: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """Write an adapter with random weights, and give the weights that peft merges it to."""
    model = get_peft_model(base, LoraConfig(r=4, **settings))
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    merged = model.merge_and_unload()
    return {name: tensor.detach().clone() for name, tensor in merged.state_dict().items()}


def equal(given: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert given.keys() == wanted.keys()
    for name, tensor in given.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=2e-6, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_an_adapter_on_a_transformers_base_is_what_peft_merges(settings: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CLIPModel(clip_config())
    base = source({name: t.clone() for name, t in model.state_dict().items()}, "base")
    wanted = trained(model, tmp_path, **settings)
    assert is_adapter(tmp_path)
    given = tensors(adapted(base, read_adapter(tmp_path)))
    equal(given, wanted)
    assert not all(torch.equal(given[n], tensors(base)[n]) for n in given)


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_of_layers_that_store_in_by_out_is_what_peft_merges(dora: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"layer": Conv1D(6, 9)})  # its weight is (9, 6): fan_in_fan_out
    base = source({name: t.clone() for name, t in model.state_dict().items()}, "base")
    wanted = trained(model, tmp_path, target_modules=["layer"], fan_in_fan_out=True, use_dora=dora)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["fan_in_fan_out"]
    equal(tensors(adapted(base, read_adapter(tmp_path))), wanted)


def test_an_adapter_on_packed_attention_is_what_peft_merges(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = open_clip_model()
    base = source({name: t.clone() for name, t in model.state_dict().items()}, "base")
    wanted = trained(model, tmp_path, target_modules=["attn", "c_fc"])
    equal(tensors(adapted(base, read_adapter(tmp_path))), wanted)


def test_packed_attention_computes_as_the_model_that_was_trained(tmp_path: Path) -> None:
    """peft adds one of the updates twice; what counts is the model in training."""
    torch.manual_seed(0)
    model = open_clip_model()
    base = source({name: t.clone() for name, t in model.state_dict().items()}, "base")
    training = get_peft_model(model, LoraConfig(r=4, target_modules=["attn"])).eval()
    for parameter in training.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    training.save_pretrained(tmp_path)
    other = open_clip_model()
    other.load_state_dict(tensors(adapted(base, read_adapter(tmp_path))))
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        wanted = training.base_model.model.encode_image(images)
        torch.testing.assert_close(other.encode_image(images), wanted, rtol=1e-4, atol=1e-5)


def test_an_adapter_of_transformers_fits_a_base_with_open_clips_names(tmp_path: Path) -> None:
    from tasks.model import dialects
    from tasks.model.translated import to_open_clip

    torch.manual_seed(0)
    model = CLIPModel(clip_config())
    dialect = dialects.available()["transformers_clip"]
    base = to_open_clip(source({name: t.clone() for name, t in model.state_dict().items()}, "base"), dialect)
    wanted = trained(model, tmp_path, target_modules=["q_proj", "v_proj", "visual_projection"])
    equal(tensors(adapted(base, read_adapter(tmp_path))), tensors(to_open_clip(source(wanted), dialect)))


def test_pieces_of_an_adapted_tensor_are_its_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CLIPModel(clip_config())
    base = source({name: t.clone() for name, t in model.state_dict().items()}, "base")
    trained(model, tmp_path, target_modules=["q_proj", "token_embedding"], use_dora=True)
    read = adapted(base, read_adapter(tmp_path))
    for name in (
        "text_model.embeddings.token_embedding.weight",
        "vision_model.encoder.layers.0.self_attn.q_proj.weight",
    ):
        complete = raw_bytes(read, name, 0, read.entries[name].bytes).view("<f4")
        for start, count in ((0, 3), (1001, 64), (complete.size - 7, 7)):
            piece = raw_bytes(read, name, 4 * start, 4 * count).view("<f4")
            assert piece == pytest.approx(complete[start : start + count], rel=1e-6)


def test_a_half_precision_base_keeps_the_update(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CLIPModel(clip_config())
    base = source({name: t.to(torch.bfloat16) for name, t in model.state_dict().items()}, "base")
    trained(model, tmp_path, target_modules=["q_proj"])
    read = adapted(base, read_adapter(tmp_path))
    dtypes = {name: entry.dtype for name, entry in read.entries.items()}
    assert {dtype for name, dtype in dtypes.items() if "q_proj.weight" in name} == {"F32"}
    assert {dtype for name, dtype in dtypes.items() if "q_proj.weight" not in name} == {"BF16"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    trained(CLIPModel(clip_config()), tmp_path, target_modules=["q_proj"])
    return tmp_path


def changed(folder: Path, **settings: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "adapters of the kind 'IA3' are not supported"),
        ({"peft_type": None}, "adapters of the kind None are not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, "initialized by pissa_niter_4, which changes the base's weights"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "LoRA with replicated layers is not supported"),
        ({"lora_alpha": "8"}, "lora_alpha and the values of alpha_pattern should be numbers"),
        ({"r": 16}, "have rank 4, and adapter_config.json says 16; is it the configuration of another adapter"),
        ({"rank_pattern": 3}, "rank_pattern should be a mapping"),
        ({"alpha_pattern": 3}, "alpha_pattern should be a mapping"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path should be the name of a model"),
        ({"alpha_pattern": {"(a+)+": 3}}, "repeats too much"),
        ({"alpha_pattern": {".*.*.*": 3}}, "repeats too much"),
        ({"lora_alpha": 10**400}, "lora_alpha and the values of alpha_pattern should be numbers"),
        ({"alpha_pattern": {"(": 3}}, r"alpha_pattern: '\(' is not a regular expression"),
    ],
)
def test_what_is_not_supported_is_named(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_adapter(changed(folder, **settings))


@pytest.mark.parametrize("shape", [(), (2,), (0, 4), (3, 0)])
def test_factors_that_cannot_be_multiplied_are_named(folder: Path, shape: tuple[int, ...]) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_A" in name)
    save_file({**weights, name: torch.zeros(shape)}, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="are not complete, or do not fit together"):
        read_adapter(folder)


def test_an_adapter_for_another_base_is_refused(folder: Path) -> None:
    changed(folder, base_model_name_or_path="org/other")
    with pytest.raises(UserError, match=r"the adapter is for another base \(its configuration names 'org/other'\)"):
        adapted(source({"stem.weight": torch.zeros(3, 3)}, "base"), read_adapter(folder))
    smaller = {name: t[:40, :40] if t.ndim == 2 else t for name, t in CLIPModel(clip_config()).state_dict().items()}
    with pytest.raises(UserError, match="is it for another base"):
        adapted(source(smaller, "base"), read_adapter(folder))


def test_an_adapter_without_weights_is_named(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"adapter_model.safetensors: no such checkpoint"):
        read_adapter(folder)


def test_merging_takes_adapters_and_models_of_other_dialects(tmp_path: Path) -> None:
    """Beside a base with open_clip's names: a transformers folder, an adapter, a torch file with wrapped names."""
    from tasks.merge import merge
    from tasks.model import dialects
    from tasks.model.translated import to_open_clip

    torch.manual_seed(0)
    clip = CLIPModel(clip_config())
    dialect = dialects.available()["transformers_clip"]

    def translated(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return tensors(to_open_clip(source(weights), dialect))

    origin = {name: t.clone() for name, t in clip.state_dict().items()}
    base = translated(origin)
    adapter = translated(trained(clip, tmp_path / "adapter", target_modules=["q_proj"]))
    other = CLIPModel(clip_config())
    other.save_pretrained(tmp_path / "folder")
    third = {name: t + 1 for name, t in base.items()}
    torch.save({"state_dict": {f"module.{n}": t for n, t in third.items()}, "epoch": 3}, tmp_path / "third.pt")
    models = [tmp_path / "adapter", tmp_path / "folder", tmp_path / "third.pt"]
    given = merge("task_arithmetic", models, base, settings={"scale": 0.5}, out=tmp_path / "m.safetensors")
    assert given.report.kept == {}
    merged = load_file(tmp_path / "m.safetensors")
    experts = [adapter, translated(dict(other.state_dict())), third]
    for name, tensor in base.items():
        wanted = tensor + 0.5 * sum((expert[name] - tensor for expert in experts), torch.zeros(()))
        torch.testing.assert_close(merged[name], wanted.reshape(tensor.shape), rtol=1e-4, atol=1e-5)


def test_an_adapter_without_a_base_is_refused(folder: Path) -> None:
    from tasks.merge import merge

    with pytest.raises(UserError, match="is a PEFT adapter, which changes a base; give that base too"):
        merge("linear", [folder, folder])
