"""Checkpoints of other dialects: the same bits there and back, and the same model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.errors import UserError
from tasks.model import dialects
from tasks.model.sources import DictSource, FileSource, TensorSource, raw_bytes
from tasks.model.torchvision_shim import ensure
from tasks.model.translated import as_the_base, from_open_clip, plainly_named, to_open_clip

ensure()
import open_clip  # noqa: E402
from transformers import (  # noqa: E402
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)

WIDTH, TEXT, LAYERS, EMBED, WORDS, CONTEXT = 64, 48, 2, 24, 99, 12
"""Every width is another, so that no two tensors fit in each other's place."""


def clip_config() -> CLIPConfig:
    vision = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2, image_size=16,
        patch_size=8, projection_dim=EMBED,
    )  # fmt: skip
    text = CLIPTextConfig(
        hidden_size=TEXT, intermediate_size=4 * TEXT, num_hidden_layers=LAYERS, num_attention_heads=2, vocab_size=WORDS,
        max_position_embeddings=CONTEXT, projection_dim=EMBED, bos_token_id=WORDS - 2, eos_token_id=WORDS - 1,
    )  # fmt: skip
    return CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=EMBED)


def open_clip_model(**settings: Any) -> torch.nn.Module:
    vision = {"layers": LAYERS, "width": WIDTH, "head_width": WIDTH // 2, "patch_size": 8, "image_size": 16}
    text = {"context_length": CONTEXT, "vocab_size": WORDS, "width": TEXT, "heads": 2, "layers": LAYERS}
    kind = settings.pop("kind", open_clip.CLIP)
    return kind(embed_dim=EMBED, vision_cfg=vision, text_cfg=text, quick_gelu=True, **settings).eval()


@pytest.fixture(scope="module")
def clip() -> CLIPModel:
    torch.manual_seed(0)
    return CLIPModel(clip_config()).eval()


def source(model: torch.nn.Module | Mapping[str, Any], label: str = "x") -> DictSource:
    tensors = model.state_dict() if isinstance(model, torch.nn.Module) else model
    return DictSource({name: tensor.detach() for name, tensor in tensors.items()}, label)


def tensors(read: TensorSource) -> dict[str, torch.Tensor]:
    found = {}
    for name, entry in read.entries.items():
        assert entry.dtype == "F32"
        found[name] = torch.from_numpy(raw_bytes(read, name, 0, entry.bytes).view(np.float32).reshape(entry.shape))
    return found


def same(a: TensorSource, b: TensorSource) -> bool:
    return a.entries == b.entries and all(
        np.array_equal(raw_bytes(a, n, 0, e.bytes), raw_bytes(b, n, 0, e.bytes)) for n, e in a.entries.items()
    )


def test_transformers_clip_in_open_clip_gives_the_same_logits(clip: CLIPModel) -> None:
    given = source(clip)
    dialect = dialects.of(given.entries)
    assert dialect is not None
    assert dialect.name == "transformers CLIPModel"
    model = open_clip_model()
    model.load_state_dict(tensors(to_open_clip(given, dialect)))  # strict: no tensor more or less
    images = torch.randn(3, 3, 16, 16)
    texts = torch.randint(1, WORDS - 2, (5, CONTEXT))
    texts[:, 7] = WORDS - 1
    with torch.no_grad():
        theirs = clip(input_ids=texts, pixel_values=images).logits_per_image
        ours = model.get_logits(images, texts)[0]  # type: ignore[operator]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_there_and_back_gives_the_same_bits(clip: CLIPModel) -> None:
    given = source(clip)
    dialect = dialects.available()["transformers_clip"]
    assert same(from_open_clip(to_open_clip(given, dialect), dialect), given)


def test_pieces_of_a_translated_tensor_are_its_bytes(clip: CLIPModel) -> None:
    read = to_open_clip(source(clip), dialects.available()["transformers_clip"])
    for name in ("visual.transformer.resblocks.1.attn.in_proj_weight", "visual.proj", "token_embedding.weight"):
        size = read.entries[name].bytes
        complete = raw_bytes(read, name, 0, size)
        for start, count in ((0, 7), (size // 3 - 5, 11), (size - 3, 3), (size // 2, 100)):
            assert np.array_equal(raw_bytes(read, name, start, count), complete[start : start + count])


@pytest.mark.parametrize("of_open_clip", [False, True])
def test_buffers_that_hold_nothing_learned_are_left_out_and_named(clip: CLIPModel, of_open_clip: bool) -> None:
    """What transformers 4.30 and older save, and what OpenAI's archives and older open_clip do."""
    dialect = dialects.available()["transformers_clip"]
    if of_open_clip:
        plain = open_clip_model().state_dict()
        buffers = {"attn_mask": torch.zeros(CONTEXT, CONTEXT), "context_length": torch.tensor(CONTEXT)}
        buffers |= {name: torch.tensor(16) for name in ("input_resolution", "vocab_size")}
    else:
        plain = clip.state_dict()
        buffers = {f"{one}_model.embeddings.position_ids": torch.arange(5)[None] for one in ("text", "vision")}
    turn = from_open_clip if of_open_clip else to_open_clip
    given = turn(source({**plain, **buffers}), dialect)
    assert same(given, turn(source(plain), dialect))
    assert given.notes == [f"{given.label}: {', '.join(sorted(buffers))} left out: nothing that is learned"]


@pytest.mark.parametrize("kind", [CLIPVisionModel, CLIPVisionModelWithProjection])
def test_a_vision_model_is_open_clips_vision_tower(kind: type[torch.nn.Module]) -> None:
    torch.manual_seed(1)
    base = source(open_clip_model())
    expert = as_the_base(source(kind(clip_config().vision_config)), base)
    vision = {name for name in base.entries if name.startswith("visual.")}
    assert expert.entries.keys() == vision - ({"visual.proj"} if kind is CLIPVisionModel else set())
    assert all(base.entries[name] == entry for name, entry in expert.entries.items())


def test_a_vision_model_with_the_older_prefix_is_recognised(clip: CLIPModel) -> None:
    older = {name: t for name, t in clip.state_dict().items() if name.startswith("vision_model.")}
    older["vision_model.embeddings.position_ids"] = torch.arange(5.0).reshape(1, 5)
    read = as_the_base(source(older), source(open_clip_model()))
    assert "visual.conv1.weight" in read.entries
    assert any("position_ids left out" in note for note in read.notes)


def test_a_custom_text_base_gets_its_text_under_text(clip: CLIPModel) -> None:
    base = open_clip_model(kind=open_clip.CustomTextCLIP)
    read = as_the_base(source(clip), source(base))
    assert read.entries == source(base).entries


def test_open_clip_weights_under_a_transformers_base_get_its_names(clip: CLIPModel) -> None:
    for kind in (open_clip.CLIP, open_clip.CustomTextCLIP):
        assert as_the_base(source(open_clip_model(kind=kind)), source(clip)).entries == source(clip).entries


@pytest.mark.parametrize("prefixes", ["module.", "_orig_mod.", "model.", "module._orig_mod.model."])
def test_prefixes_of_wrappers_are_taken_off(prefixes: str) -> None:
    base = source(open_clip_model())
    wrapped = source({prefixes + name: tensor for name, tensor in open_clip_model().state_dict().items()})
    assert as_the_base(wrapped, base).entries.keys() == base.entries.keys()
    assert plainly_named(wrapped).entries.keys() == base.entries.keys()


def test_a_base_keeps_the_prefix_that_it_has() -> None:
    """A decoder without its head, say: all its names begin with ``model.``."""
    plain = {"embed_tokens.weight": torch.ones(3, 2), "layers.0.mlp.weight": torch.ones(2, 2)}
    base, wrapped = source({f"model.{name}": t for name, t in plain.items()}), source(plain)
    assert as_the_base(base, base).entries == base.entries
    assert as_the_base(wrapped, base).entries == base.entries


def siglip() -> SiglipModel:
    torch.manual_seed(2)
    vision = SiglipVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2, image_size=16,
        patch_size=8,
    )  # fmt: skip
    text = SiglipTextConfig(
        hidden_size=TEXT, intermediate_size=4 * TEXT, num_hidden_layers=LAYERS, num_attention_heads=2, vocab_size=WORDS,
        max_position_embeddings=CONTEXT, projection_size=WIDTH, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())).eval()


def test_transformers_siglip_in_open_clip_gives_the_same_logits() -> None:
    given = siglip()
    read = source(given)
    dialect = dialects.of(read.entries)
    assert dialect is not None
    assert dialect.name == "transformers SiglipModel"
    vision = {
        "image_size": 16, "timm_model_name": "vit_base_patch16_siglip_224", "timm_model_pretrained": False,
        "timm_pool": "map", "timm_proj": "none",
    }  # fmt: skip
    import timm

    model = open_clip.CustomTextCLIP(
        embed_dim=WIDTH, vision_cfg=vision, init_logit_bias=-10.0,
        text_cfg={
            "context_length": CONTEXT, "vocab_size": WORDS, "width": TEXT, "heads": 2, "layers": LAYERS,
            "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
        },
    )  # fmt: skip
    model.visual.trunk = timm.create_model(
        "vit_base_patch16_siglip_224", img_size=16, patch_size=8, embed_dim=WIDTH, depth=LAYERS, num_heads=2,
        num_classes=0, global_pool="map", act_layer="gelu_tanh",
    )  # fmt: skip
    model.eval()
    model.load_state_dict(tensors(to_open_clip(read, dialect)))
    images, texts = torch.randn(3, 3, 16, 16), torch.randint(1, WORDS, (4, CONTEXT))
    with torch.no_grad():
        theirs = given(input_ids=texts, pixel_values=images).logits_per_image
        ours = model.get_logits(images, texts)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    assert same(from_open_clip(to_open_clip(read, dialect), dialect), read)


def test_a_missing_part_of_a_packed_tensor_is_named(clip: CLIPModel) -> None:
    broken = dict(clip.state_dict())
    del broken["text_model.encoder.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(UserError, match=r"x: lacks 'text_model.encoder.layers.1.self_attn.k_proj.weight'"):
        as_the_base(source(broken), source(open_clip_model()))


def test_parts_that_do_not_fit_are_named(clip: CLIPModel) -> None:
    broken = dict(clip.state_dict())
    broken["text_model.encoder.layers.0.self_attn.v_proj.weight"] = torch.zeros(TEXT - 1, TEXT)
    with pytest.raises(UserError, match=r"do not fit together: .*v_proj.weight F32 \[47, 48\]"):
        as_the_base(source(broken), source(open_clip_model()))


def test_another_architecture_is_named(clip: CLIPModel) -> None:
    with pytest.raises(UserError, match="transformers CLIPModel has no tensor for 'stem"):
        as_the_base(source({"stem.weight": torch.zeros(2)}), source(clip))


def test_what_is_read_lies_in_its_file(clip: CLIPModel, tmp_path: Path) -> None:
    clip.save_pretrained(tmp_path, max_shard_size="100KB")
    with FileSource(tmp_path) as file:
        read = to_open_clip(file, dialects.available()["transformers_clip"])
        assert torch.equal(tensors(read)["visual.proj"], clip.visual_projection.weight.T)


def test_every_rule_has_a_name_of_its_own() -> None:
    for dialect in dialects.available().values():
        for side in ("open_clip", "dialect"):
            names = [name for rule in dialect.rules for name in getattr(rule, side)]
            assert len(names) == len(set(names)), (dialect.name, side)
