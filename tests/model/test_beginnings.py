"""Texts that begin alike, computed together: features and gradients against each text by itself, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from open_clip import CLIP
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from tasks.model.beginnings import UsedRows, are_served, beginnings_of, features

END = 49
TEXTS = [[1, 5, 6, 7, END], [1, 5, 6, END], [1, 5, 6, 7, END], [1, END], [2, 5, 6, END], [1, 5, 6, 7, 7, 8, END]]


def clip(**text: Any) -> CLIP:
    torch.manual_seed(0)
    settings = {"context_length": 9, "vocab_size": END + 1, "width": 16, "heads": 2, "layers": 3, "eos_id": END}
    vision = CLIPVisionCfg(image_size=16, patch_size=8, width=16, head_width=8, layers=1)
    model = CLIP(8, vision, CLIPTextCfg(**(settings | text)), quick_gelu=bool(text.get("ls_init_value")))  # type: ignore[arg-type]
    return model.double().eval()


def tokens(texts: list[list[int]] = TEXTS, padding: int = 0) -> torch.Tensor:
    return torch.tensor([text + [padding] * (9 - len(text)) for text in texts])


def test_each_beginning_is_there_once() -> None:
    packed = beginnings_of(TEXTS, length=1)  # that is, of the longest text
    assert packed.tokens.shape == (3, 7)
    alone = beginnings_of(TEXTS)
    assert alone.tokens.shape == (1, 64)
    assert int(alone.attends.sum()) == 64 + sum(
        [1, 2, 3, 3, 4, 4, 5, 6, 1, 2, 3, 1]
    )  # each itself, and what it continues
    for found in (packed, alone):
        flat, depths = found.tokens.flatten(), found.depths.flatten()
        length = found.tokens.shape[1]
        for text, end in zip(TEXTS, found.ends.tolist(), strict=True):
            seen = found.attends.flatten(0, 1)[end].nonzero()[:, 0] + end // length * length
            assert flat[seen].tolist() == text
            assert depths[seen].tolist() == list(range(len(text)))


@pytest.mark.parametrize(
    ("text", "padding"),
    [({}, 0), ({"ls_init_value": 0.3}, 0), ({"proj_bias": True, "pool_type": "eos"}, END), ({"layers": 1}, 0)],
)
def test_features_and_gradients_are_those_of_each_text_alone(text: dict[str, Any], padding: int) -> None:
    model, given = clip(**text), tokens(padding=padding)
    assert are_served(model, given)
    used = UsedRows(model, given)
    ours, theirs = features(model, given, used), model.encode_text(given, normalize=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    upstream = torch.randn(ours.shape, dtype=torch.double)
    names = [name for name, _ in model.named_parameters() if not name.startswith(("visual", "logit", "token_emb"))]
    tower = [model.get_parameter(name) for name in names]
    found = torch.autograd.grad((ours * upstream).sum(), [used.rows, *tower])
    expected = torch.autograd.grad((theirs * upstream).sum(), [model.token_embedding.weight, *tower])
    rows = torch.zeros_like(expected[0]).index_copy_(0, used.ids, found[0])
    for name, one, other in zip(["rows", *names], [rows, *found[1:]], expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13, msg=name)


def test_other_towers_are_not_served() -> None:
    assert not are_served(clip(no_causal_mask=True), tokens())
    assert not are_served(clip(pool_type="last"), tokens())
    assert not are_served(clip(scale_attn_inner=True), tokens())
