"""Features of texts that begin alike: where the text tower is causal, each beginning is computed once.

A causal tower sees of a text at some position what comes up to there, so all texts that begin alike have the same
values there, and gradients that flow back there are summed. Prompts of one template differ in few tokens at their end:
their distinct beginnings are a fifth of all positions, or so. These are laid out in a few sequences, in which each
attends to itself and to what it continues.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from tasks.model import models

if TYPE_CHECKING:
    from tasks.model.models import Clip

_LENGTH = 64
"""Beginnings in a sequence, unless a text alone is longer: attention then costs little beside the linear maps."""


@dataclass(frozen=True)
class Beginnings:
    """Distinct beginnings of N texts, in S sequences of L."""

    tokens: torch.Tensor
    """The last token of each, int64, (S, L)."""
    depths: torch.Tensor
    """The position of that token in its texts, int64, (S, L)."""
    attends: torch.Tensor
    """Whether the first is the second or continues it, bool, (S, L, L)."""
    ends: torch.Tensor
    """Which of the S · L is each text, int64, (N,)."""


def beginnings_of(texts: Sequence[Sequence[int]], length: int = _LENGTH) -> Beginnings:
    """Lay out texts, each its tokens up to the end, in sequences of ``length`` beginnings or the longest text."""
    length = max(length, *map(len, texts))
    tokens: list[list[int]] = []
    depths: list[list[int]] = []
    above: list[list[list[int]]] = []
    ends = [0] * len(texts)
    places: dict[tuple[int, ...], int] = {}
    for number in sorted(range(len(texts)), key=lambda number: tuple(texts[number])):
        text = tuple(texts[number])
        parts = [text[: at + 1] for at in range(len(text))]
        if not tokens or len(tokens[-1]) + sum(part not in places for part in parts) > length:
            places = {}
            for rows in (tokens, depths, above):
                rows.append([])
        for depth, part in enumerate(parts):
            if part not in places:
                place = places[part] = len(tokens[-1])
                tokens[-1].append(part[-1])
                depths[-1].append(depth)
                above[-1].append([*(above[-1][places[part[:-1]]] if depth else ()), place])
        ends[number] = (len(tokens) - 1) * length + places[text]
    attends = torch.eye(length, dtype=torch.bool).repeat(len(tokens), 1, 1)
    for sequence, rows in enumerate(above):
        for place, seen in enumerate(rows):
            attends[sequence, place, seen] = True
    padded = [torch.tensor([row + [0] * (length - len(row)) for row in rows]) for rows in (tokens, depths)]
    return Beginnings(padded[0], padded[1], attends, torch.tensor(ends))


class UsedRows:
    """The rows of a model's token embedding that some texts look up, as a parameter of their own.

    A gradient of the whole embedding is as long as the vocabulary, and nearly all zero.
    """

    def __init__(self, model: Clip, tokens: torch.Tensor) -> None:
        self.ids: torch.Tensor = torch.cat([tokens.flatten(), tokens.new_zeros(1)]).unique()
        """int64, (K,), rising; 0, which stands where a sequence is over, is one."""
        self.rows: torch.Tensor = model.token_embedding.weight.detach()[self.ids].requires_grad_()
        """(K, width)."""

    def look_up(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 (…) → (…, width)."""
        return functional.embedding(torch.searchsorted(self.ids, tokens), self.rows)


def are_served(model: Clip, tokens: torch.Tensor) -> bool:
    """Whether `features` knows the text tower: causal, of open_clip's plain blocks, read at the end of a text."""
    from open_clip.transformer import ResidualAttentionBlock

    return models.text_ends(model, tokens) is not None and all(
        type(block) is ResidualAttentionBlock for block in model.transformer.resblocks
    )


def features(model: Clip, tokens: torch.Tensor, used: UsedRows) -> torch.Tensor:
    """Normalized features of texts' tokens, int64 (N, L): (N, D)."""
    ends = models.text_ends(model, tokens)
    assert ends is not None
    texts = [row[: end + 1] for row, end in zip(tokens.tolist(), ends.tolist(), strict=True)]
    packed, device = beginnings_of(texts), tokens.device
    places, attends = packed.ends.to(device), packed.attends[:, None].to(device)
    positions = functional.embedding(packed.depths.to(device), model.positional_embedding)
    x = used.look_up(packed.tokens.to(device)) + positions
    *blocks, last = model.transformer.resblocks
    for block in blocks:
        x = _continued(block, x, _attended(block, x, attends))
    attended = _attended(last, x, attends)
    x = _continued(last, x.flatten(0, 1)[places], attended.flatten(0, 1)[places])
    x = model.ln_final(x)
    if isinstance(model.text_projection, torch.nn.Linear):
        x = model.text_projection(x)
    elif model.text_projection is not None:
        x = x @ model.text_projection
    return functional.normalize(x, dim=-1)


def _attended(block: Any, x: torch.Tensor, attends: torch.Tensor) -> torch.Tensor:
    """The heads of one of open_clip's blocks side by side, (S, L, width) as x."""
    attn = block.attn
    projected = functional.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)
    q, k, v = (one.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for one in projected.chunk(3, dim=-1))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=attends).transpose(1, 2).flatten(2)


def _continued(block: Any, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """What the block makes of x and its heads, at any positions."""
    x = x + block.ls_1(block.attn.out_proj(attended))
    added: torch.Tensor = block.ls_2(block.mlp(block.ln_2(x)))
    return x + added
