"""No order at all."""

from __future__ import annotations

from typing import ClassVar

from tasks import randomness
from tasks.stream.material import Material
from tasks.stream.ordering import Ordering


class Random(Ordering):
    """Classes in random order, a pure function of the seed."""

    name: ClassVar[str] = "random"
    source: ClassVar[str] = "TIME (arXiv 2412.06712)"

    def order(self, material: Material) -> list[int]:
        drawn: list[int] = randomness.generator(material.seed, "stream").permutation(len(material.pairs)).tolist()
        return drawn
