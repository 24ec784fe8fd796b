"""The first part of a technique: what it keeps of each task vector, τ → τ̂.

A technique of this family is a sparsifier × a combination (`tasks.merge.combining`) × a scale.
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from tasks.merge.sequential import Accumulator, Expert
from tasks.merge.technique import Density, Share, Technique
from tasks.merge.types import Array, Scope, Unit

_STEPS = 5
"""Time steps after which a warning says how much is left."""
_DRAWS = 1 << 16
"""A random number is one of so many; keep probabilities are rounded to that, and divided by as rounded."""


class Scoped(Technique):
    """Over what entries are ranked: each tensor (mergekit), a whole tower (TIME) or the model (TIES's own code)."""

    scope: Scope = "tensor"

    @property
    def grouping(self) -> Scope:
        return self.scope


class Sparsified(Accumulator):
    """Takes τ as it is."""

    def sparsify(self, x: Array, expert: Expert) -> Array:  # noqa: ARG002
        """τ̂ of one expert; may change ``x``."""
        return x


class Trimmed(Sparsified, Scoped):
    """Keep the largest ``density`` of the magnitudes (entries equal to the last kept one included)."""

    density: Density = 0.2

    def ranks(self, size: int) -> tuple[int, ...]:
        return (max(1, int(self.density * size)),) if self.density < 1 else ()

    def sparsify(self, x: Array, expert: Expert) -> Array:
        if expert.thresholds:
            x *= np.abs(x) >= expert.thresholds[0]
        return x


class Banded(Sparsified, Scoped):
    """Drop the largest ``gamma`` of the magnitudes, and the smallest so that ``density`` remains.

    Where both cannot be, fewer of the largest are dropped. Entries equal to the band's ends are kept.
    """

    density: Density = 0.9
    gamma: Share = 0.01

    def ranks(self, size: int) -> tuple[int, ...]:
        kept = max(1, int(self.density * size))
        dropped = min(int(self.gamma * size), size - kept)
        return (dropped + 1, dropped + kept) if self.density < 1 else ()

    def sparsify(self, x: Array, expert: Expert) -> Array:
        if expert.thresholds:
            high, low = expert.thresholds
            magnitude = np.abs(x)
            x *= (magnitude >= low) & (magnitude <= high)
        return x


class DroppedAtRandom(Sparsified):
    """Keep ``density`` of the entries, by chance, and scale them up.

    Applied to its own output again and again, what is not learnt anew decays.
    """

    random: ClassVar[bool] = True

    density: Density = 0.5

    def recursion(self, trained_from_running: bool) -> list[str]:
        warnings = super().recursion(trained_from_running)
        if self.density == 1:
            return warnings
        # An expert that started from the running model holds its entries too, and keeps them in draws of its own.
        left = (1 - (1 - self.density) ** 2 if trained_from_running else self.density) ** _STEPS
        return [
            *warnings,
            f"{self.name}: in an EMA recursion it drops entries of its own output at every time step: after {_STEPS} "
            f"of them {left:.1%} of the entries of what an expert learned are left, scaled up; deploy: all with "
            "init: zs or ft, or another technique, keeps them",
        ]


class Dropped(DroppedAtRandom):
    """Keep each entry with probability ``density``, divided by it."""

    def sparsify(self, x: Array, expert: Expert) -> Array:
        keep = max(1, round(self.density * _DRAWS))
        if keep < _DRAWS:
            x *= expert.random16() < keep
            x *= _DRAWS / keep
        return x


class MagnitudePruned(DroppedAtRandom):
    """Keep with a probability that rises with the rank of the magnitude inside its row, divided by it.

    From density − epsilon/2 for a row's smallest entry to density + epsilon/2 for its largest. A row is what the
    first axis counts; a vector is one row.
    """

    unit: ClassVar[Unit] = "row"

    epsilon: float = Field(default=0.15, ge=0, lt=1)

    @model_validator(mode="after")
    def _probabilities(self) -> Self:
        if self.density - self.epsilon / 2 <= 0 or self.density + self.epsilon / 2 > 1:
            raise ValueError(
                f"density ± epsilon/2 are probabilities, got {self.density - self.epsilon / 2:g} and "
                f"{self.density + self.epsilon / 2:g}; choose a smaller epsilon"
            )
        return self

    def sparsify(self, x: Array, expert: Expert) -> Array:
        length = x.shape[-1]
        low, step = self.density - self.epsilon / 2, self.epsilon / max(1, length - 1)
        by_rank = (low + step * np.arange(length)) if length > 1 else np.array([self.density])
        keep = np.maximum(1, np.round(by_rank * _DRAWS)).astype(np.float32)
        probability = _by_rank(x, keep)
        x *= expert.random16() < probability
        x *= _DRAWS
        x /= probability
        return x


def _by_rank(x: Array, values: NDArray[np.float32]) -> Array:
    """In each row (the last axis), the i-th value where the i-th smallest magnitude is; of equal ones the first first.

    Magnitude and place are one integer: a plain sort ranks them, faster than an argsort.
    """
    length = x.shape[-1]
    rows = x.size // max(1, length)
    keys = np.empty((rows, length), np.uint64, like=x)
    halves = keys.view(np.uint32).reshape(rows, length, 2)  # the low half comes first, as in the files' byte order
    halves[..., 1] = np.abs(x).astype(np.float32, copy=False).view(np.uint32).reshape(rows, length)
    halves[..., 0] = np.arange(x.size, dtype=np.uint32, like=x).reshape(rows, length)
    keys.sort(axis=-1)
    keys &= np.uint64(0xFFFFFFFF)
    result = np.empty(x.size, x.dtype, like=x)
    each_row = np.broadcast_to(np.asarray(values, x.dtype, like=x), (rows, length))
    result[keys.view(np.int64).reshape(-1)] = each_row.reshape(-1)
    return result.reshape(x.shape)
