"""The nodes ``prepare`` and ``prepare-evaluation``: raw files become prepared data sets, offline and purely."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from tasks.errors import UserError
from tasks.model import coded, datasets, jpeg
from tasks.model.datasets import Card, Sample
from tasks.params import EvaluationSet, Params
from tasks.prepare import KEPT, classnames, experts, files
from tasks.prepare.registry import parse_all
from tasks.prepare.source import Context, Reading, Source
from tasks.progress import Progress, silent
from tasks.storage import atomic

RAW = Path("data/raw")
STEP = Path("data/step")
MODEL = Path("data/history/model")
REPORT_EVERY = 50
"""Samples between two calls of the progress callback."""


def prepare_arrival(project: Path, params: Params, progress: Progress = silent) -> None:
    """``data/raw/arrival`` → ``data/step/arrival``.

    The output holds a data set; or, for an expert arrival, ``expert.safetensors`` under the base's names, with a data
    set ``measure`` where the arrival names data for it; or, at step 0 without pretraining data, only ``nothing.json``.
    Where files and expert are those of a recorded state, both, and its ``statistics``.

    Raises:
        UserError: a raw file is missing or damaged, a source selects nothing, or an expert has values that are not
            finite.
    """
    arrival, raw = params.arrival, project / RAW / "arrival"
    with atomic.made_folder(project / STEP / "arrival") as target:
        if arrival is None:
            (target / "nothing.json").write_text(json.dumps({"reason": "no pretraining data"}) + "\n", encoding="utf-8")
        elif arrival.expert is not None:
            base = raw / experts.BASE
            experts.prepare(
                arrival, raw, base if base.exists() else None, project / MODEL, target / experts.FILE
            )  # fmt: skip
            if arrival.measure:
                sources, own = parse_all(arrival.measure, f"arrival {arrival.name}"), target / "measure"
                _prepare(arrival.name, sources, raw, own, _context(project, params), None, progress)
        else:
            sources = parse_all(arrival.update, f"arrival {arrival.name}")
            _prepare(arrival.name, sources, raw, target, _context(project, params), None, progress)
        if arrival is not None and arrival.from_state:
            _keep(raw / KEPT, target)


def _keep(kept: Path, target: Path) -> None:
    """Hand on the expert of the state that an arrival is taken from, and what was measured on its data."""
    expert = coded.stored(kept / Path(experts.FILE).stem)
    files.copy(expert, target / expert.name)
    if (kept / "statistics").is_dir():
        shutil.copytree(kept / "statistics", target / "statistics")


def prepare_evaluation(project: Path, params: Params, progress: Progress = silent) -> None:
    """``data/raw/evaluation`` → one data set per evaluation set in ``data/step/evaluation/NAME``.

    Raises:
        UserError: as `prepare_arrival`; or some test samples of a set have a class and some have none.
    """
    context, raw = _context(project, params), project / RAW / "evaluation"
    with atomic.made_folder(project / STEP / "evaluation") as target:
        for one in params.evaluate.sets:
            sources = parse_all(one.test, f"evaluation set {one.name}")
            folder = target / one.name
            _prepare(one.name, sources, raw, folder, context, one, progress)
            _check_classes(one, datasets.Dataset(folder))


def _check_classes(one: EvaluationSet, data: datasets.Dataset) -> None:
    """A test set has a class for every sample, or pairs images with captions and has none.

    Raises:
        UserError: some have one; or none has, and there is a prompt for classes.
    """
    without = data.labels < 0
    if without.any() and not without.all():
        raise UserError(
            f"evaluation set {one.name!r}: sample {data.ids[int(without.argmax())]!r} has no class, and others have; a"
            " test set needs classes for all, from folders or a label column, or captions for all and no class"
        )
    if without.all() and (one.prompt is not None or one.classnames is not None):
        key = "classnames" if one.prompt is None else "prompt"
        raise UserError(
            f"evaluation set {one.name!r}: {key} is for classes, and its samples have none; leave it out, or name"
            " the column of classes with label"
        )


def _prepare(
    name: str,
    sources: Sequence[Source],
    raw: Path,
    folder: Path,
    context: Context,
    evaluation: EvaluationSet | None,
    progress: Progress,
) -> None:
    """Read some sources into one data set; classes of the same name are one class."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".scratch-") as scratch:
        context = replace(context, scratch=Path(scratch))
        readings = [source.read(raw / source.name, context) for source in sources]
        classes = tuple(sorted({c for reading in readings for c in reading.classes}))
        names = {own: name for reading in readings for own, name in reading.names.items()}
        spoken = tuple(names.get(one, one) for one in classes)
        tabled = evaluation is not None and evaluation.classnames is not None
        card = Card(
            name=name,
            image_size=context.image_size,
            classes=classnames.named(evaluation, raw, classes) if evaluation and tabled else spoken,
            prompt=_prompt(name, readings, evaluation),
            templates=_templates(name, readings, evaluation),
            origins=tuple(dict.fromkeys(origin for reading in readings for origin in reading.origins)),
            jpeg=context.jpeg,
        )
        count = sum(reading.count for reading in readings)
        datasets.write(folder, card, _samples(name, readings, classes, count, progress), count)


def _samples(
    name: str, readings: Sequence[Reading], classes: Sequence[str], count: int, progress: Progress
) -> Iterator[Sample]:
    labels = {class_name: label for label, class_name in enumerate(classes)}
    examples = (example for reading in readings for example in reading.examples)
    for done, example in enumerate(examples, start=1):
        label = -1 if example.class_name is None else labels[example.class_name]
        yield Sample(example.id, example.image, example.caption, label, example.original)
        if done % REPORT_EVERY == 0 or done == count:
            progress(f"preparing {name}", done, count)


def _prompt(name: str, readings: Sequence[Reading], evaluation: EvaluationSet | None) -> str:
    if evaluation is not None and isinstance(evaluation.prompt, str) and "{}" in evaluation.prompt:
        return evaluation.prompt
    if evaluation is not None and evaluation.prompt is not None:  # an ensemble
        return readings[0].prompt
    prompts = sorted({reading.prompt for reading in readings})
    if evaluation is not None and len(prompts) > 1:
        raise UserError(f"evaluation set {name!r}: its sources' prompts differ ({', '.join(prompts)}); give prompt")
    return readings[0].prompt


def _templates(name: str, readings: Sequence[Reading], evaluation: EvaluationSet | None) -> tuple[str, ...]:
    """The prompt ensemble that a test set's sources come with; none where the params say the prompts."""
    if evaluation is None or evaluation.prompt is not None:
        return ()
    ensembles = sorted({reading.templates for reading in readings})
    if len(ensembles) > 1:
        raise UserError(f"evaluation set {name!r}: its sources come with different prompt ensembles; give prompt")
    return ensembles[0]


def _context(project: Path, params: Params) -> Context:
    path = project / "data/history/model/preprocess.json"
    try:
        return _Preprocess.model_validate_json(path.read_text(encoding="utf-8")).context(params)
    except (OSError, ValueError) as error:  # pydantic's errors are ValueErrors
        raise UserError(f"{path}: {' '.join(str(error).split())}; chronomerge run writes it before this node") from None


class _Preprocess(BaseModel):
    """What matters here of ``preprocess.json``."""

    image_size: int = Field(gt=0)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "squash"] = "shortest"

    def context(self, params: Params) -> Context:
        squash = self.resize_mode == "squash"
        return Context(
            params.seed, self.image_size, self.interpolation, squash, scratch=Path(), limits=params.limits,
            jpeg=jpeg.chosen(params.prepared, self.interpolation, squash=squash),
        )  # fmt: skip
