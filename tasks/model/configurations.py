"""What a model is, apart from its weights: open_clip's configuration and transformers', each out of the other.

Keys: open_clip/model.py (``CLIPVisionCfg``, ``CLIPTextCfg``), open_clip/transform.py (``PreprocessCfg``);
transformers/models/clip/configuration_clip.py and image_processing_clip.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from tasks.errors import UserError
from tasks.model import siglip, tokenizers, vocabularies
from tasks.model.settings import Checked, Layers, Processor, Ratio, Size, Three, checked, mlp_ratio

OPEN_CLIP = "open_clip_config.json"
TRANSFORMERS = "config.json"
PREPROCESSOR = "preprocessor_config.json"

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the images that OpenAI's CLIP was trained on: both libraries' default."""
_RESAMPLE = {"bilinear": 2, "bicubic": 3}
"""Pillow's numbers, which transformers stores."""
_HEAD_WIDTH = 64
"""open_clip's default."""
_VISION_DEFAULTS = {"layers": 12, "width": 768, "patch_size": 16}
_TEXT_DEFAULTS = {"layers": 12, "width": 512, "heads": 8}
"""open_clip's defaults."""
_VISION = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"}
_TEXT = {
    "context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "hf_tokenizer_name", "pool_type", "eos_id",
}  # fmt: skip
_HARMLESS = {
    "vision_cfg": {"pool_type": "tok", "patch_dropout": 0.0, "timm_model_pretrained": False},
    "text_cfg": {"embed_cls": False, "no_causal_mask": False, "tokenizer_kwargs": {}},
}
"""Settings that transformers has no words for, at the values that mean what it does anyway."""


class _Tower(Checked):
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers = 12
    num_attention_heads: Size
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


class _Vision(_Tower):
    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_attention_heads: Size = 12
    image_size: Size = 224
    patch_size: Size = 32


class _Text(_Tower):
    hidden_size: Size = 512
    intermediate_size: Size = 2048
    num_attention_heads: Size = 8
    vocab_size: Size = tokenizers.CLIP_WORDS
    max_position_embeddings: Size = 77
    eos_token_id: Annotated[int, Field(ge=0)] = vocabularies.CLIP_END


class _Clip(Checked):
    """transformers' config.json. Saved configurations leave out what has its default in transformers."""

    projection_dim: Size = 512
    vision_config: _Vision | None = None
    text_config: _Text | None = None


class _OpenClipVision(Checked):
    layers: Layers | Annotated[list[Layers], Field(min_length=4, max_length=4)] | None = None
    width: Size | None = None
    head_width: Size | None = None
    patch_size: Size | None = None
    image_size: Size | Annotated[list[Size], Field(min_length=2, max_length=2)] | None = None
    mlp_ratio: Ratio | None = None
    timm_model_name: Annotated[str, Field(pattern=r"^[\w.\-]{1,200}$")] | None = None
    """A name of timm's own: with a colon it would be an address that timm reads from."""


class _OpenClipText(Checked):
    layers: Layers | None = None
    width: Size | None = None
    heads: Size | None = None
    context_length: Size | None = None
    vocab_size: Size | None = None
    mlp_ratio: Ratio | None = None
    hf_tokenizer_name: Annotated[str, Field(pattern=r"^[^\x00-\x1f]{0,500}$")] | None = None
    tokenizer_mode: str | None = None
    hf_model_name: None = None
    """A model of the hub, which building it would ask for."""


class _OpenClipModel(Checked):
    embed_dim: Size
    vision_cfg: _OpenClipVision
    text_cfg: _OpenClipText


class _OpenClipPreprocessing(Checked):
    mean: Three | None = None
    std: Three | None = None
    interpolation: Literal["bilinear", "bicubic", "random"] | None = None
    resize_mode: Literal["shortest", "longest", "squash"] | None = None


class _OpenClipConfig(Checked):
    model_cfg: _OpenClipModel
    preprocess_cfg: _OpenClipPreprocessing | None = None


_TIMM_NAME = re.compile(r"[\w.\-]{1,200}")
_ENCODERS = (
    "facebook/nllb-200-distilled-1.3B", "facebook/nllb-200-distilled-600M", "google/mt5-base", "google/mt5-xl",
    "roberta-base", "xlm-roberta-base", "xlm-roberta-large",
)  # fmt: skip
"""The text encoders of open_clip's own configurations: only these names may it look up on the hub."""


def require_no_address(model: Mapping[str, Any]) -> None:
    """Check that open_clip builds a model of this configuration without loading anything from a path or a stranger.

    timm reads from what has a colon (``hf-hub:``, ``local-dir:``); open_clip gives ``hf_model_name`` to transformers,
    and for ``…_pretrained`` both download weights.

    Raises:
        UserError: names the key.
    """
    for tower, name in (("vision_cfg", "timm_model"), ("text_cfg", "hf_model")):
        part = model.get(tower)
        if not isinstance(part, Mapping):
            raise UserError(f"{tower}: expected settings, got {part!r:.80}")
        value = part.get(f"{name}_name")
        known = value in _ENCODERS if tower == "text_cfg" else isinstance(value, str) and _TIMM_NAME.fullmatch(value)
        if value is not None and not known:
            raise UserError(f"{tower}.{name}_name: {value!r:.80} is no model of the library's own, and is not loaded")
        if part.get(f"{name}_pretrained", tower == "text_cfg" and value is not None):  # open_clip's defaults
            raise UserError(f"{tower}.{name}_pretrained: the weights are in the state; none are downloaded")


class PartOfModelError(UserError):
    """A configuration is that of one tower; the base's is that of the model."""


def of_folder(folder: Path) -> dict[str, Any] | None:
    """open_clip's configuration of the model in a folder, whichever library saved it; None where it says nothing.

    Raises:
        PartOfModelError: it is that of a vision model alone.
        UserError: the configuration cannot be read, or is of another kind of model.
    """
    if (folder / OPEN_CLIP).is_file():
        config = _read(folder / OPEN_CLIP)
        checked(_OpenClipConfig, config, folder / OPEN_CLIP)
        return config
    if (folder / TRANSFORMERS).is_file():
        preprocessor = _read(folder / PREPROCESSOR) if (folder / PREPROCESSOR).is_file() else {}
        return _from_transformers(_read(folder / TRANSFORMERS), preprocessor, folder / TRANSFORMERS)
    return None


def to_transformers(config: Mapping[str, Any], source: str) -> dict[str, dict[str, Any]]:
    """transformers' files, by name, for an open_clip configuration.

    Raises:
        UserError: transformers has no such architecture; names the setting.
    """
    model, preprocessing = config["model_cfg"], config.get("preprocess_cfg") or {}
    if siglip.is_siglip(model):
        content = siglip.to_transformers(model, source)
        processor = _preprocessor(preprocessing, content["vision_config"]["image_size"])
        if not processor["do_center_crop"]:
            processor["image_processor_type"] = "SiglipImageProcessor"
        return {TRANSFORMERS: content, PREPROCESSOR: processor}
    vision, text = {**_VISION_DEFAULTS, **model["vision_cfg"]}, {**_TEXT_DEFAULTS, **model["text_cfg"]}
    for key, section, known in (("vision_cfg", vision, _VISION), ("text_cfg", text, _TEXT)):
        for name, value in section.items():
            if name not in known and _HARMLESS[key].get(name, ...) != value and value is not None:
                raise UserError(f"{source}: transformers' CLIPModel has nothing like {key}.{name}: {value!r}")
    if not isinstance(vision.get("layers"), int):
        raise UserError(
            f"{source}: transformers' CLIPModel has a vision transformer; this has layers {vision.get('layers')}"
        )
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    embed, words = model["embed_dim"], text.get("vocab_size", 49408)
    common = {"hidden_act": activation, "layer_norm_eps": 1e-5, "projection_dim": embed}
    size = vision.get("image_size", 224)
    return {
        TRANSFORMERS: {
            "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": embed,
            "vision_config": {
                "model_type": "clip_vision_model", **common, "hidden_size": vision["width"],
                "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", 4.0)),
                "num_hidden_layers": vision["layers"], "image_size": size, "patch_size": vision["patch_size"],
                "num_attention_heads": vision["width"] // vision.get("head_width", _HEAD_WIDTH),
            },
            "text_config": {
                "model_type": "clip_text_model", **common, "hidden_size": text["width"],
                "intermediate_size": int(text["width"] * text.get("mlp_ratio", 4.0)),
                "num_hidden_layers": text["layers"], "num_attention_heads": text["heads"], "vocab_size": words,
                "max_position_embeddings": text.get("context_length", 77),
                **_tokens(text, words, source),
            },
        },
        PREPROCESSOR: _preprocessor(preprocessing, size),
    }  # fmt: skip


def _tokens(text: Mapping[str, Any], words: int, source: str) -> dict[str, int | None]:
    """At which token transformers reads the feature of a text, which is where open_clip's model does."""
    pool, end = text.get("pool_type") or "argmax", text.get("eos_id", 2)
    if pool not in ("argmax", "eos") or (pool, end) == ("eos", 2):
        shown = f"{pool!r} at token 2" if pool == "eos" else repr(pool)
        raise UserError(f"{source}: transformers' CLIPModel has nothing like text_cfg.pool_type: {shown:.80}")
    if not text.get("hf_tokenizer_name") and words == tokenizers.CLIP_WORDS and pool == "argmax":
        end = vocabularies.CLIP_END  # the largest
        return {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    # transformers takes 2 for the token with the largest number.
    return {"bos_token_id": None, "eos_token_id": end if pool == "eos" else 2, "pad_token_id": None}


def _preprocessor(settings: Mapping[str, Any], size: int) -> dict[str, Any]:
    squash = settings.get("resize_mode", "shortest") == "squash"
    return {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True,
        "do_convert_rgb": True, "do_center_crop": not squash,
        "size": {"height": size, "width": size} if squash else {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "resample": _RESAMPLE.get(settings.get("interpolation") or "bicubic", _RESAMPLE["bicubic"]),
        "image_mean": list(settings.get("mean") or _MEAN), "image_std": list(settings.get("std") or _STD),
    }  # fmt: skip


def _from_transformers(config: Mapping[str, Any], preprocessor: Mapping[str, Any], path: Path) -> dict[str, Any]:
    kind = config.get("model_type")
    if kind == "clip_vision_model":
        raise PartOfModelError(f"{path}: a vision model alone; give the model that its text tower is from (--base)")
    if kind not in ("clip", "siglip"):
        raise UserError(
            f"{path}: models of type {kind!r:.60} are not converted, only clip and siglip; see docs/guides/models.md"
        )
    how = checked(Processor, preprocessor, path.with_name(PREPROCESSOR))
    if kind == "siglip":
        mean, std, crops = siglip.MEAN, siglip.STD, False
    else:
        mean, std, crops = _MEAN, _STD, True
    settings: dict[str, Any] = {
        "mean": how.image_mean or list(mean), "std": how.image_std or list(std),
        "resize_mode": "shortest" if preprocessor.get("do_center_crop", crops) else "squash",
        "interpolation": next((n for n, i in _RESAMPLE.items() if i == preprocessor.get("resample", 3)), "bicubic"),
    }  # fmt: skip
    if kind == "siglip":
        return {"model_cfg": siglip.from_transformers(config, path), "preprocess_cfg": settings}
    clip = checked(_Clip, config, path)
    vision, text = clip.vision_config or _Vision(), clip.text_config or _Text()
    if vision.hidden_size % vision.num_attention_heads:
        raise UserError(
            f"{path}: hidden_size {vision.hidden_size} is no multiple of {vision.num_attention_heads} heads"
        )
    activations = {vision.hidden_act, text.hidden_act}
    if activations not in ({"quick_gelu"}, {"gelu"}):
        names = ", ".join(f"{name:.60}" for name in sorted(activations))
        raise UserError(f"{path}: open_clip has no model with the activations {names}")
    if {vision.layer_norm_eps, text.layer_norm_eps} != {1e-5}:
        raise UserError(f"{path}: layer_norm_eps is not 1e-5, which open_clip's CLIP has")
    return {
        "model_cfg": {
            "embed_dim": clip.projection_dim, "quick_gelu": "quick_gelu" in activations,
            "vision_cfg": {
                "image_size": vision.image_size, "layers": vision.num_hidden_layers,
                "width": vision.hidden_size, "head_width": vision.hidden_size // vision.num_attention_heads,
                "patch_size": vision.patch_size, "mlp_ratio": mlp_ratio(vision.intermediate_size, vision.hidden_size),
            },
            "text_cfg": {
                "context_length": text.max_position_embeddings, "vocab_size": text.vocab_size,
                "width": text.hidden_size, "heads": text.num_attention_heads,
                "layers": text.num_hidden_layers, "mlp_ratio": mlp_ratio(text.intermediate_size, text.hidden_size),
                **tokenizers.of_transformers(path.parent, text.vocab_size, text.eos_token_id),
            },
        },
        "preprocess_cfg": settings,
    }  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable configuration ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a configuration, which is a JSON object")
    return content
