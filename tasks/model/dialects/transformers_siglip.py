"""transformers' ``SiglipModel``; in open_clip SigLIP is a timm vision tower beside open_clip's own text tower.

Names: transformers/models/siglip/modeling_siglip.py; timm/layers/attention_pool.py (queries apart from keys and
values).
"""

from __future__ import annotations

from tasks.model.dialects.rules import Change, Dialect, Rule, packed, same
from tasks.model.dialects.transformers_clip import tower

_TRUNK, _HEAD = "visual.trunk.", "vision_model.head."
_OURS, _THEIRS = f"{_TRUNK}blocks.{{}}", "vision_model.encoder.layers.{}"

DIALECT = Dialect(
    "transformers SiglipModel",
    (
        Rule(("logit_scale",), ("logit_scale",), Change.SCALAR),
        Rule(("logit_bias",), ("logit_bias",), Change.SCALAR),
        *same("text.token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        *same("text.positional_embedding", "text_model.embeddings.position_embedding.weight"),
        *same("text.ln_final", "text_model.final_layer_norm", "weight", "bias"),
        *same("text.text_projection", "text_model.head", "weight", "bias"),
        *tower("text.", "text_model."),
        *same(f"{_TRUNK}patch_embed.proj", "vision_model.embeddings.patch_embedding", "weight", "bias"),
        Rule((f"{_TRUNK}pos_embed",), ("vision_model.embeddings.position_embedding.weight",), Change.BATCHED),
        *packed(f"{_OURS}.attn.qkv.", f"{_THEIRS}.self_attn"),
        *same(f"{_OURS}.attn.proj", f"{_THEIRS}.self_attn.out_proj", "weight", "bias"),
        *same(f"{_OURS}.norm1", f"{_THEIRS}.layer_norm1", "weight", "bias"),
        *same(f"{_OURS}.norm2", f"{_THEIRS}.layer_norm2", "weight", "bias"),
        *same(f"{_OURS}.mlp.fc1", f"{_THEIRS}.mlp.fc1", "weight", "bias"),
        *same(f"{_OURS}.mlp.fc2", f"{_THEIRS}.mlp.fc2", "weight", "bias"),
        *same(f"{_TRUNK}norm", "vision_model.post_layernorm", "weight", "bias"),
        *same(f"{_TRUNK}attn_pool.latent", f"{_HEAD}probe"),
        *(
            Rule(
                (f"{_TRUNK}attn_pool.q.{ending}", f"{_TRUNK}attn_pool.kv.{ending}"),
                (f"{_HEAD}attention.in_proj_{ending}",),
                open_clip_parts=(1, 2),
            )
            for ending in ("weight", "bias")
        ),
        *same(f"{_TRUNK}attn_pool.proj", f"{_HEAD}attention.out_proj", "weight", "bias"),
        *same(f"{_TRUNK}attn_pool.norm", f"{_HEAD}layernorm", "weight", "bias"),
        *same(f"{_TRUNK}attn_pool.mlp.fc1", f"{_HEAD}mlp.fc1", "weight", "bias"),
        *same(f"{_TRUNK}attn_pool.mlp.fc2", f"{_HEAD}mlp.fc2", "weight", "bias"),
    ),
)
