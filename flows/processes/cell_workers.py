"""Cell workers: processes that run at the same time, each one cell of a grid after another."""

from __future__ import annotations

import json
import queue
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flows.processes import messages
from tasks import layout, processes, progress
from tasks.errors import UserError

END_SECONDS = 5.0
"""How long a cell worker may take to end after a request to."""


class CellWorker:
    """One process, started at once: it imports while the store and the servers start."""

    def __init__(self, number: int, project: Path):
        self.number, self.project = number, project
        self.log = layout.private(project) / "logs" / f"cell-worker-{number}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = processes.start(
                "flows.processes.cell_worker_process", folder=project, log=log, requests=True, own_session=True
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> None:
        """Wait until it has imported everything.

        Raises:
            UserError: it ended instead; names its log.
        """
        if "ready" not in self._next():
            raise UserError(f"cell worker {self.number} did not start; its log is {self.log}")

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
        assert self._process.stdout
        tags = messages.outcome(iter(self._process.stdout.readline, ""), self._told(name))
        if tags is None:
            raise self._gone()
        return tags

    def _told(self, name: str) -> progress.Progress:
        """How progress in the cell ``name`` is reported; that its work has ended, its states say."""

        def told(what: str, done: int, total: int, note: str = "") -> None:
            if done < total:
                progress.report(f"cell worker {self.number}:", done, total, f"{name} {what} {note}".rstrip())

        return told

    def end(self) -> None:
        """Ask it to end, even in the middle of a cell: the next run reuses finished nodes and removes the rest."""
        self._process.terminate()

    def ended(self, within: float) -> None:
        """Wait until it has ended; kill it after ``within`` seconds, if it waits for another's node, say."""
        processes.see_end(self._process, within)

    def _next(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise self._gone()
        message: dict[str, Any] = json.loads(line)
        return message

    def _gone(self) -> UserError:
        return UserError(
            f"cell worker {self.number} ended early (status {self._process.wait()}); its log is {self.log}. "
            "If memory is too small for all, lower --parallel"
        )


@dataclass
class CellWorkers:
    """The cell workers of a grid, used as a context manager; `run` uses one that is free."""

    project: Path
    count: int
    _free: queue.Queue[CellWorker] = field(default_factory=queue.Queue)
    _all: list[CellWorker] = field(default_factory=list)
    _closed: bool = False

    def __enter__(self) -> Self:
        self._all = [CellWorker(number, self.project) for number in range(1, self.count + 1)]
        for worker in self._all:
            self._free.put(worker)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all cell workers, even in the middle of a cell; a `run` that waits or comes later gets an error."""
        self._closed = True
        for worker in self._all:
            worker.end()
        for worker in self._all:
            worker.ended(within=END_SECONDS)

    def wait(self) -> None:
        """Wait until all have imported everything."""
        for worker in self._all:
            worker.wait()

    def run(self, name: str, job: dict[str, Any]) -> list[str]:
        """Run a cell in a free cell worker; see `CellWorker.run`. One that has ended is replaced."""
        worker = self._free.get()
        try:
            return worker.run(name, job)
        finally:
            if not worker.alive and not self._closed:
                worker = self._restart(worker)
            self._free.put(worker)

    def _restart(self, gone: CellWorker) -> CellWorker:
        new = CellWorker(gone.number, self.project)
        self._all[gone.number - 1] = new
        new.wait()
        return new
