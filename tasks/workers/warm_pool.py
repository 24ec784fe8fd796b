"""The warm process pool of a worker: processes that jobs reuse, so that a node starts without imports."""

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


class WarmProcess:
    """A process of `tasks.workers.child` with the code of a job; it runs one node at a time."""

    def __init__(self, home: Path, code: bytes):
        self.code = code
        with ExitStack() as stack:
            folder = stack.enter_context(atomic.private_folder(layout.private(home) / "workers")).resolve()
            unpack(code, folder)
            variables = {**environment.for_child(), "PYTHONPATH": str(folder)}  # only the code of the job
            self._process = processes.start(
                "tasks.workers.child", folder=folder, log=None, requests=True, variables=variables
            )
            stack.enter_context(self._process)
            self._resources = stack.pop_all()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def run(self, folder: Path, command: Sequence[str], on_line: Callable[[str], None]) -> tuple[int, float]:
        """Run a module with its arguments in a folder; return its exit status and its wall time in seconds.

        ``on_line`` is called with every line of its stderr.
        """
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps({"folder": str(folder), "command": command}), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            message: dict[str, Any] = json.loads(line)
            if "status" in message:
                return message["status"], message["seconds"]
            on_line(message["said"])
        return self._process.wait(), 0.0  # it was killed, and its fork with it

    def close(self) -> None:
        """Kill it, and with it the node that it runs."""
        self._process.kill()
        self._resources.close()


_dvcs: list[Dvc] = []
_warm: list[WarmProcess] = []
"""Idle processes: no job uses them now."""

T = TypeVar("T", Dvc, WarmProcess)


@contextmanager
def dvc(home: Path) -> Iterator[Dvc]:
    """A DVC process for one job; see `_borrowed`."""
    with _borrowed(_dvcs, lambda one: one.alive, lambda: Dvc(home)) as process:
        yield process


@contextmanager
def warm_process(home: Path, code: bytes) -> Iterator[WarmProcess]:
    """A process with the code of one job, for that job; see `_borrowed`."""
    with _borrowed(_warm, lambda one: one.alive and one.code == code, lambda: WarmProcess(home, code)) as process:
        yield process


@contextmanager
def _borrowed(idle: list[T], fits: Callable[[T], bool], start: Callable[[], T]) -> Iterator[T]:
    """An idle process if it fits, else a new one; idle again if the job succeeds, ended if it fails.

    All of them end with the worker, even if that is killed.
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
