"""DVC in a child process, started early so that its import overlaps with other work."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tasks import environment, layout, processes
from tasks.errors import ReadableError, UserError
from tasks.storage import dvc_config


class RemoteError(ReadableError):
    """The store could not be reached or refused a request; another try may succeed. The message is DVC's own."""


class Dvc:
    """A DVC process, used as a context manager; one request at a time, and threads wait for each other."""

    def __init__(self, project: Path):
        private = layout.make_private(project)
        self.log = private / "logs" / "dvc.log"
        self.log.parent.mkdir(exist_ok=True)
        notes = private / "dvc"
        notes.mkdir(exist_ok=True)
        self._notes = tempfile.TemporaryDirectory(prefix=f"{os.getpid()}-", dir=notes)
        variables = environment.for_child(DVC_NO_ANALYTICS="1", DVC_SITE_CACHE_DIR=self._notes.name)
        self._turn = threading.Lock()
        with self.log.open("ab") as log:
            self._process = processes.start(
                "tasks.storage.dvc_process", folder=project, log=log, requests=True, variables=variables,
                own_session=True,
            )  # fmt: skip

    def __call__(self, action: str, folder: Path, **arguments: Any) -> dict[str, Any]:
        """Run one action of `tasks.storage.dvc_process` in a folder.

        Raises:
            RemoteError: a transfer failed.
            UserError: DVC refuses, or its configuration there could run commands; or its process is gone. Names the
                log.
        """
        dvc_config.require_harmless(folder)
        assert self._process.stdin
        assert self._process.stdout
        request = {"action": action, "folder": str(folder), "arguments": arguments}
        with self._turn:
            try:
                print(json.dumps(request), file=self._process.stdin, flush=True)
                line = self._process.stdout.readline()
            except BrokenPipeError:
                line = ""
        if not line:
            raise UserError(f"the DVC process ended unexpectedly; its log is {self.log}")
        answer = json.loads(line)
        if "error" in answer:
            if answer["may_pass"]:
                raise RemoteError(answer["error"])
            raise UserError(f"DVC refuses: {answer['error']} (its log is {self.log})")
        value: dict[str, Any] = answer["value"]
        return value

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # it has ended, and a request has failed with that
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._notes.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if kind:
            self._process.terminate()  # nothing refers yet to what it is writing
        self.close()


_reused: ContextVar[Dvc | None] = ContextVar("reused", default=None)


@contextmanager
def reused(project: Path) -> Iterator[None]:
    """One DVC process for all that the block records: starting one takes 1.5 s of processor time."""
    with Dvc(project) as dvc:
        before = _reused.set(dvc)
        try:
            yield
        finally:
            _reused.reset(before)


@contextmanager
def open_dvc(project: Path) -> Iterator[Dvc]:
    """The DVC process of the enclosing `reused` block; without one, a new process for this block."""
    if dvc := _reused.get():
        yield dvc
    else:
        with Dvc(project) as dvc:
            yield dvc
