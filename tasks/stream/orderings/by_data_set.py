"""Data sets one after another: as they are given, or by date."""

from __future__ import annotations

from typing import ClassVar

from tasks import randomness
from tasks.errors import UserError
from tasks.stream.material import Material
from tasks.stream.ordering import Ordering


class DataSets(Ordering):
    """One data set after another, as they are given; classes in random order within each."""

    name: ClassVar[str] = "dataset"
    source: ClassVar[str] = "FoMo-in-Flux (arXiv 2408.14471), dataset-incremental"

    def order(self, material: Material) -> list[int]:
        return _one_after_another(material, [one.name for one in material.data_sets])


class Date(Ordering):
    """One data set after another, by date of release; classes in random order within each."""

    name: ClassVar[str] = "date"
    source: ClassVar[str] = "FoMo-in-Flux (arXiv 2408.14471), time-incremental"

    def order(self, material: Material) -> list[int]:
        undated = [one.name for one in material.data_sets if not one.date]
        if undated:
            raise UserError(
                f"--order date: the data set {undated[0]!r} has no date; give each a line such as date: 2011"
            )
        return _one_after_another(
            material, [one.name for one in sorted(material.data_sets, key=lambda o: o.date or "")]
        )


def _one_after_another(material: Material, names: list[str]) -> list[int]:
    place = {name: i for i, name in enumerate(names)}
    shuffled = randomness.generator(material.seed, "stream").permutation(len(material.pairs)).tolist()
    return sorted(shuffled, key=lambda i: place[material.pairs[i].data_set])
