"""What a worker keeps from one job to the next, so that a node costs no start of processes and no imports."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tasks import environment, layout, processes
from tasks.storage import atomic
from tasks.storage.dvc import Dvc
from tasks.workers.job import unpack


class Nursery:
    """A process of `tasks.workers.child` with some job's code: runs one node at a time."""

    def __init__(self, home: Path, code: bytes):
        self.code = code
        with ExitStack() as stack:
            folder = stack.enter_context(atomic.private_folder(layout.private(home) / "workers")).resolve()
            unpack(code, folder)
            variables = {**environment.for_child(), "PYTHONPATH": str(folder)}  # the job's code and no other
            self._process = processes.start(
                "tasks.workers.child", folder=folder, log=None, requests=True, variables=variables
            )
            stack.enter_context(self._process)
            self._ends = stack.pop_all()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def run(self, folder: Path, command: Sequence[str], hear: Callable[[str], None]) -> tuple[int, float]:
        """Run a module with its arguments in a folder; returns its exit status, and its wall time in seconds.

        ``hear`` gets every line of its stderr.
        """
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps({"folder": str(folder), "command": command}), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            news: dict[str, Any] = json.loads(line)
            if "status" in news:
                return news["status"], news["seconds"]
            hear(news["said"])
        return self._process.wait(), 0.0  # somebody killed it, and so its fork

    def close(self) -> None:
        """End it, and with it what it runs."""
        self._process.kill()
        self._ends.close()


_dvcs: list[Dvc] = []
_nurseries: list[Nursery] = []
"""Those that no job uses now."""

T = TypeVar("T", Dvc, Nursery)


@contextmanager
def dvc(home: Path) -> Iterator[Dvc]:
    """DVC for the time of a job; see `_lent`."""
    with _lent(_dvcs, lambda one: one.alive, lambda: Dvc(home)) as lent:
        yield lent


@contextmanager
def nursery(home: Path, code: bytes) -> Iterator[Nursery]:
    """A nursery with a job's own code for its time; see `_lent`."""
    with _lent(_nurseries, lambda one: one.alive and one.code == code, lambda: Nursery(home, code)) as lent:
        yield lent


@contextmanager
def _lent(idle: list[T], fits: Callable[[T], bool], start: Callable[[], T]) -> Iterator[T]:
    """What an earlier job has left, if it fits, or a new one; the next job's if this one succeeds, else ended.

    They end with the worker, however that ends.
    """
    one = idle.pop() if idle else None
    if one and not fits(one):
        one.close()
        one = None
    one = one or start()
    try:
        yield one
    except BaseException:
        one.close()
        raise
    idle.append(one)
