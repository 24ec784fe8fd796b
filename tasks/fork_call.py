"""A call of `tasks.forking`: how one is sent, and a program that is called as ``python`` is.

``fork_call.py FOLDER PYTHON ARGUMENT…`` has ``python -m MODULE …`` forked: FOLDER has the socket, PYTHON is the
interpreter for any other call, and where no server answers. Run as a file and without the site's packages, so that it
costs milliseconds.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

SOCKET = "nodes"
HEAD = 16
"""Bytes before a call's JSON: its length in decimal."""


def main(folder: str, python: str, *arguments: str) -> NoReturn:
    if len(arguments) > 1 and arguments[0] == "-m":
        status = forked(folder, arguments[1:])
        if status is not None and status < 0:
            if status != -signal.SIGKILL:  # which nothing handles
                signal.signal(-status, signal.SIG_DFL)
            os.kill(os.getpid(), -status)
        if status is not None:
            sys.exit(status)
    os.execv(python, [python, *arguments])


def forked(folder: str, arguments: tuple[str, ...]) -> int | None:
    """The exit status of ``python -m ARGUMENT…`` as a fork of the server; None where nothing was started."""
    call = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}  # noqa: PTH109
    place = os.open(folder, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(f"/proc/self/fd/{place}/{SOCKET}")  # a path of any length
            send(connection, call, (0, 1, 2))
            with connection.makefile("rb") as answers:
                started, ended = answers.readline(), answers.readline()
        except OSError:
            return None
    if not started:
        return None
    if not ended:
        sys.exit(f"the process that ran {' '.join(arguments)} ended unexpectedly")
    return int(ended)


def send(connection: socket.socket, call: Mapping[str, object], streams: Sequence[int]) -> None:
    """A call, with the descriptors of its standard streams."""
    body = json.dumps(call).encode()
    socket.send_fds(connection, [f"{len(body):{HEAD}}".encode()], streams)
    connection.sendall(body)


if __name__ == "__main__":
    main(*sys.argv[1:])
