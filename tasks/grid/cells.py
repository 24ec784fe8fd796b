"""The cells of a grid: each a timeline of its own, under one protocol, one technique, one seed and one variant."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from tasks.errors import UserError
from tasks.params import Grid, LabelledTechnique, Params, parse
from tasks.record import timeline_names


@dataclass(frozen=True)
class Cell:
    """One timeline of a grid, and its position on the axes."""

    timeline: str
    init: str
    deploy: str
    technique: str
    """The label of the merging technique; empty if there is none (ft + ft does not merge)."""
    seed: int
    variant: str = ""
    """The name of a variant of the params (an ordering, a budget, a model size); empty for the params as they are."""
    reference: str = ""
    """``multitask`` or ``no-replay`` for the timelines that cells are compared with; else empty."""

    @property
    def protocol(self) -> str:
        return f"{self.init}+{self.deploy}"


@dataclass(frozen=True)
class Planned:
    """A cell, and the ``params.yaml`` of its timeline."""

    cell: Cell
    text: str
    project: Path

    @cached_property
    def params(self) -> Params:
        return parse(self.text, self.project / f"params.yaml, cell {self.cell.timeline}")


def expand(text: str, grid: Grid, project: Path) -> list[Planned]:
    """All cells of a grid over the params ``text``, references first.

    Cells that differ only in the seed follow each other: they share no expert, so they can run at the same time.

    Raises:
        UserError: the params of a cell are not valid; the message names the cell.
    """
    written = YAML()
    written.preserve_quotes = True
    written.width = 4096
    content: Any = written.load(text)
    for key in ("grid", "gate"):  # a grid must also show states that a gate would hold
        content.pop(key, None)
    made = []
    for variant, changes in (grid.variants or {"": {}}).items():
        own = copy.deepcopy(content)
        _override(own, changes)
        for kind in _kinds(grid, own, f"{project / 'params.yaml'}, variant {variant or 'none'}"):
            for seed in grid.seed or [own.get("seed", 0)]:
                made.append(_planned(written, own, kind, seed, variant, project))
    return made


@dataclass(frozen=True)
class _Kind:
    """A cell without its seed."""

    name: str
    init: str
    deploy: str
    technique: str
    changes: Mapping[str, Any]
    reference: str = ""


def _kinds(grid: Grid, content: Any, where: str) -> Iterator[_Kind]:
    plain = parse(_dump(YAML(), content), Path(where))
    if not plain.stream:
        raise UserError(f"{where}: a grid needs a stream with arrivals")
    for reference in grid.references:
        yield _Kind(reference, "ft", "ft", "", _REFERENCES[reference](plain), reference)
    for init in grid.init:
        for deploy in grid.deploy:
            if (init, deploy) == ("zs", "ft"):
                continue  # does not merge: not one of TIME's eight protocols
            if init != "ema" and deploy in ("ft", "routed"):  # no technique merges anything
                yield _Kind(f"{init}-{deploy}", init, deploy, "", _axes(init, deploy))
                continue
            for technique in grid.technique or [LabelledTechnique(**plain.time.technique.model_dump())]:
                label = technique.shown
                changes = _axes(init, deploy, {"name": technique.name, **technique.settings})
                yield _Kind(f"{init}-{deploy}-{label}", init, deploy, label, changes)


def _axes(init: str, deploy: str, technique: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"time": {"init": init, "deploy": deploy, **({"technique": technique} if technique else {})}}


def _multitask(params: Params) -> dict[str, Any]:
    """All arrivals at once, with the budget of all time steps; the share of the buffer goes to the update.

    Raises:
        UserError: an arrival has no data.
    """
    for arrival in params.stream:
        if arrival.expert is not None:
            raise UserError(
                f"grid.references: multitask trains on all data at once, and arrival {arrival.name!r} is an expert "
                "without any; leave multitask out of the references"
            )
    update = [spec for arrival in params.stream for spec in arrival.update]
    given, steps = params.train.given.model_dump(exclude_none=True), len(params.stream)
    pretraining = params.train.mixture.pretraining
    return {
        **_axes("ft", "ft"),
        "stream": [{"name": "everything", "update": update}],
        "train": {
            "steps": None,
            "budget": {currency: amount * steps for currency, amount in given.items()},
            "mixture": {"pretraining": pretraining, "update": 1 - pretraining, "buffer": 0},
        },
    }


def _no_replay(_: Params) -> dict[str, Any]:
    """Sequential fine-tuning on each arrival without the other pools."""
    return {**_axes("ft", "ft"), "train": {"mixture": {"pretraining": 0, "update": 1, "buffer": 0}}}


_REFERENCES = {"multitask": _multitask, "no-replay": _no_replay}


def _planned(written: YAML, content: Any, kind: _Kind, seed: int, variant: str, project: Path) -> Planned:
    own = copy.deepcopy(content)
    _override(own, kind.changes)
    timeline = "-".join(filter(None, [str(own.get("timeline")), variant, kind.name, f"s{seed}"]))
    own["timeline"], own["seed"] = timeline, seed
    cell = Cell(timeline, kind.init, kind.deploy, kind.technique, seed, variant, kind.reference)
    planned = Planned(cell, _dump(written, own), project)
    planned.params  # noqa: B018  validates once
    return planned


def _override(content: Any, changes: Mapping[str, Any]) -> None:
    """Apply changes to params: mappings are merged key by key, other values replaced; None removes a key.

    A technique is replaced completely, because the settings of one do not apply to another.
    """
    for key, value in changes.items():
        if value is None:
            content.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(content.get(key), Mapping) and key != "technique":
            _override(content[key], value)
        else:
            content[key] = _quoted(value)


def _quoted(value: Any) -> Any:
    """A copy in which texts with a colon (``file.py:Class``, ``images:photos``) are quoted: within { } they must be."""
    if isinstance(value, Mapping):
        return {key: _quoted(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_quoted(one) for one in value]
    return DoubleQuotedScalarString(value) if isinstance(value, str) and ":" in value else copy.deepcopy(value)


def _dump(yaml: YAML, content: Any) -> str:
    buffer = io.StringIO()
    yaml.dump(content, buffer)
    return buffer.getvalue()


def recorded(project: Path, planned: Iterable[Planned]) -> list[Cell]:
    """The cells whose timelines have states."""
    known = set(timeline_names(project))
    return [one.cell for one in planned if one.cell.timeline in known]


def usable(planned: Iterable[Planned]) -> tuple[list[Planned], dict[str, str]]:
    """The cells that can run, and the reasons why others cannot: timeline → reason.

    `tasks.merge.check` refuses them: techniques of two models cannot merge all experts, and some recursions diverge.

    Raises:
        UserError: an unknown technique or setting, or no cell can run.
    """
    from tasks import fit, measure, merge

    chosen, left_out = [], {}
    for one in planned:
        technique = one.params.time.technique
        merge.create(technique.name, technique.settings)
        try:
            merge.check(one.params.time, len(one.params.stream))
            measure.check(one.params)
            fit.check(one.params)
        except UserError as error:
            left_out[one.cell.timeline] = str(error)
        else:
            chosen.append(one)
    if not chosen:
        raise UserError(f"no cell of this grid can run: {'; '.join(dict.fromkeys(left_out.values()))}")
    return chosen, left_out
