"""A process that has imported what nodes import, and forks for each ``python -m MODULE`` that DVC runs.

Nodes of a small step spend most of their time on importing torch and open_clip, several seconds of a processor each.
A fork shares these imports, nothing else: it has the working folder, the environment, the arguments and the streams of
its call (`node_call`), and imports the code of its own folder. On Linux only: other systems' libraries do not take a
fork well.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import shlex
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from tasks import environment, processes
from tasks.record import node_call

_OWN = ("chronomerge", "flows", "tasks")
"""Packages of a project: a fork imports those of its own folder."""
_LIBRARIES = ("PIL.Image", "numpy", "pydantic", "ruamel.yaml", "safetensors.torch")
_RETAINED: list[object] = []
"""Modules of this project that defined operators of torch, which go when the modules do."""


@contextlib.contextmanager
def serving(home: Path, variables: Mapping[str, str], log: IO[Any]) -> Iterator[Path | None]:
    """A server for the block, with files of its own in ``home``; gives a folder with a ``python`` that asks it.

    None where there can be none. Its forks end with the block, and with this process.
    """
    if sys.platform != "linux":
        yield None
        return
    programs = home / "bin"
    programs.mkdir(parents=True)
    call = shlex.join([sys.executable, "-IS", node_call.__file__, str(home), sys.executable])
    (programs / "python").write_text(f'#!/bin/sh\nexec {call} "$@"\n')
    (programs / "python").chmod(0o755)
    process = processes.start(
        __name__, str(home), folder=environment.CODE, log=log, requests=True, variables=variables, own_session=True
    )
    assert process.stdin
    assert process.stdout
    try:
        listens = process.stdout.readline()
        yield programs if listens else None
    finally:
        process.stdin.close()
        processes.see_end(process, within=5)
        process.stdout.close()


def main() -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        place = os.open(sys.argv[1], os.O_PATH)
        listening.bind(f"/proc/self/fd/{place}/{node_call.SOCKET}")  # a path of any length
        os.close(place)
        listening.listen(64)  # who asks before all is imported waits
        print("listens", flush=True)
        _preload()
        call = _serve(listening)
    _become(*call)


def _preload() -> None:
    """Import libraries that nodes use, and nothing of a project."""
    from tasks.model import models

    models.preload()
    for name in _LIBRARIES:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] in _OWN]:
        _RETAINED.append(sys.modules.pop(name))
    gc.collect()
    gc.freeze()


def _serve(listening: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork for each call; returns in the fork, with the call. Ends, with all its forks, once its stdin does."""
    wakeup, ended = socket.socketpair()
    wakeup.setblocking(False)
    ended.setblocking(False)
    before = signal.set_wakeup_fd(wakeup.fileno()), signal.signal(signal.SIGCHLD, lambda *_: None)
    calls: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        for readable in (0, listening, ended):
            selector.register(readable, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj == 0:
                    os.killpg(0, signal.SIGTERM)
                elif key.fileobj is ended:
                    ended.recv(4096)
                    _report(calls)
                else:
                    connection, _ = listening.accept()
                    call, streams = _received(connection)
                    if pid := os.fork():
                        calls[pid] = connection
                        connection.sendall(b"started\n")
                        for number in streams:
                            os.close(number)
                        continue
                    signal.set_wakeup_fd(before[0])
                    signal.signal(signal.SIGCHLD, before[1])
                    for one in (wakeup, ended, connection, *calls.values()):
                        one.close()
                    return call, streams


def _received(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    head, streams, *_ = socket.recv_fds(connection, node_call.HEAD, 3)
    with connection.makefile("rb") as rest:
        return json.loads(rest.read(int(head))), streams


def _report(calls: dict[int, socket.socket]) -> None:
    """Tell those who wait what became of the processes that have ended."""
    while calls:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with calls.pop(pid) as connection, contextlib.suppress(BrokenPipeError):  # DVC may have been told to end
            connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _become(call: dict[str, Any], streams: list[int]) -> None:
    """Be the process of a call, from its folder to the module that it runs."""
    os.chdir(call["folder"])
    os.environ.clear()
    os.environ.update(call["environment"])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.path[0] = call["folder"]
    importlib.invalidate_caches()
    module, *arguments = call["arguments"]
    sys.argv = ["", *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
