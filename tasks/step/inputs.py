"""The inputs of a step: the history of earlier steps, and the raw files of the arrival and of the test sets.

Each function places one of them in the worktree of the step, and may be called again after an error.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks import deploy, fit, layout, merge, prepare, record
from tasks.model import coded, models
from tasks.params import Params
from tasks.record import State
from tasks.step.workspace import Step
from tasks.storage import pointers
from tasks.storage.cache import Entry

_RECORDED = (layout.RAW_ARRIVAL, layout.STATISTICS)
"""What is taken of a state whose expert is kept, beside that."""


@dataclass(frozen=True)
class Inputs:
    """Inputs in the worktree: path → content, as a `Reference` has the outputs of nodes."""

    outs: Mapping[str, Entry]


def place_history(step: Step) -> Inputs:
    """``data/history``: the history of earlier states; at step 0 the model, and its weights unless it is trained.

    Afterwards, every output of the previous state is in the cache.

    Raises:
        UserError: files of a state or of the base are missing, or damaged in cache and store; or the deployed model is
            to be compatible with a state, and no rotation can be folded into such a model.
        RemoteError: the store does not answer.
    """
    if step.previous:
        _bring(step, step.previous, step.previous.entries, trusted=step.fresh)
    if step.start and step.start != step.previous:
        _bring(step, step.start, record.HISTORY_READS, trusted=False)
    placed = _place(
        step, layout.HISTORY, _first_history(step) if step.start is None else _next_history(step, step.start)
    )
    if (step.folder / layout.HISTORY / "reference").exists():
        deploy.require_foldable(step.folder / layout.HISTORY / "model")
    return placed


def place_arrival(step: Step) -> Inputs:
    """``data/raw/arrival``: the source files of the arrival, or its expert; at step 0 those of the pretraining pool.

    An expert is held against the base in the history, which is placed before.

    Raises:
        UserError: a file is missing, damaged or cannot be downloaded.
        RemoteError: the store does not answer.
    """
    params, into = step.params, step.folder / layout.RAW_ARRIVAL
    if params.arrival and params.arrival.from_state:
        return _place(step, layout.RAW_ARRIVAL, _recorded_arrival(step, params.arrival.from_state))
    if params.arrival:
        for pointer in prepare.pointers(params.arrival, step.project):
            pointers.bring(step.project, pointer, step.folder, step.cache, step.dvc)
        downloads = layout.private(step.project) / "downloads"
        base = step.folder / layout.HISTORY / "weights/base.safetensors"
        prepare.fetch_arrival(params, params.arrival, into, downloads, step.progress, step.project, base)
    else:
        into.mkdir(parents=True, exist_ok=True)
        (into / "nothing.json").write_text("{}\n", encoding="utf-8")
    return Inputs({layout.RAW_ARRIVAL: step.cache.put(into)})


def place_evaluation(step: Step) -> Inputs:
    """``data/raw/evaluation``: the source files of all test sets.

    The files of the previous state are used again, even if the sources have changed: so states can be compared.

    Raises:
        UserError: a file is missing, damaged or cannot be downloaded.
    """
    if step.previous and _same_evaluation(step.params, step.previous):
        return _place(step, layout.RAW_EVALUATION, step.previous.entries[layout.RAW_EVALUATION])
    into, downloads = step.folder / layout.RAW_EVALUATION, layout.private(step.project) / "downloads"
    prepare.fetch_evaluation(step.params, into, downloads, step.progress, step.project)
    return Inputs({layout.RAW_EVALUATION: step.cache.put(into)})


def _bring(step: Step, state: State, paths: Collection[str], *, trusted: bool) -> None:
    """Fetch paths of a state into the cache; hash what is there already, unless it is trusted."""
    if not trusted:
        for path, entry in state.entries.items():
            if path in paths:
                step.cache.drop_damaged(entry)  # it is fetched from the remote again
    if record.missing(state, step.cache, paths):
        with record.worktree_of_state(step.project, state, step.remote) as folder:
            record.fetch(state, step.cache, step.dvc, folder, paths)


def _first_history(step: Step) -> Entry:
    given, seed = step.params.base, step.tree.scratch / "seed"
    shutil.rmtree(seed, ignore_errors=True)
    seed.mkdir()
    base = models.pinned(given)
    models.resolve(base, step.project, seed / "model")
    models.fetch_tokenizer(base, step.project, seed / "model")
    weights = source = None
    if base.pretrained != "train":
        pin = models.fetch_base(base, step.project, seed)
        weights = seed / "base.safetensors"
        if pin is not None:
            source = seed / "source"
            origin = {"address": given.pretrained, **pin.as_dict()}
            (source / "origin.json").write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
    return record.first_history(record.Seed(seed / "model", weights, source), step.cache, step.tree.scratch)


def _next_history(step: Step, start: State) -> Entry:
    time = step.params.time
    merges_all = time.deploy == "all"
    sequential = merge.has_sequential_form(time.technique.name, time.technique.settings)
    all_experts = merges_all and (not sequential or fit.reads_all_experts(step.params))
    deployed = merges_all and step.params.fit is not None
    reference = record.reference(step.project, step.params)
    if reference:
        _bring(step, reference, [layout.DEPLOYED], trusted=False)
    return record.next_history(
        start, step.cache, step.tree.scratch, all_experts=all_experts, deployed=deployed, reference=reference
    )


def _recorded_arrival(step: Step, tag: str) -> Entry:
    """The source files of a recorded state, with its expert and the statistics that were measured on its data."""
    state = record.find(step.project, step.params.timeline, tag)
    entries = {path: state.entries[path] for path in (*_RECORDED, state.expert) if path in state.entries}
    _bring(step, state, entries, trusted=False)
    expert, name = entries[state.expert], Path(state.expert).name
    if state.expert == layout.CODED_EXPERT and not step.params.codes_expert:
        plain = step.tree.scratch / "kept.safetensors"
        base = step.folder / layout.HISTORY / "weights/base.safetensors"
        coded.as_safetensors(step.cache.path(expert.md5), base, plain)
        expert, name = step.cache.put(plain), prepare.EXPERT
    parts = {"": entries[layout.RAW_ARRIVAL], f"{prepare.KEPT}/{name}": expert}
    if layout.STATISTICS in entries:
        parts[f"{prepare.KEPT}/statistics"] = entries[layout.STATISTICS]
    files = {path.lstrip("/"): md5 for path, md5 in step.cache.files(parts).items()}
    return step.cache.compose({path: Entry(md5, step.cache.path(md5).stat().st_size) for path, md5 in files.items()})


def _place(step: Step, path: str, entry: Entry) -> Inputs:
    step.cache.link(entry, step.folder / path)
    return Inputs({path: entry})


def _same_evaluation(params: Params, previous: State) -> bool:
    before = previous.settings.evaluate
    now = params.evaluate
    return (before.adaptation, before.retention) == (now.adaptation, now.retention)
