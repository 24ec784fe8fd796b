"""The node ``measure``: the statistics of the step's expert on its own data, where the technique needs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks import randomness
from tasks.errors import UserError
from tasks.measure.needs import needed, no_data, stand_in
from tasks.model import coded, models
from tasks.model.datasets import Dataset
from tasks.params import Params
from tasks.progress import Progress, silent

if TYPE_CHECKING:
    from tasks.measure.measurement import Measurement

MODEL = Path("data/history/model")
ARRIVAL = Path("data/step/arrival")
BASE = Path("data/history/weights/base.safetensors")
EXPERT = Path("data/step/expert")
STATISTICS = Path("data/step/statistics")
OWN_POOL = "measure"
"""The folder beside an expert that arrives as a file: the data that the user names for it."""


def measure(project: Path, params: Params, progress: Progress = silent) -> None:
    """``data/step/expert.safetensors`` and the arrival's data → ``data/step/statistics``.

    Leaves ``statistics.json`` (what was measured: nothing, at step 0 and where nothing is merged by data) and, where
    something was, ``expert.safetensors``, a statistics file.

    An expert that arrives as a file without data weighs what the base weighs (`tasks.measure.prior`).

    Raises:
        UserError: it is without data, and the base weighs nothing; or inputs that are damaged.
    """
    target = project / STATISTICS
    shutil.rmtree(target, ignore_errors=True)  # in a restored state its files are links into the cache
    target.mkdir(parents=True)
    kinds = needed(params)
    if not kinds or not params.step:
        _note(target, {"measured": None})
        progress("measure", 1, 1)
        return
    arrived = project / ARRIVAL
    kept = arrived / "statistics"
    if (kept / "expert.safetensors").exists():  # of the state that the expert is taken from
        for name in ("expert.safetensors", "statistics.json"):
            shutil.copyfile(kept / name, target / name)
        progress("measure", 1, 1)
        return
    data = arrived if (arrived / "dataset.json").exists() else arrived / OWN_POOL
    arrival = params.arrival.name if params.arrival else "the arrival"
    out = target / "expert.safetensors"
    if data.exists():
        done = _measured(project, params, Dataset(data), kinds, arrival, out, progress)
    elif weight := stand_in(params):
        done = _stood_in(project, params, weight, kinds, out)
        progress("note:", 1, 1, f"{arrival} is an expert without data: it weighs what the base weighs ({weight:g})")
    else:
        raise UserError(no_data(arrival, params.time.technique.name))
    _note(target, {"measured": {**done.facts.as_json(), "kinds": list(kinds), "without_gram": list(done.left_out)}})


def _stood_in(project: Path, params: Params, weight: float, kinds: tuple[str, ...], out: Path) -> Measurement:
    from tasks.measure.prior import write_prior

    models.configure(params.threads)
    model = models.build(project / MODEL)
    preprocess, tokenize = models.preprocess(project / MODEL), models.tokenizer(project / MODEL)
    return write_prior(model, weight, preprocess, tokenize, out, kinds)


def _measured(
    project: Path, params: Params, data: Dataset, kinds: tuple[str, ...], name: str, out: Path, progress: Progress
) -> Measurement:
    from tasks.measure.pool import SAMPLES, MeasurePool, drawn_rows, measure_pool, prompts_of

    models.configure(params.threads)
    seed = randomness.derive(params.seed, params.step or 0, "measure") % 2**63
    rows = drawn_rows(len(data), SAMPLES, seed)
    labelled = bool((np.asarray(data.labels) >= 0).all())
    prompts = prompts_of(data.card.classes, data.card.prompt) if labelled else []
    pool = MeasurePool(name, np.asarray(data.images[rows]), [data.captions[row] for row in rows], prompts)
    model = models.build(project / MODEL)
    expert = coded.stored(project / EXPERT)
    models.load_weights(model, coded.load(expert, project / BASE), expert)
    model.to(models.device())
    preprocess, tokenize = models.preprocess(project / MODEL), models.tokenizer(project / MODEL)
    return measure_pool(model, pool, preprocess, tokenize, out, statistics=kinds, seed=seed, progress=progress)


def _note(target: Path, content: dict[str, Any]) -> None:
    (target / "statistics.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
