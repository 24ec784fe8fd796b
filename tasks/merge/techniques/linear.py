"""Weight averaging."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import model_validator
from typing_extensions import override

from tasks.merge.sequential import Accumulator, Expert, State, Summary
from tasks.merge.technique import Weighted
from tasks.merge.types import Array

Recency = Literal["uniform", "linear", "sqrt", "square", "cube", "x5", "x10", "exponential", "log"]

_RECENCY: dict[str, Callable[[int], float]] = {
    "uniform": lambda _: 1.0,
    "linear": float,
    "sqrt": math.sqrt,
    "square": lambda i: float(i) ** 2,
    "cube": lambda i: float(i) ** 3,
    "x5": lambda i: float(i) ** 5,
    "x10": lambda i: float(i) ** 10,
    "exponential": lambda i: math.ldexp(1.0, i - 1),
    "log": lambda i: math.log(i + 1),  # i + 1, so that the oldest counts too
}


class Linear(Weighted, Accumulator):
    """Σ w_k θ_k / Σ w_k, kept as a running mean, so that copies of one model merge to it bit for bit.

    Without normalize, Σ w_k θ_k.
    """

    name: ClassVar[str] = "linear"
    source: ClassVar[str] = (
        "Wortsman et al. 2022, Model soups (arXiv 2203.05482); recency weights: TIME, arXiv 2412.06712"
    )
    relative: ClassVar[bool] = False
    state: ClassVar[tuple[str, ...]] = ("mean",)

    normalize: bool = True
    recency: Recency = "uniform"
    """Weights by order of arrival, i = 1 the oldest: i, √i, i², i³, i⁵, i¹⁰, 2^(i−1) or log(i+1)."""
    reverse: bool = False
    """The oldest weighs most."""

    @model_validator(mode="after")
    def _one_weighting(self) -> Linear:
        if self.weight is not None and self.recency != "uniform":
            raise ValueError("weight and recency both set the weights; give one")
        return self

    @property
    def sequential(self) -> bool:
        # Reversed, the weights of earlier experts depend on how many follow.
        return super().sequential and (not self.reverse or self.recency == "uniform")

    def weights(self, count: int) -> list[float]:
        if self.weight is not None:
            return super().weights(count)
        weights = [_RECENCY[self.recency](i) for i in range(1, count + 1)]
        return weights[::-1] if self.reverse else weights

    @override
    def update(self, state: State, x: Array, expert: Expert) -> None:
        if self.normalize:
            x -= state["mean"]
            x *= expert.share
        else:
            x *= expert.weight
        state["mean"] += x

    @override
    def finalise(self, state: State, summary: Summary) -> Array:
        return state["mean"]
