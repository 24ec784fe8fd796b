"""What one state hands on to the next: ``data/history``, put together from the previous state by hash alone.

``model/`` and ``weights/`` (``lineage.json``, which says the how-manieth expert the step's will be; from step 1 on
base, last expert, running model, and all experts and the deployed model where the next step needs them), ``pools/``
(pretraining and every earlier arrival's data), ``regularizer/`` (what the training of earlier steps holds important,
where one is chosen), ``routed/`` (the deltas and the router of a routed deployment), ``heads/`` (the running state of
heads, where there are any), ``compatibility/`` (the galleries of states, where they are searched), ``reference/`` (the
deployed weights of the state that deployed models stay compatible with, and its tag, where the params name one), at
step 0 ``source/`` (the files that the base was read from, where they come from a hub).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from tasks import layout
from tasks.errors import UserError, first_problem
from tasks.record.state import State
from tasks.storage.cache import Cache, Entry

READS = (
    layout.HISTORY, layout.EXPERT, layout.CODED_EXPERT, layout.RUNNING, layout.DEPLOYED, layout.ROUTED,
    layout.ARRIVAL, layout.REGULARIZER, layout.HEADS, layout.COMPATIBILITY,
)  # fmt: skip
"""What `after` reads of the previous state."""
DEPLOYED = "weights/deployed.safetensors"
"""The deployed model in a history that has it."""
REFERENCE = "reference/reference.json"
"""The tag of the state that the deployed model is to be compatible with."""
NOTHING_HELD = {"regularizer/regularizer.json": {"name": None}}
"""No parameter is important to a regularizer."""


T = TypeVar("T")


class _Lineage(TypedDict):
    step: int


_LINEAGE = TypeAdapter(_Lineage)
_POOLS = TypeAdapter(list[str])


@dataclass(frozen=True)
class Seed:
    """Step 0 has no previous state: the model's configuration and, unless it is trained, its weights."""

    model: Path
    """Folder with ``model.json`` and ``preprocess.json``."""
    weights: Path | None
    source: Path | None = None
    """The files that the weights were read from, with ``origin.json``, where they come from a hub."""


def first(seed: Seed, cache: Cache, scratch: Path) -> Entry:
    """The history of step 0."""
    notes = {**_notes(cache, scratch, 0, []), **_put(cache, scratch, NOTHING_HELD)}
    parts = {"model": cache.put(seed.model), **notes}
    if seed.weights is not None:
        parts["weights/base.safetensors"] = cache.put(seed.weights)
    if seed.source is not None:
        parts["source"] = cache.put(seed.source)
    return cache.compose(parts)


def after(
    previous: State, cache: Cache, scratch: Path, *, all_experts: bool, deployed: bool = False,
    reference: State | None = None,
) -> Entry:  # fmt: skip
    """The history of a step that starts from a state; everything it refers to must be in the cache.

    ``deployed``: with the deployed model, for a fit that compares with it. ``reference`` is the state that
    ``deploy.compatible_with`` names, once it is recorded.

    Experts are counted, not steps: one whose state was held and skipped has never been.

    Raises:
        UserError: the state lacks something, or one of its notes is damaged.
    """
    entries = previous.entries
    past = entries[layout.HISTORY]

    def handed_on(path: str) -> Entry:
        entry = cache.part(past, path)
        if entry is None:
            raise UserError(f"{previous.tag}: its {layout.HISTORY} has no {path}; `chronomerge doctor` says more")
        return entry

    def note(path: str, kind: TypeAdapter[T]) -> T:
        try:
            return kind.validate_json(cache.path(handed_on(path).md5).read_bytes(), strict=True)
        except ValidationError as error:
            problem = first_problem(error)
            raise UserError(f"{previous.tag}: {layout.HISTORY}/{path} cannot be used: {problem}") from None

    number = note("weights/lineage.json", _LINEAGE)["step"] + 1
    expert = entries[previous.expert]
    ending = Path(previous.expert).suffix
    parts = {
        "model": handed_on("model"),
        "weights/base.safetensors": expert if number == 1 else handed_on("weights/base.safetensors"),
        f"weights/expert{ending}": expert,
        "weights/running": entries[layout.RUNNING],
    }
    if deployed:
        parts[DEPLOYED] = entries[layout.DEPLOYED]
    if layout.REGULARIZER in entries:
        parts["regularizer"] = entries[layout.REGULARIZER]
    else:  # a state of before there were regularizers
        parts |= _put(cache, scratch, NOTHING_HELD)
    if layout.ROUTED in entries:
        parts["routed"] = entries[layout.ROUTED]
    if layout.HEADS in entries:
        parts["heads"] = entries[layout.HEADS]
    if layout.COMPATIBILITY in entries:
        parts["compatibility"] = entries[layout.COMPATIBILITY]
    if reference:
        parts["reference/deployed.safetensors"] = reference.entries[layout.DEPLOYED]
        parts |= _put(cache, scratch, {REFERENCE: {"state": reference.tag}})
    if all_experts and number > 1:
        if number > 2:
            parts["weights/experts"] = handed_on("weights/experts")
        parts[f"weights/experts/{number - 1:04d}{ending}"] = expert
    pools = note("pools/pools.json", _POOLS)
    for name in pools:
        parts[f"pools/{name}"] = handed_on(f"pools/{name}")
    arrived = entries[layout.ARRIVAL]
    if cache.part(arrived, "dataset.json"):
        name = "pretraining" if number == 1 else previous.params["arrival"]["name"]
        parts[f"pools/{name}"] = arrived
        pools.append(name)
    return cache.compose(parts | _notes(cache, scratch, number, pools))


def _notes(cache: Cache, scratch: Path, number: int, pools: list[str]) -> dict[str, Entry]:
    return _put(cache, scratch, {"weights/lineage.json": {"step": number}, "pools/pools.json": pools})


def _put(cache: Cache, scratch: Path, notes: Mapping[str, Any]) -> dict[str, Entry]:
    scratch.mkdir(parents=True, exist_ok=True)
    entries = {}
    for path, content in notes.items():
        note = scratch / Path(path).name
        note.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        entries[path] = cache.put(note)
        note.unlink()
    return entries
