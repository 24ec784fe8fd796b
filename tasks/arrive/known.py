"""What a project knows already: its test images, the classes of earlier arrivals, and what it keeps files of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tasks import layout, prepare
from tasks.errors import UserError
from tasks.model.datasets import Dataset, digest
from tasks.params import Params
from tasks.prepare.node import prepare_evaluation
from tasks.prepare.source import Context, Outside
from tasks.progress import Progress
from tasks.record import last, lineage, states
from tasks.scores import ROLES
from tasks.storage import dvc_config, pointers
from tasks.storage.cache import Cache, Entry


def test_images(project: Path, params: Params, scratch: Path, progress: Progress) -> dict[bytes, str]:
    """All images of the test sets, by hash, with where they are, in words.

    They are those of the last state, where it has the same sets, or are prepared for this alone in ``scratch``, which
    has the model's folder as ``data/history/model``.

    Raises:
        UserError: an evaluation set cannot be had.
    """
    folder = scratch / layout.EVALUATION
    cache = Cache(dvc_config.cache_dir(project))
    if recorded := _recorded_tests(project, params, cache):
        cache.link(recorded, folder)
    else:
        downloads = layout.private(project) / "downloads"
        prepare.fetch_evaluation(params, scratch / layout.RAW_EVALUATION, downloads, progress, project)
        prepare_evaluation(scratch, params, progress)
    known: dict[bytes, str] = {}
    for role in ROLES:
        for one in getattr(params.evaluate, role):
            data = Dataset(folder / one.name)
            for id_, image in zip(data.ids, data.images, strict=True):
                known.setdefault(digest(image), f"{id_} of the {role} set {one.name!r}")
    return known


def _recorded_tests(project: Path, params: Params, cache: Cache) -> Entry | None:
    newest = last(project, params.timeline)
    if newest is None:
        return None
    before = newest.settings
    entry = newest.entries[layout.EVALUATION]
    same = (before.base, before.evaluate, before.prepared) == (params.base, params.evaluate, params.prepared)
    return entry if same and not cache.missing(entry) else None


def place_model(project: Path, params: Params, folder: Path) -> bool:
    """Place the model folder that state 0 has; returns whether it is there, and of the base that params.yaml names."""
    recorded = states(project, params.timeline)
    if not recorded or recorded[0].settings.base != params.base:
        return False
    cache = Cache(dvc_config.cache_dir(project))
    history = recorded[0].entries[layout.HISTORY]
    if history.md5 in cache.missing(history):
        return False
    model = cache.part(history, "model")
    if model is None or cache.missing(model):
        return False
    cache.link(model, folder)
    return True


def classes(project: Path, params: Params, outside: Outside, context: Context) -> Iterator[tuple[str, set[str]]]:
    """Name and classes of the stream's arrivals, as far as they can be told without the store."""
    cache = Cache(dvc_config.cache_dir(project))
    recorded = {state.step: state.entries[layout.ARRIVAL] for state in lineage(project, params.timeline)}
    for step, one in enumerate(params.stream, start=1):
        entry = recorded.get(step)
        if one.expert is not None:
            continue
        if entry and not cache.missing(entry):
            card = cache.members(entry)["dataset.json"]
            yield one.name, _classes_of(cache.path(card), one.name)
        elif tracked := prepare.pointers(one, project):
            yield one.name, {name for pointer in tracked for name in pointers.read(pointer)[1].get("classes", ())}
        else:
            try:
                with prepare.looked_into(one.update, f"arrival {one.name}", outside, context) as readings:
                    yield one.name, {name for _, reading in readings for name in reading.classes}
            except UserError:
                continue  # that arrival's own fault, which a run will name


def _classes_of(card: Path, arrival: str) -> set[str]:
    try:
        return set(json.loads(card.read_bytes())["classes"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise UserError(
            f"{card}: the classes of arrival {arrival!r} cannot be read from the cache ({error}); "
            "`chronomerge doctor --repair` brings it back from the store"
        ) from None


def twin(project: Path, entry: Entry, params: Params, name: str) -> str | None:
    """Another arrival of the stream that has these very files."""
    for one in params.stream:
        path = pointers.path(project, one.name)
        if one.name != name and path.exists() and pointers.read(path)[0].md5 == entry.md5:
            return one.name
    return None


def withdrawals(project: Path, params: Params) -> dict[str, str]:
    """The arrivals that were taken out of the timeline and are not in the stream again → the tag of their state."""
    newest, there = last(project, params.timeline), {one.name for one in params.stream}
    return {
        one.arrival: one.state for one in (newest.manifest.withdrawals if newest else ()) if one.arrival not in there
    }


def withdrawn(project: Path, entry: Entry | None, params: Params, name: str) -> tuple[str, str] | None:
    """Of `withdrawals` the one that has this name or these very files, and the tag of its state."""
    for arrival, tag in withdrawals(project, params).items():
        path = pointers.path(project, arrival)
        same = entry is not None and path.exists() and pointers.read(path)[0].md5 == entry.md5
        if arrival == name or same:
            return arrival, tag
    return None
