"""Buffers: tensors of a model that are no weights, by their names. No technique may add, scale or drop them.

Moments and counts of data are *averaged* (`tasks.merge.statistics`). What is computed from one model's own weights,
rounding or configuration is *derived*: it has no mean, so a copy is right only where all models have the same one.
"""

from __future__ import annotations

import re
from collections.abc import Collection

AVERAGED = re.compile(
    r"(?:^|[./])(?:(?:running|moving)_(?:mean|var|variance|std)|num_batches_tracked"  # BatchNorm, TensorFlow's too
    r"|batch_stats[./](?:.+[./])?(?:mean|var)"  # Flax's
    r"|_?(?:ema_)?cluster_size|embed_avg|_?ema_w|cluster_usage)$"  # vector quantisation
)
COUNTS = re.compile(r"(?:^|[./])(?:num_batches_tracked|_?(?:ema_)?cluster_size|cluster_usage)$")
"""Of those, what may be stored as integers."""

ROTARY = re.compile(r"(?:^|[./])(?:(?:original_)?inv_freq|(?:cos|sin)_cached|freqs_(?:cos|sin))$")
"""Frequencies of rotary position embeddings (transformers, timm, EVA), and their tables of cosines and sines."""

_SPECTRAL = (
    (re.compile(r"^(.+)_[uv]$"), "{}_orig"),
    (re.compile(r"^(.+\.)\d+\._[uv]$"), "{}original"),
)
"""A vector of PyTorch's spectral norm, old and new → the weight that it belongs to."""
_OBSERVED = {
    "min_val": "max_val", "max_val": "min_val", "min_vals": "max_vals", "max_vals": "min_vals", "histogram": "min_val",
    "scale": "zero_point", "zero_point": "scale", "eps": "min_val",
}  # fmt: skip
"""A buffer of PyTorch's observers and fake quantisation → another one, without which the name says nothing."""


def derived(name: str, names: Collection[str]) -> str | None:
    """What a tensor of a model with these ``names`` is derived from, and the way out; None for all others."""
    if ROTARY.search(name):
        return (
            "of a rotary position embedding, which is computed from a model's configuration (its base and scaling). "
            "Give models of one configuration"
        )
    for pattern, weight in _SPECTRAL:
        if (match := pattern.search(name)) and weight.format(match[1]) in names:
            return (
                "a vector of spectral norm, which belongs to one model's weight. Fold it into the weight "
                "(torch.nn.utils.remove_spectral_norm, or parametrize.remove_parametrizations) and merge what comes out"
            )
    module, dot, last = name.rpartition(".")
    if last in _OBSERVED and f"{module}{dot}{_OBSERVED[last]}" in names:
        return (
            "of an observer or of fake quantisation, which belongs to one model's rounding. Merge the models as they "
            "were before quantisation, and calibrate the merged one"
        )
    return None
