"""Which samples are held out of training, so that a coefficient can be chosen on them."""

from __future__ import annotations

import hashlib

import numpy as np

from tasks import randomness
from tasks.model.datasets import ImageArray, digest


def held_out(images: ImageArray, share: float, seed: int) -> np.ndarray:
    """For each image whether it is held out: bool, shape (N,); about ``share`` of them are.

    It depends on seed and pixels alone: equal images are on the same side in every pool and at every time step.

    Args:
        images: uint8, each of shape (H, W, 3), as prepared.
        share: from 0 (none) to below 1.
    """
    key = randomness.derive(seed, "holdout").to_bytes(8, "little")
    bound = int(share * 2**64)

    def rank(image: np.ndarray) -> int:
        return int.from_bytes(hashlib.blake2b(digest(image), digest_size=8, key=key).digest(), "little")

    return np.array([rank(image) < bound for image in images], dtype=bool)
