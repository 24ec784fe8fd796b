"""A process that has imported what the command line imports, and forks for each call of it.

``python -m tests.fork_server SOCKET`` serves one test session: each connection brings the working folder, the
environment, the arguments, and the three standard streams of a call; the answer is the id of the forked process and,
once it has ended, its status. Imports are shared, nothing else: the fork has its own id, session, environment,
streams and signals, runs the code of the folder that it works in, and ends as any Python program does.
"""

from __future__ import annotations

import _imp
import gc
import importlib
import importlib.util
import io
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder, SourceLoader
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Self

from tests import forks

PREFECT = (
    "prefect", "prefect.artifacts", "prefect.cache_policies", "prefect.client.schemas.objects", "prefect.flow_engine",
    "prefect.task_engine", "prefect.utilities.visualization",
)  # fmt: skip
OTHERS = (
    "aiobotocore.session", "boto3", "botocore.session", "configobj", "datasets", "dulwich.client", "dvc.data_cloud",
    "dvc.repo", "dvc.repo.plots", "dvc.scm", "dvc_s3", "httpx", "numpy",
    "PIL.Image", "psutil", "pyarrow.parquet", "pydantic", "rich.progress", "ruamel.yaml", "s3fs", "safetensors.torch",
    "typer",
)  # fmt: skip
OWN = ("chronomerge", "flows", "tasks", "tests")
"""Packages of the project: a fork imports those of its own folder."""
FORKED = ("tasks.record.node_server", "tasks.storage.dvc_process")
"""Processes that a forked command starts, which import much."""
_RETAINED: list[ModuleType] = []
"""Modules of the project that defined operators of torch, which go when the modules do."""
_COMPILED: dict[bytes, CodeType] = {}
"""Text of a file of the project → what it compiles to: most forks run the very code that is tested."""


def preload() -> None:
    """Import what takes long, and nothing of the project."""
    from tasks.model import models

    models.preload()
    for name in (*OTHERS, *PREFECT):
        importlib.import_module(name)
    importlib.import_module("PIL.Image").init()
    importlib.import_module("boto3").Session("x", "x", region_name="us-east-1").client("s3")
    for name in [name for name in sys.modules if name.partition(".")[0] in OWN]:
        if name != __name__:
            _RETAINED.append(sys.modules.pop(name))
    sys.meta_path.insert(0, _Later())
    for package in ("chronomerge", "flows", "tasks"):
        for path in Path(package).rglob("*.py"):
            text = path.read_bytes()
            _COMPILED[text] = compile(text, path, "exec", dont_inherit=True)
    gc.collect()
    gc.freeze()
    assert threading.active_count() == 1, threading.enumerate()


def _source_to_code(_loader: SourceLoader, data: bytes, path: str, *, _optimization: int = -1) -> CodeType:
    """As `SourceLoader.source_to_code`, with what `_COMPILED` has."""
    if code := _COMPILED.get(bytes(data)):
        _imp._fix_co_filename(code, path)  # as the import system does with code that was compiled elsewhere
        return code
    compiled: CodeType = compile(data, path, "exec", dont_inherit=True, optimize=_optimization)
    return compiled


class _Later(MetaPathFinder, Loader):
    """Hides Prefect until it is imported: it reads its settings from the environment of that moment."""

    def __init__(self) -> None:
        names = [name for name in sys.modules if name.partition(".")[0] == "prefect"]
        self._hidden = {name: sys.modules.pop(name) for name in names}

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        if fullname != "prefect":
            return None
        sys.meta_path.remove(self)
        return importlib.util.spec_from_loader("prefect", self)

    def create_module(self, _: ModuleSpec) -> ModuleType:
        self._spec = self._hidden["prefect"].__spec__
        return self._hidden["prefect"]

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec
        sys.modules.update(self._hidden)
        sys.modules["prefect.context"].refresh_global_settings_context()
        sys.modules["prefect.logging.configuration"].setup_logging(incremental=False)


def serve(path: str) -> tuple[dict[str, Any], list[int]] | None:
    """Fork for each call; returns in the fork, with the call, and at the end, with None, once nobody is connected."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"{path}.new")
    listening.listen(64)
    wakeup, ended = socket.socketpair()
    wakeup.setblocking(False)
    ended.setblocking(False)
    old = signal.set_wakeup_fd(wakeup.fileno()), signal.signal(signal.SIGCHLD, lambda *_: None)
    calls: dict[int, socket.socket] = {}
    users: set[socket.socket] = set()
    with selectors.DefaultSelector() as selector:
        selector.register(listening, selectors.EVENT_READ)
        selector.register(ended, selectors.EVENT_READ)
        Path(f"{path}.new").rename(path)
        while True:
            for key, _ in selector.select():
                ready = key.fileobj
                assert isinstance(ready, socket.socket)
                if ready is ended:
                    ended.recv(4096)
                    _report(calls)
                elif ready is listening:
                    connection, _ = listening.accept()
                    call, streams = _received(connection)
                    if not streams:  # a session, which stays connected as long as it lasts
                        users.add(connection)
                        selector.register(connection, selectors.EVENT_READ)
                        continue
                    if pid := os.fork():
                        connection.sendall(f"{pid}\n".encode())
                        calls[pid] = connection
                        for number in streams:
                            os.close(number)
                        continue
                    signal.set_wakeup_fd(old[0])
                    signal.signal(signal.SIGCHLD, old[1])
                    for one in (listening, wakeup, ended, connection, *calls.values(), *users):
                        one.close()
                    return call, streams
                else:
                    selector.unregister(ready)
                    users.discard(ready)
                    ready.close()
            if not users:
                Path(path).unlink()
                return None


def _received(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A call: the length of its JSON on a line, its streams beside that, and then the JSON."""
    head, streams, *_ = socket.recv_fds(connection, 16, 3)
    with connection.makefile("rb") as rest:
        return json.loads(rest.read(int(head))), streams


def _report(calls: dict[int, socket.socket]) -> None:
    """Tell those who wait what became of the processes that have ended."""
    while calls:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with calls.pop(pid) as connection:
            try:
                connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            except BrokenPipeError:
                continue  # nobody waits any more


def become(call: dict[str, Any], streams: Sequence[int]) -> None:
    """Be the process of a call, from its session to the module that it runs."""
    os.setsid()
    os.chdir(call["cwd"])
    os.environ.clear()
    os.environ.update(call["environment"])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = sys.__stdin__ = _text(0, "r")
    sys.stdout = sys.__stdout__ = _text(1, "w")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _text(2, "w", errors="backslashreplace", line_buffering=True)  # type: ignore[misc]
    sys.modules.pop("tests", None)
    sys.path[0] = call["cwd"]
    SourceFileLoader.source_to_code = _source_to_code  # type: ignore[assignment, method-assign]
    importlib.invalidate_caches()
    if call["forking"]:
        forks.FOLDER = Path(call["forking"])
        subprocess.Popen = _Popen  # type: ignore[misc]
    if "huggingface_hub.constants" in sys.modules:
        importlib.reload(sys.modules["huggingface_hub.constants"])  # it has read the environment
    sys.argv = ["", *call["arguments"]]
    runpy.run_module(call["module"], run_name="__main__", alter_sys=True)


class _Popen(subprocess.Popen[Any]):
    """As its base; a process of `FORKED` is a fork too, which does not notice when this one is killed."""

    def __new__(cls, command: Any, **options: Any) -> Self:
        if isinstance(command, list) and command[1:2] == ["-m"] and command[2] in FORKED:
            return forks.connected(command, **options)  # type: ignore[return-value]
        return super().__new__(cls)


def _text(number: int, mode: str, errors: str = "strict", line_buffering: bool = False) -> io.TextIOWrapper:
    raw = os.fdopen(number, f"{mode}b", closefd=False)
    return io.TextIOWrapper(raw, errors=errors, line_buffering=line_buffering or os.isatty(number))


if __name__ == "__main__":
    preload()
    if called := serve(sys.argv[1]):
        become(*called)
