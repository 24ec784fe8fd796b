"""Images that are trained on and tested too: the same pixels as prepared, or nearly the same (encoded once more).

What the model sees is compared: decoded, upright, at the model's size. So a copy is found in whatever file it comes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.errors import UserError
from tasks.model.datasets import Dataset, digest
from tasks.params import Params
from tasks.progress import Progress

NEARLY_ALL = 0.1
"""Share of a test set from which on nearly equal images are no coincidence."""
_GRID = 8
"""Fields of a thumbnail in each direction."""
_BRIGHTNESS, _FIELDS, _PIXELS, _CORRELATION = 2.0, 4.0, 8.0, 0.98
"""Encoding an image once more (JPEG, quality 75 and up) changes its mean, the fields of its thumbnail and its pixels by
less than this on average (of 255), and leaves pixels that correlate at least so much."""
_AT_ONCE = 512


@dataclass(frozen=True)
class Overlap:
    """What an arrival has in common with a test set."""

    test_set: str
    equal: int
    """Test images that the arrival has pixel by pixel."""
    similar: int
    """Further test images that it has nearly so."""
    total: int
    """Images of the test set."""
    example: str
    """A pair, by the ids of its images."""

    def told(self, arrival: str) -> str:
        """A sentence for people."""
        counts = {"equal to": self.equal, "similar to": self.similar}
        parts = " and ".join(f"{count} {how} images" for how, count in counts.items() if count)
        return (
            f"of the {self.total} images of the test set {self.test_set!r}, {parts} of arrival {arrival!r} "
            f"({self.example})"
        )

    @property
    def facts(self) -> dict[str, int | str]:
        """What a manifest says of it."""
        return {"equal": self.equal, "similar": self.similar, "total": self.total, "example": self.example}

    @property
    def is_leak(self) -> bool:
        """Whether the test set's score would say nothing: an equal image, or more similar ones than by coincidence."""
        return self.equal > 0 or self.similar >= NEARLY_ALL * self.total


def find(arrival: Dataset, tests: Sequence[Dataset]) -> list[Overlap]:
    """The overlap of an arrival with each test set that has some."""
    trained = _Looks.of(arrival)
    return [one for test in tests if (one := _between(arrival, trained, test)) is not None]


def require_none(name: str, overlaps: Sequence[Overlap]) -> None:
    """Refuse to train on test images.

    Raises:
        UserError: an overlap is a leak; names the test set, a pair of images, and the way out.
    """
    leaks = [one for one in overlaps if one.is_leak]
    if leaks:
        told = "; ".join(
            f"{one.equal + one.similar} of {one.total} images of the test set {one.test_set!r} ({one.example})"
            for one in leaks[:3]
        )
        raise UserError(
            f"arrival {name!r} holds test images: {told}. What is tested must not be trained on: take them out, name "
            "other parts (#train, #test), or set evaluate.allow_overlap: true if that is meant"
        )


def check(arrival: Path, evaluation: Path, params: Params, progress: Progress) -> list[Overlap]:
    """Look for test images in what a step trains on, once both are prepared in these folders; says what it finds.

    Nothing where an expert arrived, or where there is nothing to train on.

    Raises:
        UserError: there is a leak, and ``evaluate.allow_overlap`` is false.
    """
    if params.arrival is None or not (arrival / "dataset.json").exists():
        return []
    tests = [Dataset(evaluation / one.name) for one in params.evaluate.sets]
    overlaps = find(Dataset(arrival), tests)
    if not params.evaluate.allow_overlap:
        require_none(params.arrival.name, overlaps)
    for one in overlaps:
        progress("note:", 1, 1, one.told(params.arrival.name))
    return overlaps


@dataclass(frozen=True)
class _Looks:
    """What images look like, in their order."""

    digests: Mapping[bytes, int]
    """Hash → the first image that has it."""
    thumbnails: NDArray[np.float32]
    """(N, fields), mean colours."""
    brightness: NDArray[np.float32]

    @classmethod
    def of(cls, data: Dataset) -> _Looks:
        digests: dict[bytes, int] = {}
        thumbnails = np.empty((len(data), 3 * _GRID * _GRID), np.float32)
        for start in range(0, len(data), _AT_ONCE):
            images = np.asarray(data.images[start : start + _AT_ONCE])
            thumbnails[start : start + len(images)] = _fields(images)
            for i, image in enumerate(images, start):
                digests.setdefault(digest(image), i)
        return cls(digests, thumbnails, thumbnails.mean(axis=1))


def _fields(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean colours of the fields of a grid, (N, fields), of images (N, H, W, 3)."""
    edges = [np.linspace(0, size, min(_GRID, size), endpoint=False).astype(int) for size in images.shape[1:3]]
    sums = np.add.reduceat(np.add.reduceat(images.astype(np.float32), edges[0], axis=1), edges[1], axis=2)
    sizes = [np.diff([*edge, size]) for edge, size in zip(edges, images.shape[1:3], strict=True)]
    means = (sums / np.outer(*sizes)[None, :, :, None]).reshape(len(images), -1)
    result = np.zeros((len(images), 3 * _GRID * _GRID), np.float32)
    result[:, : means.shape[1]] = means
    return result


def _between(arrival: Dataset, trained: _Looks, test: Dataset) -> Overlap | None:
    tested = _Looks.of(test)
    equal = {i: trained.digests[key] for key, i in tested.digests.items() if key in trained.digests}
    similar = _similar(arrival, trained, test, tested, set(equal))
    pairs = {**equal, **similar}
    if not pairs:
        return None
    first, copy = next(iter(pairs.items()))
    word = "is" if first in equal else "looks like"
    return Overlap(test.card.name, len(equal), len(similar), len(test), f"{arrival.ids[copy]} {word} {test.ids[first]}")


def _similar(arrival: Dataset, trained: _Looks, test: Dataset, tested: _Looks, known: set[int]) -> dict[int, int]:
    """Test image → an image of the arrival that is nearly the same. Only images of like brightness are compared."""
    order = np.argsort(trained.brightness, kind="stable")
    brightness = trained.brightness[order]
    rest = np.array([i for i in np.argsort(tested.brightness, kind="stable") if i not in known], dtype=int)
    pairs: dict[int, int] = {}
    for start in range(0, len(rest), _AT_ONCE):
        tests = rest[start : start + _AT_ONCE]
        low, high = tested.brightness[tests[0]] - _BRIGHTNESS, tested.brightness[tests[-1]] + _BRIGHTNESS
        for begin in range(int(np.searchsorted(brightness, low)), int(np.searchsorted(brightness, high)), _AT_ONCE):
            candidates = order[begin : min(begin + _AT_ONCE, int(np.searchsorted(brightness, high)))]
            a, b = tested.thumbnails[tests], trained.thumbnails[candidates]
            # The mean square is at least the square of the mean difference, so it misses none of those.
            squares = (a**2).mean(axis=1)[:, None] + (b**2).mean(axis=1)[None, :] - 2 * (a @ b.T) / a.shape[1]
            for i, j in zip(*np.nonzero(squares < (2 * _FIELDS) ** 2), strict=True):
                one, other = int(tests[i]), int(candidates[j])
                if one not in pairs and _nearly_equal(test.images[one], arrival.images[other]):
                    pairs[one] = other
    return pairs


def _nearly_equal(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    x, y = a.astype(np.float32).ravel(), b.astype(np.float32).ravel()
    if np.abs(x - y).mean() > _PIXELS:
        return False
    x, y = x - x.mean(), y - y.mean()
    lengths = float(np.linalg.norm(x) * np.linalg.norm(y))
    return lengths > 0 and float(x @ y) / lengths >= _CORRELATION
