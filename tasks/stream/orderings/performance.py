"""By what the base can do already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import ClassVar

import numpy as np

from tasks.errors import UserError
from tasks.prepare.source import Example, Reading
from tasks.stream.material import BATCH, LoadedBase, Material
from tasks.stream.ordering import Ordering


class Performance(Ordering):
    """Easy to hard: by the base's zero-shot accuracy on each class's images among the classes of its data set."""

    name: ClassVar[str] = "performance"
    source: ClassVar[str] = "FoMo-in-Flux (arXiv 2408.14471), performance"

    def order(self, material: Material) -> list[int]:
        accuracy: dict[tuple[str, str], float] = {}
        for one in material.data_sets:
            with material.readings(one) as read:
                readings = [reading for _, reading in read]
                accuracy |= {(one.name, name): value for name, value in by_class(material.base(), readings).items()}
        pairs = material.pairs
        return sorted(range(len(pairs)), key=lambda i: -accuracy[pairs[i].data_set, pairs[i].name])


def by_class(base: LoadedBase, readings: list[Reading]) -> dict[str, float]:
    """Zero-shot top-1 accuracy of each class that occurs, with the first reading's primer prompt."""
    names = sorted({name for reading in readings for name in reading.classes})
    classifier = base.text_features([readings[0].prompt.replace("{}", name) for name in names])
    right: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for chunk in _chunks(example for reading in readings for example in reading.examples):
        nearest = (base.image_features(np.stack([e.image for e in chunk])) @ classifier.T).argmax(axis=1)
        for example, guess in zip(chunk, nearest, strict=True):
            if example.class_name is None:
                raise UserError(f"--order performance: the sample {example.id} has no class")
            seen[example.class_name] += 1
            right[example.class_name] += names[guess] == example.class_name
    return {name: right[name] / seen[name] for name in names}


def _chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    examples = iter(examples)
    while chunk := list(islice(examples, BATCH)):
        yield chunk
