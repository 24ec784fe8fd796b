"""transformers' ``CLIPModel``; of it ``CLIPVisionModelWithProjection`` and the text models hold a part.

Names: transformers/models/clip/modeling_clip.py (4.x and 5.x); open_clip: src/open_clip/transformer.py.
"""

from __future__ import annotations

from tasks.model.dialects.rules import Change, Dialect, Rule, packed, same


def tower(open_clip: str, dialect: str) -> tuple[Rule, ...]:
    """The residual blocks of either tower."""
    ours, theirs = f"{open_clip}transformer.resblocks.{{}}", f"{dialect}encoder.layers.{{}}"
    return (
        *packed(f"{ours}.attn.in_proj_", f"{theirs}.self_attn"),
        *same(f"{ours}.attn.out_proj", f"{theirs}.self_attn.out_proj", "weight", "bias"),
        *same(f"{ours}.ln_1", f"{theirs}.layer_norm1", "weight", "bias"),
        *same(f"{ours}.ln_2", f"{theirs}.layer_norm2", "weight", "bias"),
        *same(f"{ours}.mlp.c_fc", f"{theirs}.mlp.fc1", "weight", "bias"),
        *same(f"{ours}.mlp.c_proj", f"{theirs}.mlp.fc2", "weight", "bias"),
    )


def vision(prefix: str) -> tuple[Rule, ...]:
    """The vision tower without its projection."""
    return (
        *same("visual.class_embedding", f"{prefix}embeddings.class_embedding"),
        *same("visual.conv1.weight", f"{prefix}embeddings.patch_embedding.weight"),
        *same("visual.positional_embedding", f"{prefix}embeddings.position_embedding.weight"),
        *same("visual.ln_pre", f"{prefix}pre_layrnorm", "weight", "bias"),  # transformers' own spelling
        *same("visual.ln_post", f"{prefix}post_layernorm", "weight", "bias"),
        *tower("visual.", prefix),
    )


DIALECT = Dialect(
    "transformers CLIPModel",
    (
        *same("logit_scale", "logit_scale"),
        *same("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        *same("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        *same("ln_final", "text_model.final_layer_norm", "weight", "bias"),
        Rule(("text_projection",), ("text_projection.weight",), Change.TRANSPOSED),
        *tower("", "text_model."),
        *vision("vision_model."),
        Rule(("visual.proj",), ("visual_projection.weight",), Change.TRANSPOSED),
    ),
)
