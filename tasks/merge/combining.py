"""The second part of a technique: how the task vectors τ̂_1, τ̂_2, … become one, and whether that recursion diverges."""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override

from tasks.errors import UserError
from tasks.merge.sequential import Expert, State, Summary
from tasks.merge.sparsifiers import Sparsified
from tasks.merge.technique import Lines, Technique, Weighted
from tasks.merge.types import Array

_ROUNDING = 1e-9


class Summed(Sparsified, Weighted):
    """λ Σ w_k τ̂_k, divided by Σ w_k with normalize."""

    state: ClassVar[tuple[str, ...]] = ("sum",)
    output_settings: ClassVar[frozenset[str]] = frozenset({"scale"})

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
    output_settings: ClassVar[frozenset[str]] = frozenset({"scale"})

    normalize: bool = True
    scale: float = 1.0
    """λ."""

    @property
    def normalizes(self) -> bool:
        return False  # it divides by the agreeing weight, entry by entry

    def recursion(self, trained_from_running: bool) -> list[str]:
        new, running = self.weights(2)
        if self.normalize:
            # A mean is no longer than what it is of; and an entry that the running model alone has stays as it is.
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
