"""Evaluation divided among workers: each scores some of the test sets, with the same result as one worker."""

from __future__ import annotations

import heapq
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tasks.evaluate.node import EXPERT, SETS, Scores, measure, own_set, write
from tasks.evaluate.routing import Routing
from tasks.model import coded
from tasks.model.datasets import Dataset
from tasks.nodes import Part, Split
from tasks.params import Params
from tasks.progress import Progress, silent
from tasks.storage import atomic

RESULT = Path("scores.json")
"""The file with the scores of a part."""


def divide(project: Path, params: Params, count: int) -> list[Part]:
    """At most ``count`` parts, with about as many samples each; none if there is only one test set or worker."""
    sizes = {one.name: len(Dataset(project / SETS / one.name)) for one in params.evaluate.sets}
    count = min(count, len(sizes))
    if count < 2:
        return []
    shares: list[tuple[int, int, list[str]]] = [(0, number, []) for number in range(count)]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):  # the largest first, each to the least busy
        samples, number, names = shares[0]
        heapq.heapreplace(shares, (samples + sizes[name], number, [*names, name]))
    chosen = [names for _, _, names in sorted(shares, key=lambda share: share[1])]
    own, expert = own_set(params), str(coded.stored(project / EXPERT).relative_to(project))
    return [
        Part(
            tuple(names),
            (*(str(SETS / name) for name in sizes if name not in names), *([] if own in names else [expert])),
        )
        for names in chosen
    ]


def run(names: Sequence[str], project: Path, params: Params, progress: Progress = silent) -> None:
    """Score some test sets, and write their scores to `RESULT`."""
    chosen = [one for one in params.evaluate.sets if one.name in names]
    scores = measure(project, params, chosen, progress)
    nearest = {name: rows.tolist() for name, rows in scores.nearest.items()}
    own = {name: _plain(score) for name, score in scores.own.items()}
    content = {"nearest": nearest, "recall": scores.recall, "own": own}
    if scores.routing:
        content["routing"] = {
            name: {**asdict(one), "oracle": _plain(one.oracle)} for name, one in scores.routing.items()
        }  # fmt: skip
    atomic.write(project / RESULT, json.dumps(content))


def join(project: Path, params: Params, results: Sequence[bytes]) -> None:
    """Write what `tasks.evaluate.node.evaluate` would, from the results of the parts."""
    scores = Scores({}, {}, {})
    for result in results:
        part = json.loads(result)
        scores.nearest.update({name: np.array(rows, np.int32) for name, rows in part["nearest"].items()})
        scores.recall.update(part["recall"])
        for name, value in part["own"].items():
            scores.own[name] = _array(value)
        for name, value in part.get("routing", {}).items():
            scores.routing[name] = Routing(**{**value, "oracle": _array(value["oracle"])})
    write(project, params, scores)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _array(value: Any) -> Any:
    return np.array(value, np.int32) if isinstance(value, list) else value


SPLIT = Split(divide, run, RESULT.name, join)
