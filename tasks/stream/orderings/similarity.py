"""A path along which each concept is near the last."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from tasks import randomness
from tasks.stream.material import LoadedBase, Material
from tasks.stream.ordering import Ordering

AT_ONCE = 64
"""Starts that are tried side by side."""


class Similarity(Ordering):
    """The greedy nearest-neighbour path over the base's text features of the captions, of the lowest total cosine
    distance over all starts. A class's feature is the mean of its captions'.
    """

    name: ClassVar[str] = "similarity"
    source: ClassVar[str] = "FoMo-in-Flux (arXiv 2408.14471), concept similarity"

    starts: int | None = Field(default=None, gt=0)
    """Random starts to try, by default every class: time grows with starts times classes squared."""

    def order(self, material: Material) -> list[int]:
        features = _features(material.base(), [pair.captions for pair in material.pairs])
        count = len(features)
        drawn = randomness.generator(material.seed, "stream").permutation(count)
        return shortest_path(1 - features @ features.T, np.sort(drawn[: self.starts or count]))


def _features(base: LoadedBase, captions: list[tuple[str, ...]]) -> np.ndarray:
    """One normalized feature for each class, float32, shape (classes, D)."""
    encoded = base.text_features([caption for of_class in captions for caption in of_class])
    starts = np.cumsum([0, *(len(of_class) for of_class in captions)])[:-1]
    sums = np.add.reduceat(encoded, starts, axis=0)
    means: np.ndarray = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return means


def shortest_path(distances: np.ndarray, starts: np.ndarray) -> list[int]:
    """The shortest of the paths that begin at ``starts`` and go on to the nearest place not visited.

    ``distances`` has shape (N, N). Of equals, places and paths alike, it is the first.
    """
    best: tuple[float, list[int]] | None = None
    for chunk in np.split(starts, range(AT_ONCE, len(starts), AT_ONCE)):
        rows = np.arange(len(chunk))
        visited = np.zeros((len(chunk), len(distances)), dtype=bool)
        path, length = [chunk], np.zeros(len(chunk))
        for _ in range(len(distances) - 1):
            visited[rows, path[-1]] = True
            ahead = np.where(visited, np.inf, distances[path[-1]])
            path.append(ahead.argmin(axis=1))
            length += ahead[rows, path[-1]]
        first = int(length.argmin())
        if best is None or length[first] < best[0]:
            best = float(length[first]), [int(places[first]) for places in path]
    assert best is not None
    return best[1]
