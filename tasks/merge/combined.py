"""The statistics of a merged model: the mean of those of the experts it stands for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from tasks.errors import UserError
from tasks.merge.measured import Measured, open_statistics
from tasks.merge.reading import read
from tasks.model.sinks import FileSink
from tasks.model.sources import TensorEntry

_AT_ONCE = 1 << 20


def combine(new: Path, before: Path, out: Path) -> None:
    """Write the statistics of a model that ``new`` and the model of ``before`` were merged into.

    Each entry is the mean over all experts that both stand for (``experts`` in the metadata), of Gram matrices the
    mean of Σ x xᵀ / samples times the samples of all. So the running model weighs as much as its experts together.

    Raises:
        UserError: the two do not describe the same tensors.
    """
    with ExitStack() as stack:
        one, other = open_statistics([new, before], stack)
        if one.source.entries != other.source.entries:
            differing = sorted(one.source.entries.items() ^ other.source.entries.items())[0][0]
            raise UserError(f"{one.label}: {differing!r} is not as in {other.label}; measure all experts alike")
        experts = one.facts.experts + other.facts.experts
        samples = one.facts.samples + other.facts.samples
        estimators = sorted({one.facts.estimator, other.facts.estimator})
        facts = replace(
            one.facts, samples=samples, experts=experts, estimator=" and ".join(estimators),
            pool=[*_pools(other), *_pools(one)],
        )  # fmt: skip
        entries = {name: TensorEntry("F32", entry.shape) for name, entry in one.source.entries.items()}
        sink = FileSink(out, entries, metadata=facts.as_metadata())
        try:
            for name, entry in entries.items():
                for start in range(0, entry.size, _AT_ONCE):
                    stop = min(entry.size, start + _AT_ONCE)
                    total = np.zeros(stop - start)
                    for part in (one, other):
                        share = part.facts.experts / experts
                        if name.startswith("gram/"):
                            share *= samples / part.facts.samples
                        total += share * read(part.source, name, start, stop, precision=np.float64)
                    sink.write(name, 4 * start, total.astype(np.float32))
            sink.finish()
        finally:
            sink.abandon()


def _pools(one: Measured) -> Iterator[object]:
    yield from one.facts.pool if isinstance(one.facts.pool, list) else [one.facts.pool]
