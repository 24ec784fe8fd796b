"""Forking for calls: a process that has imported much answers each call on a socket with a fork of itself.

A call (`tasks.fork_call`) brings a working folder, an environment, a module with arguments, and three standard streams.
The answers are the fork's id and, once it has ended, its exit status, on a line each. A fork shares imports, nothing
else.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tasks import fork_call

Call = tuple[dict[str, Any], list[int]]
"""What is to run, as `fork_call.send` sent it, and the descriptors of its standard streams."""


def serve(
    listening: socket.socket, users: Sequence[int] = (), before: Callable[[Path], object] | None = None
) -> Call | None:
    """Fork for each call; returns in the fork, with its call, and at the end, with None, once there are no users.

    ``before`` is called with the call's folder before each fork, to import what all later forks then share.

    A user is what stays open as long as somebody may call: a descriptor given here, or a connection whose
    call has no streams.
    """
    wakeup, ended = socket.socketpair()
    wakeup.setblocking(False)
    ended.setblocking(False)
    restored = signal.set_wakeup_fd(wakeup.fileno()), signal.signal(signal.SIGCHLD, lambda *_: None)
    calls: dict[int, socket.socket] = {}
    using: set[object] = set(users)
    readables: list[socket.socket | int] = [listening, ended, *users]
    with selectors.DefaultSelector() as selector:
        for readable in readables:
            selector.register(readable, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is ended:
                    ended.recv(4096)
                    _report(calls)
                elif key.fileobj is listening:
                    connection, _ = listening.accept()
                    call, streams = _received(connection)
                    if not streams:
                        using.add(connection)
                        selector.register(connection, selectors.EVENT_READ)
                        continue
                    if before:
                        before(Path(call["folder"]))
                    if pid := os.fork():
                        calls[pid] = connection
                        connection.sendall(f"{pid}\n".encode())
                        for number in streams:
                            os.close(number)
                        continue
                    signal.set_wakeup_fd(restored[0])
                    signal.signal(signal.SIGCHLD, restored[1])
                    for one in (listening, wakeup, ended, connection, *calls.values(), *using):
                        if isinstance(one, socket.socket):
                            one.close()
                    return call, streams
                else:  # nobody writes more: this is a user's end
                    selector.unregister(key.fileobj)
                    using.remove(key.fileobj)
            if not using:
                return None


def _received(connection: socket.socket) -> Call:
    head, streams, *_ = socket.recv_fds(connection, fork_call.HEAD, 3)
    with connection.makefile("rb") as rest:
        return json.loads(rest.read(int(head))), streams


def _report(calls: dict[int, socket.socket]) -> None:
    """Tell those who wait what became of the processes that have ended."""
    while calls:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with calls.pop(pid) as connection, contextlib.suppress(BrokenPipeError):  # who called may be gone
            connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def become(call: dict[str, Any], streams: Sequence[int]) -> None:
    """Have the folder, the environment, the streams and the code of a call."""
    os.chdir(call["folder"])
    os.environ.clear()
    os.environ.update(call["environment"])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.path[0] = call["folder"]
    importlib.invalidate_caches()


def run(module: str, *arguments: str) -> NoReturn:
    """Run a module as ``python -m`` would, and end with its status.

    What Python does at its end is done, but for taking all modules apart: that would write to nearly every page of
    memory that the fork shares, which takes longer than a short command.
    """
    sys.argv = ["", *arguments]
    status: int | None = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as left:
        if not isinstance(left.code, int | None):
            print(left.code, file=sys.stderr)
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = None if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if status is None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((status or 0) & 0xFF)
