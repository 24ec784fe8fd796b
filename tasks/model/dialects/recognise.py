"""Recognise a checkpoint by its tensors: whose names they are, whether it is an adapter, whether it is quantised."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from tasks.model.dialects.rules import PREFIXES

UNKNOWN = "unknown"

_WRAPPERS = re.compile(f"^(?:{'|'.join(map(re.escape, PREFIXES))})+")

_NAMINGS = (
    # Most particular first: the first of which some name is like decides.
    ("OpenCLIP's CoCa", re.compile(r"text_decoder\.")),
    ("transformers SigLIP", re.compile(r"(?:vision_model|text_model)\.(?:head\.|.*\.(?:self_attn\.)?out_proj\.)")),
    ("transformers CLIP", re.compile(r"(?:(?:text|vision)_model\.|(?:text|visual)_projection\.weight$)")),
    ("open_clip", re.compile(r"(?:visual|text)\.|transformer\.resblocks\.|token_embedding\.weight$|text_projection$")),
    ("transformers decoder", re.compile(r"(?:embed_tokens|layers\.\d+\.(?:self_attn|mlp|input_layernorm)|lm_head)\b")),
    ("transformers BERT", re.compile(r"(?:bert\.|roberta\.)?(?:encoder\.layer|embeddings)\.")),
    ("timm", re.compile(r"(?:blocks|stages|stem|patch_embed|cls_token)\b")),
    ("torchvision", re.compile(r"(?:layer\d\.\d+\.(?:conv|bn)\d|features\.\d+|fc)\.")),
)

_ADAPTERS = (
    ("LoRA", re.compile(r"(?:^|[._])lora(?:_|\.)(?:A|B|down|up|mid|embedding_[AB]|magnitude_vector|[ab])\b")),
    ("LoHa", re.compile(r"(?:^|[._])hada_[wt]\d")),
    ("LoKr", re.compile(r"(?:^|[._])lokr_[wt]\d")),
    ("VeRA", re.compile(r"(?:^|[._])vera_(?:lambda|[AB])")),
    ("IA3", re.compile(r"(?:^|[._])ia3_l\b")),
    ("OFT", re.compile(r"(?:^|[._])(?:oft_(?:r|s|diag|blocks)|boft_[RsP])\b")),
    ("prompt", re.compile(r"^(?:base_model\.)?prompt_(?:embeddings|encoder)\b")),
)

_PACKED = re.compile(
    r"(?:^|[._:])(?:qweight|qzeros|g_idx|SCB|(?:nested_)?absmax|(?:nested_)?quant_map|quant_state(?:[._]\w+)*"
    r"|weight_packed|weight_scale(?:_inv|_2)?|weight_zero_point|weight_format|scale_weight|scaled_fp8|W_q|_packed_params)$"
)
"""Names that only quantised layers have (GPTQ, AWQ, bitsandbytes, compressed-tensors, fp8 files, HQQ, torch)."""
_IS_WEIGHT = re.compile(r"(?:qweight|weight_packed|W_q)$")
_COMPANION = re.compile(r"(?:^|[._:])(?:scales?(?:_inv)?|zeros?|zero_points?|absmax|codebook|min|max|offset)$")
_COMPACT = re.compile(r"^(?:I8|U8|I16|U16|I32|F8_.*|F6_.*|F4)$")
"""Dtypes that quantised weights are stored in; also those of masks and indices."""


def naming(names: Iterable[str]) -> str:
    """Whose names these are: ``open_clip``, ``transformers CLIP``, ``a LoRA adapter`` and others, or ``unknown``."""
    plain = [_WRAPPERS.sub("", name) for name in names]
    if kind := adapter(plain):
        return f"a {kind[0]} adapter's"
    return next((known for known, pattern in _NAMINGS if any(pattern.match(name) for name in plain)), UNKNOWN)


def adapter(names: Iterable[str]) -> tuple[str, str] | None:
    """The kind of adapter (``LoRA``, ``IA3`` …) that a checkpoint holds, and a name that shows it; None for a model."""
    for name in names:
        for kind, pattern in _ADAPTERS:
            if pattern.search(name):
                return kind, name
    return None


def quantised(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[str, str] | None:
    """A quantised tensor and what belongs to it (its scale, say), by name; None where no weight is quantised.

    Args:
        tensors: name → (safetensors dtype, shape).
    """
    for name, (dtype, _) in tensors.items():
        if _IS_WEIGHT.search(name) and not _COMPACT.match(dtype):
            continue  # a matrix that someone called W_q, for queries
        if match := _PACKED.search(name):
            stem = name[: match.start()]
            other = next((n for n in tensors if n != name and stem and n.startswith(stem)), name)
            return (name, other) if _IS_WEIGHT.search(name) else (other, name)
    modules: dict[str, list[str]] = {}
    for name in tensors:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    for name, (dtype, shape) in tensors.items():
        if not _COMPACT.match(dtype) or len(shape) < 2:
            continue
        module = name.rpartition(".")[0]
        for other in (*modules[module], *modules.get(name, ())):
            if other != name and _COMPANION.search(other) and not other.endswith("logit_scale"):
                return name, other
    return None
