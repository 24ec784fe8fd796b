"""A process that has imported what nodes import, and forks for each ``python -m MODULE`` that DVC runs.

Nodes of a small step spend most of their time on importing torch and open_clip, several seconds of a processor each.
A fork shares these imports, nothing else: it has the working folder, the environment, the arguments and the streams of
its call (`fork_call`), and imports the code of its own folder. On Linux only: other systems' libraries do not take a
fork well.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import shlex
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from tasks import environment, fork_call, forking, processes
from tasks.model import light_imports

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
    call = shlex.join([sys.executable, "-IS", fork_call.__file__, str(home), sys.executable])
    (programs / "python").write_text(f'#!/bin/sh\nexec {call} "$@"\n', encoding="utf-8")
    (programs / "python").chmod(0o755)
    # This module and not the recorded one; a fork has its own folder in place of the first.
    path = os.pathsep.join([str(environment.CODE), variables.get("PYTHONPATH", "")])
    process = processes.start(
        __name__, str(home), folder=environment.CODE, log=log, requests=True,
        variables={**variables, "PYTHONPATH": path}, own_session=True,
    )  # fmt: skip
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
        listening.bind(f"/proc/self/fd/{place}/{fork_call.SOCKET}")  # a path of any length
        os.close(place)
        listening.listen(64)  # who asks before all is imported waits
        print("listens", flush=True)
        _preload()
        called = forking.serve(listening, [sys.stdin.fileno()], light_imports.load_towers)
    if called is None:
        os.killpg(0, signal.SIGTERM)  # with all its forks
    else:
        forking.become(*called)
        forking.run(*called[0]["arguments"])


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


if __name__ == "__main__":
    main()
