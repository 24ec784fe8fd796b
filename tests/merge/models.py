"""Small random models for the tests of merging."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.merge import Statistics, available

Model = dict[str, np.ndarray]

SHAPES: dict[str, tuple[int, ...]] = {
    "logit_scale": (),
    "visual.conv1.weight": (6, 3, 4, 4),
    "visual.transformer.resblocks.0.mlp.weight": (24, 8),
    "visual.transformer.resblocks.1.mlp.weight": (24, 8),
    "visual.ln_post.bias": (24,),
    "token_embedding.weight": (40, 8),
    "transformer.resblocks.0.mlp.weight": (8, 24),
    "transformer.resblocks.1.mlp.weight": (8, 8),
    "text_projection": (8, 5),
}


def model(seed: int, *, shift: float = 1.0) -> Model:
    """Float32 weights; ``shift`` scales what the seed adds to weights that all models share."""
    shared, own = np.random.default_rng(0), np.random.default_rng([1, seed])
    return {
        name: np.asarray(shared.standard_normal(shape) + shift * own.standard_normal(shape), np.float32)
        for name, shape in SHAPES.items()
    }


def base() -> Model:
    return model(0, shift=0.0)


def experts(count: int, *, shift: float = 0.5, first: int = 1) -> list[Model]:
    return [model(first + i, shift=shift) for i in range(count)]


def same(a: Model, b: Model) -> bool:
    """Equal bit for bit."""
    return a.keys() == b.keys() and all(x.tobytes() == b[name].tobytes() for name, x in a.items())


def close(a: Model, b: Model, tolerance: float = 2e-5) -> None:
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=tolerance, atol=tolerance, err_msg=name)


def statistics_of(model: Model, samples: int = 10) -> Statistics:
    """Random statistics of data that a model could have seen: a function of its tensors alone.

    Linear maps have Gram matrices, an 8 × 8 one has its diagonal alone, and embeddings have counts.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, weight in model.items():
        if weight.dtype.kind != "f":
            continue
        seed = int.from_bytes(hashlib.sha256(weight.astype("f4").tobytes()).digest()[:8], "little")
        random = np.random.default_rng(seed)
        arrays[f"fisher/{name}"] = np.asarray(np.square(random.standard_normal(weight.shape)), "f4")
        if weight.ndim < 2:
            continue
        if name.startswith(("token_embedding", "lm_head")):
            arrays[f"gram/{name}"] = random.integers(0, 9, len(weight)).astype("f4")
            continue
        inputs = len(weight) if name == "text_projection" else weight[0].size
        x = random.standard_normal((4 * inputs, inputs))
        gram = (x.T @ x).astype("f4")
        arrays[f"gram/{name}"] = gram if weight.shape != (8, 8) else np.diagonal(gram).copy()
    return Statistics(arrays, samples, "expected", "random")


def seen(technique: str, models: Sequence[Model]) -> dict[str, Any]:
    """The argument ``statistics`` of a merge, where the technique needs any."""
    if not available()[technique].statistics:
        return {}
    return {"statistics": [statistics_of(model) for model in models]}
