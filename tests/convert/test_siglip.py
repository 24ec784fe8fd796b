"""SigLIP models, in either library: the same logits, and what has no like in the other is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, _create_vision_transformer
from transformers import AutoImageProcessor, SiglipConfig, SiglipImageProcessor, SiglipModel

from tasks.convert import convert
from tasks.convert.conversion import LIBRARIES, WEIGHTS
from tasks.errors import UserError
from tasks.model import dialects, models, siglip
from tasks.params import Base
from tests import tokenizers

WIDTH, TEXT, EMBED_WORDS, CONTEXT = 64, 40, len(tokenizers.WORDS), 12

default_cfgs = generate_default_cfgs({"vit_tiny_patch8_siglip_16": {}, "vit_tiny_patch8_siglip_32": {}})
"""timm looks for this in the module of a model that is registered."""


def _tower(name: str, pretrained: bool, **settings: Any) -> VisionTransformer:
    sizes = {"patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": 2, "class_token": False}
    made: VisionTransformer = _create_vision_transformer(
        name, pretrained=pretrained, **{"global_pool": "map", **sizes, **settings}
    )
    return made


@register_model
def vit_tiny_patch8_siglip_16(pretrained: bool = False, **settings: Any) -> VisionTransformer:
    """As timm's own of 16-pixel patches: exact GELU."""
    return _tower("vit_tiny_patch8_siglip_16", pretrained, img_size=16, **settings)


@register_model
def vit_tiny_patch8_siglip_32(pretrained: bool = False, **settings: Any) -> VisionTransformer:
    """As timm's own of SigLIP 2: GELU by its tanh approximation."""
    return _tower("vit_tiny_patch8_siglip_32", pretrained, img_size=32, act_layer="gelu_tanh", **settings)


def settings(size: int, **text: Any) -> dict[str, Any]:
    """A configuration of open_clip's, as those of its SigLIP models are."""
    name = f"vit_tiny_patch8_siglip_{size}"
    return {
        "embed_dim": WIDTH, "init_logit_bias": -10, "custom_text": True,
        "vision_cfg": {
            "image_size": size, "timm_model_name": name, "timm_model_pretrained": False, "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": CONTEXT, "vocab_size": EMBED_WORDS, "hf_tokenizer_name": "tokenizer",
            "tokenizer_kwargs": {"clean": "canonicalize"}, "width": TEXT, "heads": 2, "layers": 2, "mlp_ratio": 3.7362,
            "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}, **text,
        },
    }  # fmt: skip


def saved(folder: Path, config: dict[str, Any]) -> Path:
    """A folder of open_clip's with random weights, large enough that activations matter."""
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**{k: v for k, v in config.items() if k != "custom_text"})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder.mkdir()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    how = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": how}))
    tokenizers.save(folder)
    return folder


def logits(folder: Path, size: int) -> torch.Tensor:
    """Of fixed images and texts, by the library that the folder is for."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, size, size, generator=generator)
    texts = torch.randint(0, EMBED_WORDS, (4, CONTEXT), generator=generator)
    with torch.no_grad():
        if (folder / "config.json").exists():
            model: Any = SiglipModel.from_pretrained(folder)
            return model.eval()(input_ids=texts, pixel_values=images).logits_per_image
        theirs = open_clip.create_model(f"local-dir:{folder}").eval()
        return theirs.get_logits(images, texts)[0]


@pytest.mark.parametrize(
    ("size", "text", "activations"),
    [
        (16, {}, ("gelu", "gelu")),
        (16, {"act_kwargs": {"approximate": "tanh"}}, ("gelu", "gelu_pytorch_tanh")),
        (32, {"act_kwargs": {"approximate": "tanh"}}, ("gelu_pytorch_tanh", "gelu_pytorch_tanh")),
    ],
)
def test_an_open_clip_model_loads_in_transformers_and_goes_back_with_the_same_bits(
    tmp_path: Path, size: int, text: dict[str, Any], activations: tuple[str, str]
) -> None:
    ours = saved(tmp_path / "ours", settings(size, **text))
    convert(ours, "transformers", tmp_path / "theirs")
    config: Any = SiglipConfig.from_pretrained(tmp_path / "theirs")
    assert (config.vision_config.hidden_act, config.text_config.hidden_act) == activations
    wanted = logits(ours, size)
    torch.testing.assert_close(logits(tmp_path / "theirs", size), wanted, rtol=1e-5, atol=1e-5)

    convert(tmp_path / "theirs", "open_clip", tmp_path / "back")
    before, after = (load_file(f / "open_clip_model.safetensors") for f in (ours, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    torch.testing.assert_close(logits(tmp_path / "back", size), wanted, rtol=0, atol=0)
    tokenize = [open_clip.get_tokenizer(f"local-dir:{folder}") for folder in (ours, tmp_path / "back")]
    assert torch.equal(*(one(["A red circle, a photo!"]) for one in tokenize))

    # with the other GELU, the same weights are another model
    config.vision_config.hidden_act = {"gelu": "gelu_pytorch_tanh"}.get(activations[0], "gelu")
    config.save_pretrained(tmp_path / "theirs")
    assert (logits(tmp_path / "theirs", size) - wanted).abs().max() > 1e-4
    with pytest.raises(UserError, match=rf"hidden_act is .*open_clip's model of this .*computes '{activations[0]}'"):
        convert(tmp_path / "theirs", "open_clip", tmp_path / "wrong")


def test_buffers_that_hold_nothing_learned_are_left_out_whatever_the_two_libraries(tmp_path: Path) -> None:
    """transformers up to 4.30 saved the numbers of positions, open_clip before 2.24 its mask; of any library."""
    ours = saved(tmp_path / "open_clip", settings(16))
    convert(ours, "transformers", tmp_path / "transformers")
    positions = {"text_model": torch.arange(CONTEXT)[None], "vision_model": torch.arange(4)[None]}
    buffers = {
        "open_clip": {"text.attn_mask": torch.zeros(CONTEXT, CONTEXT)},
        "transformers": {f"{tower}.embeddings.position_ids": ids for tower, ids in positions.items()},
    }
    for given, added in buffers.items():
        older = Path(shutil.copytree(tmp_path / given, tmp_path / f"older-{given}"))
        (weights,) = older.glob("*.safetensors")
        save_file({**load_file(weights), **added}, weights)
        for to in LIBRARIES:
            out = tmp_path / f"{given}-{to}"
            done = convert(older, to, out, dtype="bfloat16")
            convert(tmp_path / to, to, tmp_path / f"{out.name}-wanted", dtype="bfloat16")
            made, wanted = (load_file(out.with_name(name) / WEIGHTS[to]) for name in (out.name, f"{out.name}-wanted"))
            assert made.keys() == wanted.keys()
            assert all(torch.equal(made[name], tensor) for name, tensor in wanted.items())
            assert f"{older}: {', '.join(sorted(added))} left out: nothing that is learned" in done.notes
        base = Base(model=f"local-dir:{older}", pretrained=f"local-dir:{older}")
        models.resolve(base, tmp_path, tmp_path / f"{given}-model")
        models.fetch_base(base, tmp_path, tmp_path)
        plain = load_file(ours / WEIGHTS["open_clip"])
        read = load_file(tmp_path / "base.safetensors")
        assert read.keys() == plain.keys()
        assert all(torch.equal(read[name], tensor) for name, tensor in plain.items())


def test_a_siglip_folder_of_transformers_is_a_base_and_its_images_are_seen_the_same(tmp_path: Path) -> None:
    convert(saved(tmp_path / "ours", settings(16)), "transformers", tmp_path / "theirs")
    base = Base(model="local-dir:theirs", pretrained="local-dir:theirs")
    models.resolve(base, tmp_path, tmp_path / "model")
    models.fetch_tokenizer(base, tmp_path, tmp_path / "model")
    models.fetch_base(base, tmp_path, tmp_path)
    assert load_file(tmp_path / "base.safetensors").keys() == models.build(tmp_path / "model").state_dict().keys()
    assert models.tokenizer(tmp_path / "model")(["RED, red!"]).tolist()[0][:3] == [5, 5, 12]
    how = models.preprocess(tmp_path / "model")
    assert (how.mean, how.std, how.resize_mode) == ((0.5,) * 3, (0.5,) * 3, "squash")

    library: Any = AutoImageProcessor
    processor = library.from_pretrained(tmp_path / "theirs")
    assert isinstance(processor, SiglipImageProcessor)
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    ours = models.normalize(image.permute(1, 2, 0)[None], how, torch.device("cpu"))
    torch.testing.assert_close(processor(image, return_tensors="pt")["pixel_values"], ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text_cfg": {"pool_type": "argmax"}}, r"text_cfg\.pool_type: 'argmax'"),
        ({"text_cfg": {"no_causal_mask": False}}, r"text_cfg\.no_causal_mask: False"),
        ({"text_cfg": {"proj_type": "none"}}, r"text_cfg\.proj_type: 'none'"),  # ViT-SO400M-16-SigLIP-i18n-256
        ({"text_cfg": {"qk_norm": True}}, r"text_cfg\.qk_norm: True"),
        ({"text_cfg": {"act_kwargs": {"approximate": "other"}}}, r"text_cfg\.act_kwargs: \{'approximate': 'other'\}"),
        ({"vision_cfg": {"timm_proj": "linear"}}, r"vision_cfg\.timm_proj: 'linear'"),
        ({"vision_cfg": {"timm_model_name": "convnext_tiny"}}, r"vision_cfg\.timm_model_name: 'convnext_tiny'"),
        ({"vision_cfg": {"timm_model_name": "vit_tiny_patch16_224"}}, r"vision_cfg\.timm_model_name: 'vit_tiny_pat"),
        ({"vision_cfg": {"image_size": 24}}, r"image_size is 24, and timm's .* takes images of 16 pixels"),
        ({"init_logit_bias": None}, r"init_logit_bias: None"),
        ({"nonscalar_logit_scale": True}, r"nonscalar_logit_scale: True"),
    ],
)
def test_what_transformers_siglip_does_not_have_is_named(change: dict[str, Any], words: str) -> None:
    config = settings(16)
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    with pytest.raises(UserError, match=f"the model: .*{words}"):
        siglip.to_transformers(config, "the model")


@pytest.mark.parametrize(
    ("tower", "change", "words"),
    [
        ("vision_config", {"vision_use_head": False}, "vision_use_head is false"),
        ("vision_config", {"hidden_size": 128}, r"texts have 64 dimensions .* images 128"),
        ("vision_config", {"num_hidden_layers": 3}, "no SigLIP model with a vision tower of patch_size 8,"),
        ("text_config", {"hidden_act": "relu"}, "text_config.hidden_act: open_clip has no activation 'relu'"),
        ("text_config", {"vocab_size": 5}, "number 13 tokens, and the model has vocab_size 5"),
        ("text_config", {"layer_norm_eps": "x"}, "text_config.layer_norm_eps: "),
    ],
)
def test_what_open_clips_siglip_does_not_have_is_named(
    tmp_path: Path, tower: str, change: dict[str, Any], words: str
) -> None:
    config = siglip.to_transformers(settings(16), "the model")
    config[tower] |= change
    tokenizers.save(tmp_path)
    with pytest.raises(UserError, match=words):
        siglip.from_transformers(config, tmp_path / "config.json")


@pytest.mark.parametrize(
    "name",
    [
        "ViT-B-16-SigLIP",
        "ViT-SO400M-14-SigLIP",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in open_clip.list_models()
            if "SigLIP" in name
            and name not in ("ViT-B-16-SigLIP", "ViT-SO400M-14-SigLIP", "ViT-SO400M-16-SigLIP-i18n-256")
        ),
    ],
)
def test_each_siglip_model_of_open_clip_is_one_of_transformers(name: str, tmp_path: Path) -> None:
    """Their names and shapes, there and back; nothing is computed."""
    config = open_clip.get_model_config(name)
    theirs = siglip.to_transformers(config, name)
    with torch.device("meta"):
        model = SiglipModel(SiglipConfig(**theirs))
    patterns = dialects.available()["transformers_siglip"]
    ours = models.shapes_of(config, name)
    rules = patterns.rules_for(ours, of_open_clip=True)
    assert {tensor for rule in rules for tensor in rule.open_clip} == ours.keys()
    assert {tensor for rule in rules for tensor in rule.dialect} == model.state_dict().keys()

    back = siglip.from_transformers(theirs, tmp_path / "config.json")
    assert siglip.to_transformers(back, name) == theirs
    assert models.shapes_of(back, name) == ours
