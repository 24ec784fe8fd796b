"""Where the time of a node on a worker goes: functions of the flow and of the worker, timed while they run.

`scaling.py` starts the flow through this (``python spans.py FILE ARGUMENT…`` is the command line of the project on the
path), and has Dask load it in the worker (``dask worker --preload spans.py``), which tells what it found as events.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOPIC = "chronomerge-spans"


@dataclass
class Spans:
    """Seconds in functions, by label, one dictionary for each call of the outermost one."""

    name: Callable[..., str]
    """What the outermost call is about, from its arguments."""
    report: Callable[[dict[str, Any]], object]
    """Takes one dictionary."""
    _open: list[dict[str, Any]] = field(default_factory=list)

    def outermost(self, home: Any, function: str, label: str) -> None:
        def around(call: Callable[[], Any], *args: Any) -> Any:
            span: dict[str, Any] = {"node": self.name(*args)}
            self._open.append(span)
            try:
                return self._timed(call, label)
            finally:
                self._open = [one for one in self._open if one is not span]  # nodes may run side by side
                self.report(span)

        _wrap(home, function, around)

    def within(self, home: Any, function: str, label: str | Callable[..., str]) -> None:
        """``label`` may be made of the call's arguments."""

        def around(call: Callable[[], Any], *args: Any) -> Any:
            return self._timed(call, label if isinstance(label, str) else label(*args))

        _wrap(home, function, around)

    def counted(self, home: Any, function: str, label: str) -> None:
        def around(call: Callable[[], Any], *_: Any) -> Any:
            self._add(label, 1)
            return call()

        _wrap(home, function, around)

    def _timed(self, call: Callable[[], Any], label: str) -> Any:
        started = time.monotonic()
        try:
            return call()
        finally:
            self._add(label, time.monotonic() - started)

    def _add(self, label: str, amount: float) -> None:
        for span in self._open:
            span[label] = span.get(label, 0) + amount


def _wrap(home: Any, function: str, around: Callable[..., Any]) -> None:
    original = getattr(home, function)

    @functools.wraps(original)
    def wrapped(*args: Any, **more: Any) -> Any:
        return around(lambda: original(*args, **more), *args)

    setattr(home, function, wrapped)


def _time_flow(report: Callable[[dict[str, Any]], object]) -> None:
    import httpx

    from flows import timeline, timestep
    from tasks.storage.dvc import Dvc
    from tasks.workers import pool

    spans = Spans(lambda _step, name, *_: str(name), report)
    spans.outermost(timestep, "execute", "whole")
    spans.within(pool.WorkerPool, "run", "pool")
    spans.within(pool.WorkerPool, "_result", "there and back")
    spans.within(pool, "packed", "pack")
    spans.within(pool, "bring", "fetch back")
    spans.within(Dvc, "__call__", lambda _dvc, action, *_: f"dvc {action}")
    for kind in (httpx.Client, httpx.AsyncClient):
        spans.counted(kind, "send", "requests to Prefect")
    steps = Spans(lambda _project, step, *_: f"step {step}", report)
    steps.outermost(timeline, "timestep", "whole")
    for kind in (httpx.Client, httpx.AsyncClient):
        steps.counted(kind, "send", "requests to Prefect")
    steps.within(timestep, "record_state", "record")


def dask_setup(worker: Any) -> None:
    """Time the worker's side of nodes from now on: Dask calls this as a worker starts."""
    from tasks.storage.cache import Cache
    from tasks.storage.dvc import Dvc
    from tasks.workers import warm_pool
    from tasks.workers import worker as ours

    spans = Spans(lambda job: str(job.node), lambda span: worker.log_event(TOPIC, span))
    spans.outermost(ours, "run", "whole")
    spans.within(ours, "_require_same", "same")
    spans.within(ours, "unpack", "unpack")
    spans.within(ours, "bring", "inputs")
    spans.within(ours, "_execute", "process")
    spans.within(Cache, "put", "put")
    spans.within(warm_pool, "WarmProcess", "start")
    spans.within(warm_pool, "Dvc", "start")
    spans.within(Dvc, "__call__", lambda _dvc, action, *_: f"dvc {action}")


def main() -> None:
    from flows import run
    from flows.cli.app import app

    file, *arguments = sys.argv[1:]
    spans: list[dict[str, Any]] = []
    flow = run._flow

    def timed(*args: Any) -> list[str]:
        _time_flow(spans.append)  # not before: Prefect reads its settings as it is imported
        return flow(*args)

    run._flow = timed
    try:
        app(arguments)
    finally:
        Path(file).write_text(json.dumps(spans), encoding="utf-8")


if __name__ == "__main__":
    main()
