"""Measuring a model: the passes, and the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tasks.errors import UserError
from tasks.measure.drawing import drawn_loss
from tasks.measure.grams import gram_matrices
from tasks.model.sinks import FileSink
from tasks.model.sources import TensorEntry
from tasks.model.squares import SquaredGradients
from tasks.model.statistics import KINDS, Facts
from tasks.progress import Progress, silent

WIDEST = 4096
"""Inputs beyond which a Gram matrix is its diagonal alone, unless told otherwise."""
INPUTS = "inputs"
"""The estimator of a file without a Fisher."""


@dataclass(frozen=True)
class Measurement:
    """What was measured."""

    facts: Facts
    tensors: int
    """Arrays in the file."""
    bytes: int
    left_out: tuple[str, ...] = ()
    """Weights of two and more dimensions of which no product was seen, so that they have no Gram matrix."""


def measure(
    model: nn.Module,
    batches: Iterable[Any],
    outputs: Callable[[Any], torch.Tensor],
    out: Path | str,
    *,
    statistics: Sequence[str] = KINDS,
    pool: Any,
    seed: int = 0,
    widest: int = WIDEST,
    progress: Progress = silent,
) -> Measurement:
    """Measure any model and write a statistics file (`tasks.model.statistics`).

    Args:
        model: its parameters' names are the tensors' names in the file; it is put into evaluation mode.
        batches: whatever ``outputs`` takes; they are gone through once for each statistic. The Fisher takes a backward
            pass a sample, through the whole batch: it is fastest where batches are single samples.
        outputs: a batch → logits, (n, C) or (n, T, C) for n samples: a class is drawn from each sample's own
            probabilities (estimator ``expected``). Or losses (n,), −log p of labels (``empirical``).
        out: the file.
        statistics: ``fisher``, ``gram`` or both.
        pool: what the data are, for the metadata; plain JSON.
        seed: of the drawn classes.
        widest: more inputs than these have the diagonal of their Gram matrix alone.

    Raises:
        UserError: an unknown statistic, no samples, or values that are not finite.
    """
    require_known(statistics)
    model.eval()
    every = list(batches)
    seen = 0
    estimators: set[str] = set()

    def losses() -> Iterator[torch.Tensor]:
        nonlocal seen
        for batch in every:
            given = _of_samples(outputs(batch))
            if not given.requires_grad:
                raise UserError(
                    "measure: the outputs have no gradient for the Fisher; give logits (n, C) or losses (n,) that the "
                    "model computes from its parameters, not labels and not under torch.no_grad()"
                )
            estimators.add("expected" if given.ndim > 1 else "empirical")
            for sample in given:
                yield drawn_loss(sample, seed, seen) if given.ndim > 1 else sample
                seen += 1

    def runs() -> Iterator[Callable[[], None]]:
        for batch in every:

            def run(batch: Any = batch) -> None:
                nonlocal seen
                seen += len(_of_samples(outputs(batch)))

            yield run

    arrays: dict[str, torch.Tensor] = {}
    rows: set[str] = set()
    left_out: tuple[str, ...] = ()
    if "fisher" in statistics:
        arrays |= fisher_of(model, losses(), progress)
    if "gram" in statistics:
        seen = 0
        grams, rows, left_out = grams_of(model, runs(), widest)
        arrays |= grams
    estimator = " and ".join(sorted(estimators)) or INPUTS
    return write(Path(out), arrays, Facts(seen, estimator, pool, tuple(sorted(rows))), left_out)


def _of_samples(given: object) -> torch.Tensor:
    """What a user's function gives for a batch, if it has a row a sample.

    Raises:
        UserError: it is a tensor without samples, such as a mean loss, or no tensor.
    """
    if not isinstance(given, torch.Tensor):
        raise UserError(
            f"measure: the outputs are a {type(given).__name__}; give a tensor, logits (n, C) or losses (n,) for n "
            "samples"
        )
    if given.ndim < 1:
        raise UserError("measure: the outputs are one number; give logits (n, C) or losses (n,) for n samples")
    return given


def require_known(statistics: Sequence[str]) -> None:
    """Refuse statistics that there are none of."""
    unknown = [kind for kind in statistics if kind not in KINDS]
    if unknown or not statistics:
        raise UserError(
            f"measure: there is no statistic {unknown[0] if unknown else ''!r}; there are {', '.join(KINDS)}"
        )


def fisher_of(
    model: nn.Module,
    losses: Iterable[torch.Tensor],
    progress: Progress = silent,
    total: int = 0,
    used: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None,
) -> dict[str, torch.Tensor]:
    """The mean of squared gradients of ``losses``, one a sample, under the names of a statistics file.

    ``used`` has, for a parameter that ``losses`` know some rows of alone, their numbers (K,) and these rows, by name.
    """
    parameters = {**dict(model.named_parameters()), **{name: rows for name, (_, rows) in (used or {}).items()}}
    squares, count = SquaredGradients(parameters), 0
    for loss in losses:
        gradients = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
        squares.add(dict(zip(parameters, gradients, strict=True)), 1.0)
        count += 1
        progress("fisher", count, max(total, count))
    means = {name: squared / max(count, 1) for name, squared in squares.totals.items()}
    for name, (numbers, _) in (used or {}).items():
        means[name] = torch.zeros_like(model.get_parameter(name)).index_copy_(0, numbers, means[name])
    return {f"fisher/{name}": mean.detach().cpu() for name, mean in means.items()}


def grams_of(
    model: nn.Module, runs: Iterable[Callable[[], None]], widest: int
) -> tuple[dict[str, torch.Tensor], set[str], tuple[str, ...]]:
    """Gram matrices under the names of a statistics file; weights that are (in, out); weights without one."""
    grams = gram_matrices(model, runs, widest)
    sums = grams.sums
    without = tuple(name for name, p in model.named_parameters() if p.ndim > 1 and name not in sums)
    return {f"gram/{name}": gram.cpu() for name, gram in sums.items()}, grams.rows, without


def write(out: Path, arrays: dict[str, torch.Tensor], facts: Facts, left_out: tuple[str, ...]) -> Measurement:
    """Write the file, complete or not at all.

    Raises:
        UserError: nothing was measured, or a value is not finite.
    """
    if facts.samples < 1:
        raise UserError("measure: there are no samples; give data")
    for name, array in arrays.items():
        if not array.isfinite().all():
            raise UserError(f"measure: {name!r} holds NaN or infinity; the model has diverged on this data")
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}")
    entries = {name: TensorEntry("F32", tuple(array.shape)) for name, array in arrays.items()}
    sink = FileSink(out, entries, metadata=facts.as_metadata())  # equal values, equal bytes
    try:
        for name, array in arrays.items():
            sink.write(name, 0, array.float().contiguous().numpy())
        sink.finish()
    finally:
        sink.abandon()
    return Measurement(facts, len(arrays), out.stat().st_size, left_out)
