"""Lanes: processes side by side that each run one cell of a grid after another."""

from __future__ import annotations

import json
import queue
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tasks import layout, processes, progress
from tasks.errors import UserError

END_SECONDS = 5.0
"""How long a lane may take to end politely."""


class Lane:
    """One process, started at once; it imports while nobody waits."""

    def __init__(self, number: int, project: Path):
        self.number, self.project = number, project
        self.log = layout.private(project) / "logs" / f"lane-{number}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = processes.start(
                "flows.processes.warm_process", folder=project, log=log, requests=True, own_session=True
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> None:
        """Return when it has imported everything.

        Raises:
            UserError: it ended instead; names its log.
        """
        if "ready" not in self._next():
            raise UserError(f"lane {self.number} did not start; its log is {self.log}")

    def run(self, name: str, job: dict[str, Any]) -> list[str]:
        """Run one cell and return the tags of the states it recorded.

        Raises:
            UserError: why the cell failed.
        """
        assert self._process.stdin
        try:
            print(json.dumps(job), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise self._gone() from None
        while True:
            news = self._next()
            if "tags" in news:
                tags: list[str] = news["tags"]
                return tags
            if "error" in news:
                raise UserError(news["error"])
            if news["done"] < news["total"]:
                at = f"{name} {news['what']} {news['note']}".rstrip()
                progress.report(f"lane {self.number}:", news["done"], news["total"], at)

    def end(self) -> None:
        """Tell it to end, whatever it is at: the next run finds what has finished, and tidies up the rest."""
        self._process.terminate()

    def ended(self, within: float) -> None:
        """Return when it has; one that has not heard, because it waits for another lane's node, say, is killed."""
        processes.see_end(self._process, within)

    def _next(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise self._gone()
        news: dict[str, Any] = json.loads(line)
        return news

    def _gone(self) -> UserError:
        return UserError(
            f"lane {self.number} ended in the middle (status {self._process.wait()}); its log is {self.log}. With too "
            "little memory for all, run fewer --lanes"
        )


@dataclass
class Lanes:
    """Some lanes, used as a context manager; who asks gets one that is free."""

    project: Path
    count: int
    _free: queue.Queue[Lane] = field(default_factory=queue.Queue)
    _all: list[Lane] = field(default_factory=list)
    _closed: bool = False

    def __enter__(self) -> Self:
        self._all = [Lane(number, self.project) for number in range(1, self.count + 1)]
        for lane in self._all:
            self._free.put(lane)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all lanes, whatever they are at; who waits for one, or asks for one later, gets an error."""
        self._closed = True
        for lane in self._all:
            lane.end()
        for lane in self._all:
            lane.ended(within=END_SECONDS)

    def wait(self) -> None:
        """Return when all have imported everything."""
        for lane in self._all:
            lane.wait()

    def run(self, name: str, job: dict[str, Any]) -> list[str]:
        """Run a cell in a free lane; see `Lane.run`. A lane that has ended is replaced."""
        lane = self._free.get()
        try:
            return lane.run(name, job)
        finally:
            if not lane.alive and not self._closed:
                lane = self._again(lane)
            self._free.put(lane)

    def _again(self, gone: Lane) -> Lane:
        new = Lane(gone.number, self.project)
        self._all[gone.number - 1] = new
        new.wait()
        return new
