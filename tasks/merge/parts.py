"""Parts that techniques are composed of: a sparsifier of each task vector × a consensus over them × a scale."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
from pydantic import Field, model_validator
from typing_extensions import override

from tasks.errors import UserError
from tasks.merge.sequential import Accumulator, Expert, State, Summary
from tasks.merge.technique import Density, Lines, Share, Technique, Weighted
from tasks.merge.types import Array, Scope, Unit

_STEPS = 5
"""Time steps after which a warning says how much is left."""
_ROUNDING = 1e-9
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
        # Magnitude and place in one integer: a plain sort ranks them, ties by place, faster than an argsort.
        keys = np.abs(x).astype(np.float32, copy=False).view(np.uint32).astype(np.uint64)
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
        total = new + running if self.normalize else 1.0
        return _growth(self, self.scale, new / total, running / total, trained_from_running)


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

    def recursion(self, trained_from_running: bool) -> list[str]:
        new, running = self.weights(2)
        if self.normalize:
            # A mean is no longer than what it is of; and an entry that the running model alone has stays whole.
            return _growth(self, self.scale, 0.0, 1.0, trained_from_running)
        return _growth(self, self.scale, new, running, trained_from_running)

    def update(self, state: State, x: Array, expert: Expert) -> None:
        x = self.sparsify(x, expert)
        if expert.weight != 1:
            x *= expert.weight
        # Masks as floats: NumPy multiplies and adds those several times as fast as it selects.
        up = (x > 0).astype(x.dtype)
        rising = x * up
        if self.normalize:
            down = (x < 0).astype(x.dtype)
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
        of = state["positive"].dtype
        up, down = rises.astype(of), (~rises).astype(of)
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


# --- In an EMA recursion ------------------------------------------------------------------------------------------


def _growth(technique: Technique, scale: float, new: float, running: float, trained_from_running: bool) -> list[str]:
    """Whether the recursion τ_EMA ← λ (new τ_new + running τ_EMA), which λ = ``scale`` makes, stays bounded.

    Where training starts from the running model, τ_new is τ_EMA plus what was learned. Trimmed entries only make it
    shorter.

    Raises:
        UserError: it diverges.
    """
    reach, cause = abs(scale), f"scale {scale:g}"
    lines = technique.lines or Lines(alpha=1, beta=0)
    if lines.alpha == "norm":
        if trained_from_running and lines.beta > 0:
            raise UserError(
                f"{technique.name}: LiNeS with alpha: norm keeps the first block of the running task vector and makes "
                "the deeper ones longer at every time step of an EMA recursion with init: ema, so it diverges; give "
                "alpha a number"
            )
        return []
    reach *= max(abs(lines.alpha), abs(lines.alpha + lines.beta))
    cause += " with LiNeS" if technique.lines else ""
    gain = reach * (new + running if trained_from_running else running)
    if gain > 1 + _ROUNDING:
        raise UserError(
            f"{technique.name}: in an EMA recursion {cause} multiplies the running task vector by {gain:.3g} at every "
            f"time step, so it diverges; use a scale of at most {abs(scale) / gain:.3g}, or linear"
        )
    if trained_from_running or reach * (new + running) <= 1 + _ROUNDING:
        return []
    grows = (
        "without bound" if gain > 1 - _ROUNDING else f"up to {reach * new / (1 - gain):.3g} times an expert's length"
    )
    return [
        f"{technique.name}: in an EMA recursion with {cause} task vectors add up: the running one grows {grows}; a "
        f"scale of at most {abs(scale) / (reach * (new + running)):.3g} keeps it as long as the experts'"
    ]
