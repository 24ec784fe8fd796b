"""What a model is, apart from its weights: open_clip's configuration and transformers', each out of the other.

Keys: open_clip/model.py (``CLIPVisionCfg``, ``CLIPTextCfg``), open_clip/transform.py (``PreprocessCfg``);
transformers/models/clip/configuration_clip.py and image_processing_clip.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.errors import UserError

OPEN_CLIP = "open_clip_config.json"
TRANSFORMERS = "config.json"
PREPROCESSOR = "preprocessor_config.json"

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the images that OpenAI's CLIP was trained on: both libraries' default."""
_RESAMPLE = {"bilinear": 2, "bicubic": 3}
"""Pillow's numbers, which transformers stores."""
_HEAD_WIDTH = 64
"""open_clip's default."""
_VISION = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"}
_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
_HARMLESS = {
    "vision_cfg": {"pool_type": "tok", "patch_dropout": 0.0, "timm_model_pretrained": False},
    "text_cfg": {"pool_type": "argmax", "hf_tokenizer_name": "", "embed_cls": False, "no_causal_mask": False},
}
"""Settings that transformers has no words for, at the values that mean what it does anyway."""


def of_folder(folder: Path) -> dict[str, Any] | None:
    """open_clip's configuration of the model in a folder, whichever library saved it; None where it says nothing.

    Raises:
        UserError: the configuration cannot be read, or is of another kind of model.
    """
    if (folder / OPEN_CLIP).is_file():
        config = _read(folder / OPEN_CLIP)
        if not isinstance(config.get("model_cfg"), dict):
            raise UserError(f"{folder / OPEN_CLIP}: lacks model_cfg")
        return config
    if (folder / TRANSFORMERS).is_file():
        preprocessor = _read(folder / PREPROCESSOR) if (folder / PREPROCESSOR).is_file() else {}
        return _from_transformers(_read(folder / TRANSFORMERS), preprocessor, folder / TRANSFORMERS)
    return None


def to_transformers(config: Mapping[str, Any], source: str) -> dict[str, dict[str, Any]]:
    """transformers' files, by name, for an open_clip configuration.

    Raises:
        UserError: transformers' CLIPModel has no such architecture; names the setting.
    """
    model = config["model_cfg"]
    vision, text = model["vision_cfg"], model["text_cfg"]
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
                # The text feature is read at the end-of-text token, which has the largest id.
                "bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1,
            },
        },
        PREPROCESSOR: _preprocessor(config.get("preprocess_cfg", {}), size),
    }  # fmt: skip


def _preprocessor(settings: Mapping[str, Any], size: int) -> dict[str, Any]:
    squash = settings.get("resize_mode", "shortest") == "squash"
    return {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True,
        "do_convert_rgb": True, "do_center_crop": not squash,
        "size": {"height": size, "width": size} if squash else {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "resample": _RESAMPLE[settings.get("interpolation", "bicubic")],
        "image_mean": list(settings.get("mean", _MEAN)), "image_std": list(settings.get("std", _STD)),
    }  # fmt: skip


def _from_transformers(config: Mapping[str, Any], preprocessor: Mapping[str, Any], path: Path) -> dict[str, Any]:
    kind = config.get("model_type")
    if kind == "clip_vision_model":
        raise UserError(f"{path}: a vision model alone; give the model that its text tower is from (--base)")
    if kind != "clip":
        raise UserError(f"{path}: models of type {kind!r} are not converted, only clip; see docs/guides/models.md")
    # Saved configurations leave out what has its default in transformers.
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
              "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
              **(config.get("vision_config") or {})}  # fmt: skip
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
            "vocab_size": 49408, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
            **(config.get("text_config") or {})}  # fmt: skip
    activations = {vision["hidden_act"], text["hidden_act"]}
    if activations not in ({"quick_gelu"}, {"gelu"}):
        raise UserError(f"{path}: open_clip has no model with the activations {', '.join(sorted(activations))}")
    if {vision["layer_norm_eps"], text["layer_norm_eps"]} != {1e-5}:
        raise UserError(f"{path}: layer_norm_eps is not 1e-5, which open_clip's CLIP has")
    settings: dict[str, Any] = {
        "mean": preprocessor.get("image_mean", list(_MEAN)), "std": preprocessor.get("image_std", list(_STD)),
        "resize_mode": "shortest" if preprocessor.get("do_center_crop", True) else "squash",
        "interpolation": next((n for n, i in _RESAMPLE.items() if i == preprocessor.get("resample", 3)), "bicubic"),
    }  # fmt: skip
    return {
        "model_cfg": {
            "embed_dim": config.get("projection_dim", 512), "quick_gelu": "quick_gelu" in activations,
            "vision_cfg": {
                "image_size": vision["image_size"], "layers": vision["num_hidden_layers"],
                "width": vision["hidden_size"], "head_width": vision["hidden_size"] // vision["num_attention_heads"],
                "patch_size": vision["patch_size"], "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
            },
            "text_cfg": {
                "context_length": text["max_position_embeddings"], "vocab_size": text["vocab_size"],
                "width": text["hidden_size"], "heads": text["num_attention_heads"],
                "layers": text["num_hidden_layers"], "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
            },
        },
        "preprocess_cfg": settings,
    }  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable configuration ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a configuration, which is a JSON object")
    return content
