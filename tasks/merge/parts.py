"""Parts that techniques are composed of: a sparsifier of each task vector × a consensus over them × a scale."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
from pydantic import Field, model_validator
from typing_extensions import override

from tasks.errors import UserError
from tasks.merge.sequential import Accumulator, Expert, State, Summary
from tasks.merge.technique import Density, Share, Technique, Weighted
from tasks.merge.types import Array, Scope, Unit

_DRAWS = 1 << 16
"""A random number is one of so many; keep probabilities are rounded to that, and divided by as rounded."""


class Scoped(Technique):
    """Over what entries are ranked: each tensor (mergekit), a whole tower (TIME) or the model (TIES's own code)."""

    scope: Scope = "tensor"

    @property
    def grouping(self) -> Scope:
        return self.scope


# --- Sparsifiers: τ → τ̂ -------------------------------------------------------------------------------------------


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


class Dropped(Sparsified):
    """Keep each entry with probability ``density``, divided by it."""

    random: ClassVar[bool] = True

    density: Density = 0.5

    def sparsify(self, x: Array, expert: Expert) -> Array:
        keep = max(1, round(self.density * _DRAWS))
        if keep < _DRAWS:
            x *= expert.random16() < keep
            x *= _DRAWS / keep
        return x


class MagnitudePruned(Sparsified):
    """Keep with a probability that rises with the rank of the magnitude inside its row, divided by it.

    From density − epsilon/2 for a row's smallest entry to density + epsilon/2 for its largest. A row is what the
    first axis counts; a vector is one row.
    """

    random: ClassVar[bool] = True
    unit: ClassVar[Unit] = "row"

    density: Density = 0.5
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
        # Magnitude and place in one integer: a plain sort ranks them, ties by place, faster than an argsort.
        keys = np.abs(x).view(np.uint32).astype(np.uint64)
        keys <<= np.uint64(32)
        keys |= np.arange(length, dtype=np.uint64, like=keys)
        keys.sort(axis=-1)
        place = keys.astype(np.uint32).astype(np.intp)
        probability = np.empty_like(x)
        np.put_along_axis(probability, place, np.broadcast_to(np.asarray(keep, like=x), x.shape), axis=-1)
        x *= expert.random16() < probability
        x *= _DRAWS
        x /= probability
        return x


# --- Consensus: τ̂_1, τ̂_2, … → τ ----------------------------------------------------------------------------------


class Summed(Sparsified, Weighted):
    """λ Σ w_k τ̂_k, divided by Σ w_k with normalize."""

    state: ClassVar[tuple[str, ...]] = ("sum",)

    scale: float = 1.0
    """λ."""

    def update(self, state: State, x: Array, expert: Expert) -> None:
        x = self.sparsify(x, expert)
        x *= expert.weight
        state["sum"] += x

    def finalise(self, state: State, summary: Summary) -> Array:
        return state["sum"] * (self.scale / summary.total if self.normalize else self.scale)

    def recursion(self, trained_from_running: bool) -> list[str]:
        new, running = self.weights(2)
        scale = abs(self.scale / (new + running) if self.normalize else self.scale)
        # τ_EMA ← λ(w_new τ_new + w_run τ_EMA), where τ_new holds τ_EMA too if training started there.
        gain = scale * (new + running if trained_from_running else running)
        if gain > 1:
            raise UserError(
                f"{self.name}: in an EMA recursion scale {self.scale:g} multiplies the running task vector by {gain:g} "
                "at every time step, so it diverges; use scale 0.5 or less (TIME uses 0.1), or linear"
            )
        if scale > 0.5 and gain > 0.5:
            return [f"{self.name}: in an EMA recursion with scale {self.scale:g} task vectors add up; TIME uses 0.1"]
        return []


class SignElected(Sparsified, Weighted):
    """λ times the mean of the entries w_k τ̂_k that have the sign of Σ w_k τ̂_k (+ where it is 0).

    The mean is over the weight of the agreeing experts; without normalize it is their sum. The state holds the sums
    and the weights of the positive and of the negative entries: all that the election needs.
    """

    state: ClassVar[tuple[str, ...]] = ("positive", "negative", "positive_weight", "negative_weight")

    normalize: bool = True
    scale: float = 1.0
    """λ."""

    @property
    def normalizes(self) -> bool:
        return False  # it divides by the agreeing weight, entry by entry

    def update(self, state: State, x: Array, expert: Expert) -> None:
        x = self.sparsify(x, expert)
        if expert.weight != 1:
            x *= expert.weight
        # Masks as floats: NumPy multiplies and adds those several times as fast as it selects.
        up = (x > 0).astype(np.float32)
        rising = x * up
        if self.normalize:
            down = (x < 0).astype(np.float32)
            if expert.weight != 1:
                up *= expert.weight
                down *= expert.weight
            state["positive_weight"] += up
            state["negative_weight"] += down
        state["positive"] += rising
        x -= rising
        state["negative"] += x

    @override
    def finalise(self, state: State, summary: Summary) -> Array:
        rises = state["positive"] + state["negative"] >= 0
        up, down = rises.astype(np.float32), (~rises).astype(np.float32)
        merged = state["positive"] * up
        merged += state["negative"] * down
        if self.normalize:
            up *= state["positive_weight"]
            down *= state["negative_weight"]
            up += down
            up += up == 0  # no expert has an entry here: 0 / 1
            merged /= up
        merged *= self.scale
        return merged


def weighted_mean(x: Array, weights: Array) -> Array:
    """Σ w_k x_k / Σ w_k, entry by entry; 0 where all weights are. Both are (experts, …), and ``weights`` is used up."""
    total: Array = weights.sum(axis=0)
    total[total == 0] = 1
    weights *= x
    mean: Array = weights.sum(axis=0)
    mean /= total
    return mean


class DecaysInRecursion(Technique):
    """Drops at random: applied to its own output again and again, what is not learnt anew decays."""

    def recursion(self, trained_from_running: bool) -> list[str]:
        return [
            *super().recursion(trained_from_running),
            f"{self.name}: in an EMA recursion it drops entries of its own output at every time step, so that early "
            "experts decay to noise; deploy: all, or another technique, keeps them",
        ]
