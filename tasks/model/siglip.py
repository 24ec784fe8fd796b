"""What a SigLIP model is: open_clip's configuration out of transformers', and the other way round.

In open_clip it is a vision tower of timm, under one of timm's names, beside open_clip's own text tower. What the tower
under a name is made of is read off the tower that timm builds, without values.

Keys: open_clip/model.py (``CLIPVisionCfg``, ``CLIPTextCfg``); transformers/models/siglip/configuration_siglip.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tasks.errors import UserError
from tasks.model import dialects, tokenizers
from tasks.model.light_imports import prepare as prepare_imports
from tasks.model.settings import Checked, Layers, Size, checked, mlp_ratio

if TYPE_CHECKING:
    import torch

MEAN = STD = (0.5, 0.5, 0.5)
"""Of images, where a preprocessor names none."""
_TANH = "gelu_pytorch_tanh"
"""transformers' name of GELU by its tanh approximation, which differs from the exact one by up to 5e-4."""
_TEXT_DEFAULTS = {
    "context_length": 77, "vocab_size": tokenizers.CLIP_WORDS, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0,
    "act_kwargs": None, "norm_kwargs": None,
}  # fmt: skip
"""open_clip's defaults."""
_TEXT_FIXED = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
"""What transformers' SigLIP has no other of."""
_TEXT_FREE = {"hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode"}
_HARMLESS: Mapping[str, Mapping[str, object]] = {
    "vision_cfg": {
        "timm_model_pretrained": False, "timm_proj_bias": False, "timm_drop": 0.0, "timm_drop_path": None,
        "patch_dropout": 0.0,
    },
    "text_cfg": {"embed_cls": False, "final_ln_after_pool": False, "proj_type": "linear", "output_tokens": False},
    "": {"custom_text": True, "init_logit_scale": None, "quick_gelu": None},
}  # fmt: skip
"""Settings that transformers has no words for, at the values that mean what it does anyway; None: at any."""


class _Tower(Checked):
    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_hidden_layers: Layers = 12
    num_attention_heads: Size = 12
    hidden_act: str = _TANH
    layer_norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-6


class _Vision(_Tower):
    image_size: Size = 224
    patch_size: Size = 16
    vision_use_head: bool = True


class _Text(_Tower):
    vocab_size: Size = 32000
    max_position_embeddings: Size = 64
    projection_size: Size | None = None


class _Siglip(Checked):
    """transformers' config.json. Saved configurations leave out what has its default in transformers."""

    vision_config: _Vision = _Vision()
    text_config: _Text = _Text()


def is_siglip(model: Mapping[str, Any]) -> bool:
    """Whether open_clip's configuration of a model is one of SigLIP's: a tower of timm that ends in attention."""
    return bool(model["vision_cfg"].get("timm_model_name")) and model["vision_cfg"].get("timm_pool") == "map"


def to_transformers(model: Mapping[str, Any], source: str) -> dict[str, Any]:
    """transformers' config.json for open_clip's configuration of a SigLIP model.

    Raises:
        UserError: transformers' SiglipModel has no such architecture; names the setting.
    """
    vision, text = model["vision_cfg"], {**_TEXT_DEFAULTS, **model["text_cfg"]}
    used = {
        "vision_cfg": {"timm_model_name", "timm_pool", "timm_proj", "image_size"},
        "text_cfg": {*_TEXT_DEFAULTS, *_TEXT_FIXED, *_TEXT_FREE},
        "": {"embed_dim", "vision_cfg", "text_cfg", "init_logit_bias"},
    }
    for key, section in (("vision_cfg", vision), ("text_cfg", text), ("", model)):
        for name, value in section.items():
            harmless = _HARMLESS[key].get(name, ...)
            if name not in used[key] and value is not None and harmless is not None and harmless != value:
                raise _unlike(source, f"{key}.{name}".removeprefix("."), value)
    for name, value in _TEXT_FIXED.items():
        if text.get(name) != value:
            raise _unlike(source, f"text_cfg.{name}", text.get(name))
    if vision.get("timm_proj") != "none":
        raise _unlike(source, "vision_cfg.timm_proj", vision.get("timm_proj"))
    if model.get("init_logit_bias") is None:
        raise _unlike(source, "init_logit_bias", None)
    act, norm = text["act_kwargs"] or {}, text["norm_kwargs"] or {}
    if act not in ({}, {"approximate": "none"}, {"approximate": "tanh"}) or (act and model.get("quick_gelu")):
        raise _unlike(source, "text_cfg.act_kwargs", act)
    if norm.keys() - {"eps"}:
        raise _unlike(source, "text_cfg.norm_kwargs", norm)
    name = vision["timm_model_name"]
    trunk = _trunk(name)
    if trunk is None or trunk["hidden_size"] != model["embed_dim"]:
        raise _unlike(source, "vision_cfg.timm_model_name", name)
    if vision.get("image_size", trunk["image_size"]) != trunk["image_size"]:
        raise UserError(
            f"{source}: vision_cfg.image_size is {vision['image_size']!r}, and timm's {name} takes images of "
            f"{trunk['image_size']} pixels"
        )
    width = text["width"]
    return {
        "architectures": ["SiglipModel"], "model_type": "siglip",
        "vision_config": {"model_type": "siglip_vision_model", **trunk},
        "text_config": {
            "model_type": "siglip_text_model", "hidden_size": width, "projection_size": model["embed_dim"],
            "intermediate_size": int(width * text["mlp_ratio"]), "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"], "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"], "layer_norm_eps": norm.get("eps", 1e-5),
            "hidden_act": "quick_gelu" if model.get("quick_gelu") else _TANH if act.get("approximate") == "tanh"
            else "gelu",
            "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,  # the model itself uses none
        },
    }  # fmt: skip


def from_transformers(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """open_clip's ``model_cfg`` for transformers' config.json of a ``SiglipModel``; ``path`` is that file.

    Raises:
        UserError: open_clip has no such architecture; names the setting.
    """
    siglip = checked(_Siglip, config, path)
    vision, text = siglip.vision_config, siglip.text_config
    if not vision.vision_use_head:
        raise UserError(f"{path}: vision_use_head is false; open_clip's SigLIP models have the head")
    embed = text.projection_size or text.hidden_size
    if embed != vision.hidden_size:
        raise UserError(
            f"{path}: texts have {embed} dimensions (projection_size) and images {vision.hidden_size} (hidden_size)"
        )
    if text.hidden_act not in (_TANH, "gelu", "quick_gelu"):
        raise UserError(f"{path}: text_config.hidden_act: open_clip has no activation {text.hidden_act!r:.60}")
    return {
        "embed_dim": embed, "custom_text": True, "init_logit_bias": -10.0,
        **({"quick_gelu": True} if text.hidden_act == "quick_gelu" else {}),
        "vision_cfg": {
            "image_size": vision.image_size, "timm_model_name": _timm_name(vision, path),
            "timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings, "vocab_size": text.vocab_size, "width": text.hidden_size,
            "heads": text.num_attention_heads, "layers": text.num_hidden_layers,
            "mlp_ratio": mlp_ratio(text.intermediate_size, text.hidden_size), **_TEXT_FIXED,
            "norm_kwargs": {"eps": text.layer_norm_eps},
            **({"act_kwargs": {"approximate": "tanh"}} if text.hidden_act == _TANH else {}),
            **tokenizers.of_siglip(path.parent, text.vocab_size),
        },
    }  # fmt: skip


def _unlike(source: str, setting: str, value: object) -> UserError:
    return UserError(f"{source}: transformers' SiglipModel has nothing like {setting}: {value!r:.80}")


def _timm_name(vision: _Vision, path: Path) -> str:
    """timm's name of the tower that is made of this."""
    prepare_imports()
    import timm

    wanted = vision.model_dump(exclude={"vision_use_head"})
    names = timm.list_models(f"vit_*_patch{vision.patch_size}_siglip_{vision.image_size}")
    towers = {name: trunk for name in names if (trunk := _trunk(name))}
    differing = {name: [key for key in wanted if trunk[key] != wanted[key]] for name, trunk in towers.items()}
    if exact := next((name for name, keys in differing.items() if not keys), None):
        return exact
    if near := next((name for name, keys in differing.items() if keys == ["hidden_act"]), None):
        raise UserError(
            f"{path}: vision_config.hidden_act is {vision.hidden_act!r:.60}; open_clip's model of this architecture "
            f"({near}) computes {towers[near]['hidden_act']!r}, and the logits would differ. Set hidden_act so, or "
            "name open_clip's architecture in base.model and this as base.pretrained, where that may be"
        )
    told = ", ".join(f"{key} {wanted[key]}" for key in ("patch_size", "image_size", "hidden_size", "num_hidden_layers"))
    raise UserError(f"{path}: open_clip has no SigLIP model with a vision tower of {told}")


def _trunk(name: str) -> dict[str, Any] | None:
    """What timm's vision tower of this name is made of, as ``SiglipVisionConfig`` calls it; None where it is no such.

    Two towers of timm that differ in anything else have tensors of other names.
    """
    prepare_imports()
    import timm
    import torch

    if not timm.is_model(name):
        return None
    try:
        with torch.device("meta"):
            tower: Any = timm.create_model(name, num_classes=0, global_pool="map")
    except (TypeError, ValueError, AssertionError, AttributeError, RuntimeError):
        return None  # a tower that cannot end in attention
    dialect = dialects.available()["transformers_siglip"]
    if not dialect.speaks_open_clip(f"visual.trunk.{tensor}" for tensor in tower.state_dict()):
        return None
    block, pool = tower.blocks[0], tower.attn_pool
    activations = {_activation(one.mlp.act) for one in (*tower.blocks, pool)}
    settings = {
        "hidden_size": tower.embed_dim, "intermediate_size": block.mlp.fc1.out_features,
        "num_hidden_layers": len(tower.blocks), "num_attention_heads": block.attn.num_heads,
        "image_size": tower.patch_embed.img_size[0], "patch_size": tower.patch_embed.patch_size[0],
        "hidden_act": activations.pop(), "layer_norm_eps": block.norm1.eps,
    }  # fmt: skip
    alike = not activations and (pool.num_heads, pool.norm.eps) == (block.attn.num_heads, tower.norm.eps)
    return settings if alike and settings["hidden_act"] else None


def _activation(layer: torch.nn.Module) -> str | None:
    """transformers' name of an activation, by what it computes."""
    import torch
    from torch.nn.functional import gelu

    values = torch.linspace(-4, 4, 33)
    known = {"gelu": gelu(values), _TANH: gelu(values, approximate="tanh")}
    return next((name for name, wanted in known.items() if torch.equal(layer(values), wanted)), None)
