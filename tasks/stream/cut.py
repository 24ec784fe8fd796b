"""From ordered classes to time steps, and to a file that says them explicitly."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from tasks import yaml
from tasks.errors import UserError, first_problem
from tasks.stream.material import DataSet, Pair
from tasks.text import one_line


def read(path: Path) -> list[DataSet]:
    """The data sets that a YAML file lists, at its top or under ``stream`` (as in params.yaml).

    Raises:
        UserError: it has none, or one that is no data set.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable YAML file: {' '.join(str(error).split())}") from None
    listed = raw.get("stream") if isinstance(raw, dict) else raw
    if not isinstance(listed, list) or not listed:
        raise UserError(f'{path}: lists no data sets; write each as {{name: birds, update: ["images:data/birds"]}}')
    sets = []
    for number, one in enumerate(listed, start=1):
        if isinstance(one, dict) and isinstance(one.get("date"), int):
            one = {**one, "date": str(one["date"])}
        elif isinstance(one, dict) and hasattr(one.get("date"), "isoformat"):
            one = {**one, "date": one["date"].isoformat()}
        try:
            sets.append(DataSet.model_validate(one))
        except ValidationError as error:
            raise UserError(f"{path}: data set {number}: {first_problem(error)}; experts cannot be cut") from None
    names = [one.name for one in sets]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path}: two data sets are named {repeated[0]!r}")
    return sets


def groups(order: Sequence[int], steps: int) -> list[list[int]]:
    """The order cut into ``steps`` runs of near-equal length, longer ones first.

    Raises:
        UserError: there are fewer classes than steps.
    """
    if steps > len(order):
        raise UserError(f"--steps {steps}: there are only {len(order)} classes to deal out")
    each, longer = divmod(len(order), steps)
    ends = [each * (t + 1) + min(t + 1, longer) for t in range(steps)]
    return [list(order[end - each - (t < longer) : end]) for t, end in enumerate(ends)]


def arrivals(pairs: Sequence[Pair], order: Sequence[int], steps: int, prefix: str) -> list[dict[str, Any]]:
    """The stream, as params.yaml has it: one arrival for each step, with sources that read its classes alone."""
    width = max(len(str(steps)), 3)
    stream = []
    for number, group in enumerate(groups(order, steps), start=1):
        merged: dict[str, dict[str, Any]] = {}
        for i in sorted(group):
            for spec in pairs[i].sources:
                rest = {key: value for key, value in spec.items() if key != "only"}
                one = merged.setdefault(repr(rest), {**rest, "only": []})
                one["only"] += spec["only"]
        stream.append({"name": f"{prefix}-{number:0{width}d}", "update": list(merged.values())})
    return stream


def text(stream: Sequence[dict[str, Any]], remarks: Sequence[str]) -> str:
    """The stream as YAML, remarks before it as comments."""
    writer: Any = YAML(typ="safe")
    writer.default_flow_style = None  # leaves on one line
    writer.sort_base_mapping_type_on_output = False
    writer.width = 4096
    written = io.StringIO()
    writer.dump({"stream": list(stream)}, written)
    return "".join(f"# {one_line(remark)}\n" for remark in remarks) + written.getvalue()
