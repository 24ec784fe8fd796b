"""Randomness as a pure function of what it is for, so that a resumed run draws what an undisturbed one would."""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *purpose: str | int) -> int:
    """A 64-bit seed for one purpose, e.g. ``derive(seed, step, "batch", index)``.

    The parts are hashed with their types and lengths, so that no two purposes collide by concatenation.
    """
    digest = hashlib.sha256(repr((seed, *purpose)).encode())
    return int.from_bytes(digest.digest()[:8], "little")


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A NumPy generator (Philox, counter based: the same stream on every platform) for one purpose."""
    return np.random.Generator(np.random.Philox(key=derive(seed, *purpose)))
