"""Labelled features that a head learns from: a few of each class (`Support`), or sums over all of them (`Moments`).

Both are additive: those of two sets of samples give those of their union, in any order, and a class can be taken out.
The samples of a class are ranked by a hash of seed and image. The support at k shots is the k lowest ranks, so fewer
shots are a subset of more, and the support of a union follows from the supports of its parts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tasks import randomness
from tasks.errors import UserError
from tasks.model.datasets import Dataset, digest


@dataclass(frozen=True)
class Chosen:
    """Samples of some data sets that were drawn, by class and then by rank; int64 arrays of shape (M,)."""

    classes: tuple[str, ...]
    """In alphabetical order; each has a sample."""
    data: np.ndarray
    """The data set that a sample is from."""
    rows: np.ndarray
    labels: np.ndarray
    """Index into ``classes``."""
    ranks: np.ndarray
    unlabelled: int
    """How many samples of the data sets have no class, and so take no part."""

    def __len__(self) -> int:
        return len(self.rows)


def draw(datasets: Sequence[Dataset], shots: int, seed: int) -> Chosen:
    """At most ``shots`` samples of each class of some data sets; equal images of a class count once.

    Classes are equal if their names are. The draw is a function of the seed and of the images' pixels alone.
    """
    names, number = _classes(datasets)
    drawn: dict[tuple[int, int], tuple[int, int]] = {}
    unlabelled = 0
    for d, data in enumerate(datasets):
        for row, label in enumerate(data.labels.tolist()):
            if label < 0:
                unlabelled += 1
                continue
            rank = randomness.derive(seed, "support", digest(data.images[row]).hex()) >> 1  # fits an int64
            drawn.setdefault((number[data.card.classes[label]], rank), (d, row))
    ordered = sorted(drawn.items())
    keep = places(np.array([label for (label, _), _ in ordered], dtype=np.int64)) < shots
    columns = np.array([(*place, *key) for key, place in ordered], dtype=np.int64).reshape(-1, 4)[keep]
    return Chosen(names, columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3], unlabelled)


def every(datasets: Sequence[Dataset]) -> Chosen:
    """All samples of some data sets that have a class, each as often as it is there; their ranks are 0."""
    names, number = _classes(datasets)
    columns = [
        (d, row, number[data.card.classes[label]], 0)
        for d, data in enumerate(datasets)
        for row, label in enumerate(data.labels.tolist())
        if label >= 0
    ]
    rows = np.array(columns, dtype=np.int64).reshape(-1, 4)
    unlabelled = sum(map(len, datasets)) - len(rows)
    return Chosen(names, rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3], unlabelled)


def of_classes(chosen: Chosen, classes: Collection[str]) -> Chosen:
    """The samples of some classes; a class that is not there has none."""
    names = tuple(name for name in chosen.classes if name in classes)
    number = np.array([names.index(name) if name in names else -1 for name in chosen.classes], dtype=np.int64)
    keep = number[chosen.labels] >= 0
    labels = number[chosen.labels[keep]]
    return Chosen(names, chosen.data[keep], chosen.rows[keep], labels, chosen.ranks[keep], chosen.unlabelled)


def _classes(datasets: Sequence[Dataset]) -> tuple[tuple[str, ...], dict[str, int]]:
    """The classes that have a sample, in alphabetical order, and their numbers."""
    names = {data.card.classes[label] for data in datasets for label in np.unique(data.labels) if label >= 0}
    ordered = tuple(sorted(names))
    return ordered, {name: i for i, name in enumerate(ordered)}


def places(labels: np.ndarray) -> np.ndarray:
    """Of each entry of sorted labels, int64 (M,): how many of its label come before it."""
    first = np.searchsorted(labels, labels, side="left")
    return np.arange(len(labels)) - first


@dataclass(frozen=True)
class Support:
    """Features of a few samples of each class, by class and then by rank."""

    classes: tuple[str, ...]
    """In alphabetical order; each has a sample."""
    features: torch.Tensor
    """Of unit length, float32, shape (M, D)."""
    labels: torch.Tensor
    """int64, shape (M,), sorted."""
    ranks: torch.Tensor
    """int64, shape (M,), rising within a class."""

    def counts(self) -> torch.Tensor:
        """Samples of each class, int64, shape (C,)."""
        return torch.bincount(self.labels, minlength=len(self.classes))

    def at(self, shots: int) -> Support:
        """The support at fewer shots: a class that has fewer gives all it has."""
        return self.where(torch.from_numpy(places(self.labels.numpy()) < shots))

    def where(self, keep: torch.Tensor) -> Support:
        """The samples for which the boolean ``keep``, shape (M,), is true; classes without a sample stay."""
        return Support(self.classes, self.features[keep], self.labels[keep], self.ranks[keep])

    def held_out(self) -> tuple[Support, Support]:
        """A part to fit on and a part to choose settings by: of each class a quarter, at least one sample of two."""
        count = self.counts()[self.labels]
        held = torch.where(count > 1, (count // 4).clamp(min=1), 0)
        last = torch.from_numpy(places(self.labels.numpy())) >= count - held
        return self.where(~last), self.where(last)

    def moments(self) -> Moments:
        """Counts and sums of these samples."""
        return moments(self.classes, self.features, self.labels)


@dataclass(frozen=True)
class Moments:
    """Counts and sums of features: all that a prototype or a Gaussian head needs of any number of samples."""

    classes: tuple[str, ...]
    """In alphabetical order; each has a sample."""
    counts: torch.Tensor
    """n_c, int64, shape (C,)."""
    sums: torch.Tensor
    """s_c = Σ f over the samples of a class, float64, shape (C, D)."""
    gram: torch.Tensor
    """Σ f fᵀ over all samples, float64, shape (D, D)."""


def moments(classes: Sequence[str], features: torch.Tensor, labels: torch.Tensor) -> Moments:
    """Counts and sums, in float64, of features, float (N, D), with labels, int64 (N,)."""
    exact = features.double()
    sums = torch.zeros(len(classes), features.shape[1], dtype=torch.float64).index_add_(0, labels, exact)
    return Moments(tuple(classes), torch.bincount(labels, minlength=len(classes)), sums, exact.T @ exact)


def plus(a: Moments, b: Moments) -> Moments:
    """The moments of both sets of samples (Federated Reconnaissance, arXiv 2109.00150: Σ n p / Σ n is a mean).

    Raises:
        UserError: features of different widths.
    """
    require_same_width(a.sums, b.sums)
    classes = tuple(sorted({*a.classes, *b.classes}))
    counts = torch.zeros(len(classes), dtype=torch.int64)
    sums = torch.zeros(len(classes), a.sums.shape[1], dtype=torch.float64)
    for one in (a, b):
        at = _numbers(one.classes, classes)
        counts[at] += one.counts
        sums[at] += one.sums
    return Moments(classes, counts, sums, a.gram + b.gram)


def minus(a: Moments, b: Moments) -> Moments:
    """The moments of ``a`` without the samples of ``b``, up to rounding; classes without a sample are left out.

    Raises:
        UserError: ``b`` has a class, or more samples of a class, than ``a``; or features of another width.
    """
    require_same_width(a.sums, b.sums)
    if absent := sorted(set(b.classes) - set(a.classes)):
        raise UserError(f"class {absent[0]!r} cannot be taken out: it is not there")
    at = _numbers(b.classes, a.classes)
    counts, sums = a.counts.clone(), a.sums.clone()
    counts[at] -= b.counts
    sums[at] -= b.sums
    if (counts < 0).any():
        name = a.classes[int(counts.argmin())]
        raise UserError(f"class {name!r}: more samples are to be taken out than there are")
    kept = torch.nonzero(counts).flatten()
    return Moments(tuple(a.classes[i] for i in kept.tolist()), counts[kept], sums[kept], a.gram - b.gram)


def reduced(data: Moments, classes: Collection[str]) -> Moments:
    """The moments without some classes, whose samples are not at hand. Counts and sums are exact.

    The Gram matrix holds the scatter within all classes together, and what a class has of it cannot be told. So the
    scatter that stays is an estimate: the share of the classes that stay in the degrees of freedom, n_c − 1 each. It is
    exact where that is none, and where all classes scatter alike. With the samples at hand, `minus` is exact.
    """
    kept = torch.tensor([i for i, name in enumerate(data.classes) if name not in classes], dtype=torch.int64)
    counts, sums = data.counts[kept], data.sums[kept]
    scatter = data.gram - data.sums.T @ (data.sums / data.counts[:, None])
    free, before = int((counts - 1).sum()), int((data.counts - 1).sum())
    gram = sums.T @ (sums / counts[:, None]) + scatter * (free / before if before else 0)
    return Moments(tuple(data.classes[i] for i in kept.tolist()), counts, sums, gram)


def join(a: Support, b: Support, shots: int) -> Support:
    """The support of both sets of samples at ``shots``; a sample that both have counts once.

    Where both were drawn at ``shots`` or more, it is what `draw` gives of all their samples.

    Raises:
        UserError: features of different widths.
    """
    require_same_width(a.features, b.features)
    classes = tuple(sorted({*a.classes, *b.classes}))
    labels = torch.cat([_numbers(one.classes, classes)[one.labels] for one in (a, b)]).numpy()
    ranks = torch.cat([a.ranks, b.ranks]).numpy()
    order = np.lexsort((ranks, labels))  # stable: of two equal samples, that of ``a`` comes first
    again = (np.diff(labels[order], prepend=-1) == 0) & (np.diff(ranks[order], prepend=-1) == 0)
    order = order[~again]
    at = torch.from_numpy(order[places(labels[order]) < shots])
    features = torch.cat([a.features, b.features])
    return Support(classes, features[at], torch.from_numpy(labels)[at], torch.from_numpy(ranks)[at])


def without(data: Support, classes: Collection[str]) -> Support:
    """The support without some classes, as though they had never come; one that is not there changes nothing."""
    kept = [i for i, name in enumerate(data.classes) if name not in classes]
    number = torch.full((len(data.classes),), -1)
    number[torch.tensor(kept, dtype=torch.int64)] = torch.arange(len(kept))
    keep = number[data.labels] >= 0
    names = tuple(data.classes[i] for i in kept)
    return Support(names, data.features[keep], number[data.labels[keep]], data.ranks[keep])


def require_same_width(a: torch.Tensor, b: torch.Tensor) -> None:
    """Features (…, D) of two sources must have the same width.

    Raises:
        UserError: they have not.
    """
    if a.shape[-1] != b.shape[-1]:
        raise UserError(
            f"features of {a.shape[-1]} and of {b.shape[-1]} dimensions cannot be used together; "
            "both must come from the same model"
        )


def _numbers(names: Sequence[str], among: Sequence[str]) -> torch.Tensor:
    place = {name: i for i, name in enumerate(among)}
    return torch.tensor([place[name] for name in names], dtype=torch.int64)
