"""Measuring a CLIP checkpoint on data sources, without a timeline."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks.errors import UserError
from tasks.measure.measurement import WIDEST, Measurement
from tasks.measure.pool import SAMPLES, MeasurePool, drawn_rows, measure_pool, prompts_of
from tasks.model import configurations, models
from tasks.model.dtypes import as_given, stored_as
from tasks.model.inputs import open_model
from tasks.model.sources import DictSource, raw_bytes
from tasks.params import Base, SourceSpec
from tasks.prepare import looked_into
from tasks.prepare.source import Context, Outside
from tasks.progress import Progress, silent


def measure_clip(
    model: Path | str,
    data: Sequence[SourceSpec],
    out: Path | str,
    *,
    architecture: str | None = None,
    statistics: Sequence[str] = ("fisher", "gram"),
    samples: int = SAMPLES,
    seed: int = 0,
    widest: int = WIDEST,
    progress: Progress = silent,
) -> Measurement:
    """Measure a two-tower model of open_clip or transformers, and write a statistics file under open_clip's names.

    Args:
        model: a checkpoint, or a model's folder.
        data: sources as in ``params.yaml``: ``icons:food``, ``images:FOLDER``, …
        architecture: open_clip's name of the model, or a JSON file with its configuration; by default what lies beside
            the weights says.
        samples: at most so many, drawn with the seed.

    Raises:
        UserError: an unknown architecture or source, weights of another architecture, or no samples.
    """
    if samples < 1:
        raise UserError(f"measure: {samples} samples are none; give at least 1")
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="measure-")))
        folder = scratch / "model"
        base = _base(Path(model), architecture, scratch)
        models.resolve(base, Path(), folder)
        beside = Path(model) if Path(model).is_dir() else Path(model).parent
        models.fetch_tokenizer(base, Path(), folder, None if architecture else beside)
        built = models.build(folder)
        models.load_weights(built, _weights(Path(model), built, stack), Path(model))
        built.to(models.device())
        preprocess = models.preprocess(folder)
        pool = _pool(data, samples, seed, preprocess, scratch, progress)
        return measure_pool(
            built, pool, preprocess, models.tokenizer(folder), Path(out), statistics=statistics, seed=seed,
            widest=widest, progress=progress,
        )  # fmt: skip


def _base(model: Path, architecture: str | None, scratch: Path) -> Base:
    if architecture is None:
        config = configurations.of_folder(model if model.is_dir() else model.parent)
        if config is None:
            raise UserError(
                f"{model}: no {configurations.OPEN_CLIP} or {configurations.TRANSFORMERS} beside it says what model "
                "this is; name it with --architecture (open_clip's name of the model, or a configuration's file), or "
                "measure a model of another kind with --with"
            )
        architecture = str(scratch / "config.json")
        Path(architecture).write_text(json.dumps(config), encoding="utf-8")
    return Base(model=architecture, pretrained=str(model.absolute() / "weights.safetensors"))


def _weights(model: Path, built: torch.nn.Module, stack: ExitStack) -> dict[str, torch.Tensor]:
    source = open_model(model, "the model", stack, DictSource(built.state_dict(), "the architecture"))
    weights: dict[str, torch.Tensor] = {}
    for name, entry in source.entries.items():
        raw = raw_bytes(source, name, 0, entry.bytes).view(stored_as(entry.dtype)).reshape(entry.shape)
        weights[name] = as_given(raw, entry.dtype, torch.zeros(0))
    return weights


def _pool(
    data: Sequence[SourceSpec],
    samples: int,
    seed: int,
    preprocess: models.Preprocess,
    scratch: Path,
    progress: Progress,
) -> MeasurePool:
    outside = Outside(Path(), scratch, seed, progress)
    squash = preprocess.resize_mode == "squash"
    context = Context(seed, preprocess.image_size, preprocess.interpolation, squash, scratch=scratch)
    images: list[np.ndarray] = []
    captions: list[str] = []
    with looked_into(data, "measure --data", outside, context) as opened:
        readings = [reading for _, reading in opened]
        wanted = set(drawn_rows(sum(reading.count for reading in readings), samples, seed).tolist())
        examples = (example for reading in readings for example in reading.examples)
        for row, example in enumerate(examples):
            if row in wanted:
                images.append(example.image)
                captions.append(example.caption)
                progress("read", len(images), len(wanted))
        labelled = all(name is not None for reading in readings for _, name in reading.texts)
        classes = sorted({name for reading in readings for name in reading.classes})
        prompts = prompts_of(classes, readings[0].prompt) if labelled and readings else []
    if not images:
        raise UserError(f"measure: {_told(data)} selects no samples")
    return MeasurePool(data[0] if len(data) == 1 else list(data), np.stack(images), captions, prompts)


def _told(data: Any) -> str:
    return ", ".join(map(str, data)) or "no source"
