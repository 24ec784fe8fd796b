"""Spherical interpolation of two models."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

from pydantic import model_validator
from typing_extensions import override

from tasks.errors import UserError
from tasks.merge.stream import Piece, Window
from tasks.merge.technique import Share, Technique
from tasks.merge.types import Array

_PARALLEL = 0.9995


class Slerp(Technique):
    """sin((1−t)Ω)/sinΩ·θ_1 + sin(tΩ)/sinΩ·θ_2 per tensor, Ω the angle between the raw weights of the two.

    Linear where |cos Ω| > 0.9995, and where a tensor is all zero.
    """

    name: ClassVar[str] = "slerp"
    source: ClassVar[str] = "Shoemake 1985; on weights as in mergekit and TIME (arXiv 2412.06712)"
    models: ClassVar[tuple[int, int | None]] = (2, 2)
    relative: ClassVar[bool] = False
    weighted: ClassVar[bool] = True

    weighing: ClassVar[frozenset[str]] = frozenset({"t", "weight"})

    t: Share = 0.5
    """From the first model (0) to the second (1)."""
    weight: Share | None = None
    """The share of the first model, that is 1 − t: what other techniques call weight."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Slerp:
        if self.weight is not None and "t" in self.model_fields_set:
            raise ValueError("t and weight say the same (weight = 1 - t); give one")
        return self

    @override
    def weights(self, count: int) -> list[float]:
        first = 1 - self.t if self.weight is None else self.weight
        return [first, 1 - first]

    @classmethod
    def by_part(cls) -> tuple[str, ...]:
        return ("t", "weight")

    @override
    def plan(self, window: Window) -> Callable[[Piece], Array]:
        factors: dict[str, tuple[float, float]] = {}
        for group, gram in window.gram().items():
            first, second = window.weights_of(window.first[group])
            if not math.isclose(first + second, 1):
                raise UserError(f"slerp: the weights are {first:g} and {second:g}; they should sum to 1")
            norms = math.sqrt(gram[0, 0] * gram[1, 1])
            cosine = min(1.0, max(-1.0, gram[0, 1] / norms)) if norms else 1.0
            if abs(cosine) > _PARALLEL:
                factors[group] = (first, second)
            else:
                angle = math.acos(cosine)
                factors[group] = (math.sin(first * angle) / math.sin(angle), math.sin(second * angle) / math.sin(angle))

        def merged(piece: Piece) -> Array:
            a, b = factors[piece.tensor.group]
            return piece.vector(0) * a + piece.vector(1) * b

        return merged
