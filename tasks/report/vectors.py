"""Geometry of task vectors τ_t = θ_t − θ_0: norms, angles and distances of a timeline's experts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.merge.reading import read
from tasks.model import coded
from tasks.model.dtypes import FLOATS
from tasks.model.sources import FileSource, TensorSource
from tasks.progress import Progress, silent
from tasks.record import let_go
from tasks.report.records import Record, Records
from tasks.storage import dvc_config
from tasks.storage.cache import Cache

_HELD = 1 << 21
"""Entries of all models together that are held at a time: 16 MB of float64."""


@dataclass(frozen=True)
class Geometry:
    """The task vectors of the experts of some steps, T of them."""

    steps: tuple[int, ...]
    arrivals: tuple[str, ...]
    products: NDArray[np.float64]
    """Inner products, shape (T, T)."""

    @cached_property
    def norms(self) -> NDArray[np.float64]:
        """‖τ_t‖, shape (T,)."""
        return np.sqrt(np.diag(self.products))

    @cached_property
    def cosines(self) -> NDArray[np.float64]:
        """Shape (T, T), in [−1, 1]; NaN for an expert that is the base."""
        scale = np.outer(self.norms, self.norms)
        shape = np.full_like(scale, np.nan)
        return np.divide(self.products, scale, out=shape, where=scale > 0).clip(-1, 1)

    @cached_property
    def angles(self) -> NDArray[np.float64]:
        """Degrees, shape (T, T)."""
        return np.degrees(np.arccos(self.cosines))

    @cached_property
    def distances(self) -> NDArray[np.float64]:
        """‖τ_s − τ_t‖, shape (T, T)."""
        squares = np.diag(self.products)
        return np.sqrt((squares[:, None] + squares[None, :] - 2 * self.products).clip(0))


@dataclass(frozen=True)
class Experts:
    """Timelines that trained the very same experts: what their task vectors have in common."""

    label: str
    timelines: tuple[str, ...]
    geometry: Geometry


@dataclass(frozen=True)
class Missing:
    """Weights that are not here."""

    timeline: str
    reason: str
    command: str | None
    """What brings them; None where nothing does."""


@dataclass(frozen=True)
class Vectors:
    """What is known of task vectors, and what is not."""

    known: tuple[Experts, ...] = ()
    missing: tuple[Missing, ...] = ()


def of(project: Path, records: Records, progress: Progress = silent) -> Vectors:
    """The geometry of task vectors of one seed's cells, out of the DVC cache; nothing is fetched.

    Cells whose experts are the same by content share one computation. Weights that the cache lacks leave their
    timelines out, and are named.
    """
    cache = Cache(dvc_config.cache_dir(project))
    seed = min(cell.seed for cell in records)
    sharing: dict[tuple[str, ...], list[str]] = {}
    lineages = {cell.timeline: lineage for cell, lineage in records.items() if cell.seed == seed and not cell.reference}
    for timeline, lineage in lineages.items():
        if len(lineage) > 2:  # two experts, beside the base
            sharing.setdefault(_experts(lineage), []).append(timeline)
    labels = _labels(records, list(sharing.values()))
    known, missing = [], []
    for done, (label, (md5s, timelines)) in enumerate(zip(labels, sharing.items(), strict=True)):
        progress("report", done, len(sharing), f"task vectors, {label}")
        lineage = lineages[timelines[0]]
        lacking = [record for record, md5 in zip(lineage, md5s, strict=True) if not cache.path(md5).exists()]
        if lacking:
            missing.append(_why(project, lacking))
            continue
        base, *experts = (cache.path(md5) for md5 in md5s)
        steps = tuple(record.state.step for record in lineage[1:])
        arrivals = tuple(record.manifest.arrival or "" for record in lineage[1:])
        known.append(Experts(label, tuple(timelines), Geometry(steps, arrivals, products(base, experts))))
    return Vectors(tuple(known), tuple(missing))


def products(base: Path, experts: Sequence[Path]) -> NDArray[np.float64]:
    """Inner products of task vectors over all floating-point tensors, shape (T, T), summed in float64.

    Reads a piece of one tensor of every model at a time, so memory does not grow with the models.

    Raises:
        UserError: a file is not readable safetensors, or holds NaN.
    """
    total = np.zeros((len(experts), len(experts)))
    with ExitStack() as stack:
        origin = stack.enter_context(FileSource(base))
        models = [coded.opened(path, origin, stack) for path in experts]
        piece = max(1, _HELD // (len(models) + 1))
        for name, entry in origin.entries.items():
            if entry.dtype in FLOATS:
                for start in range(0, entry.size, piece):
                    stop = min(start + piece, entry.size)
                    vectors = _task_vectors(origin, models, name, start, stop)
                    total += vectors @ vectors.T
    return total


def _task_vectors(
    origin: TensorSource, models: Sequence[TensorSource], name: str, start: int, stop: int
) -> NDArray[np.float64]:
    base = read(origin, name, start, stop).astype(np.float64)
    vectors = np.empty((len(models), stop - start))
    for row, model in zip(vectors, models, strict=True):
        np.subtract(read(model, name, start, stop), base, out=row)
    return vectors


def _experts(lineage: Sequence[Record]) -> tuple[str, ...]:
    """The content of a timeline's experts, that of the base first."""
    return tuple(record.manifest.stored_expert.md5 for record in lineage)


def _labels(records: Records, sharing: Sequence[Sequence[str]]) -> list[str]:
    """A name for each set of experts: as short as tells them apart."""
    cells = {cell.timeline: cell for cell in records}
    for fields in (("init",), ("init", "technique"), ("init", "technique", "variant")):
        labels = [", ".join(filter(None, (getattr(cells[names[0]], f) for f in fields))) for names in sharing]
        if len(set(labels)) == len(labels):
            return labels
    return [names[0] for names in sharing]


def _why(project: Path, lacking: Sequence[Record]) -> Missing:
    states = [record.state for record in lacking]
    timeline = states[0].timeline
    if gone := [state.name for state in states if state.commit in let_go(project)]:
        return Missing(timeline, f"the weights of {_listed(gone)} were let go (chronomerge gc)", None)
    names = [state.name for state in states]
    restore = f"for t in {' '.join(names)}; do chronomerge restore $t --timeline {timeline}; done"
    return Missing(timeline, f"the experts of {_listed(names)} are not in this clone's cache", restore)


def _listed(names: Sequence[str]) -> str:
    return ("state " if len(names) == 1 else "states ") + ", ".join(names)
