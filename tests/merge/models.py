"""Small random models for the tests of merging."""

from __future__ import annotations

import numpy as np

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
