"""Training in several processes on this machine, which end with the process that started them.

Their rendezvous is a file (a ``FileStore`` in a folder that only the user can open), so no port is open for it:
torchrun's rendezvous accepts every client on every interface, and unpickles what it receives. During training they
exchange only numbers, over connections of gloo or NCCL on the loopback interface. These have no sign-in: another user
of this machine who finds a port could disturb the training, but cannot run code.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tasks import environment, processes
from tasks.errors import UserError
from tasks.params import Params
from tasks.progress import Progress

LOOK_SECONDS = 0.2
"""Between two checks whether a process has ended."""
END_SECONDS = 5.0
"""How long processes may take to end after one of them has failed."""


def launch(project: Path, params: Params, count: int, threads: int, progress: Progress) -> None:
    """Train the project's expert in ``count`` processes of ``threads`` threads; rank 0 writes the outputs.

    Raises:
        UserError: as training in one process.
        RuntimeError: a process ended early; the message has the end of their stderr.
    """
    with tempfile.TemporaryDirectory(prefix="chronomerge-") as folder, tempfile.TemporaryFile("w+") as log:
        (Path(folder) / "params.json").write_text(params.model_dump_json(), encoding="utf-8")
        with _started(project, Path(folder), count, threads, log) as (ranks, messages):
            error = _forward(ranks, messages, progress)
        if error:
            raise UserError(error)
        if failed := [rank.returncode for rank in ranks if rank.returncode]:
            log.seek(0)
            raise RuntimeError(f"a training process ended with status {failed[0]}: {log.read()[-2000:]}")


@contextmanager
def _started(
    project: Path, folder: Path, count: int, threads: int, log: IO[str]
) -> Iterator[tuple[Sequence[subprocess.Popen[str]], int]]:
    """The processes, and the descriptor on which their messages arrive; running ones are ended afterwards."""
    reading, writing = os.pipe()
    ranks: list[subprocess.Popen[str]] = []
    try:
        for rank in range(count):
            ranks.append(
                processes.start(
                    "tasks.train.launch", str(folder), str(rank), str(count), str(os.getpid()),
                    folder=project, log=log, answers=writing,
                    variables=environment.for_child(OMP_NUM_THREADS=str(threads)),
                )
            )  # fmt: skip
        os.close(writing)
        writing = -1
        yield ranks, reading
    finally:
        for one in ranks:
            if one.poll() is None:
                one.terminate()
        for one in ranks:
            processes.see_end(one, END_SECONDS)
        os.close(reading)
        if writing >= 0:
            os.close(writing)


def _forward(ranks: Sequence[subprocess.Popen[str]], messages: int, progress: Progress) -> str:
    """Forward progress until all processes have ended or one has failed; returns the first error, or ``""``."""
    error, buffered = "", b""
    with selectors.DefaultSelector() as selector:
        selector.register(messages, selectors.EVENT_READ)
        while True:
            failed = any(rank.poll() for rank in ranks)
            if not selector.select(0 if failed else LOOK_SECONDS):
                if failed:
                    return error
                continue
            chunk = os.read(messages, 65536)
            if not chunk:
                return error
            *lines, buffered = (buffered + chunk).split(b"\n")
            for message in map(json.loads, lines):
                if "error" in message:
                    error = error or message["error"]
                else:
                    progress(message["what"], message["done"], message["total"], message["note"])


def worker(folder: Path, rank: int, count: int, parent: int) -> None:
    """The main function of one process."""
    processes.end_with(parent, every=LOOK_SECONDS)
    from tasks.train.node import train_expert
    from tasks.train.world import joined

    params = Params.model_validate_json((folder / "params.json").read_text(encoding="utf-8"))
    with joined(folder / "rendezvous", rank, count) as world:

        def progress(what: str, done: int, total: int, note: str = "") -> None:
            if world.rank == 0:
                _send(what=what, done=done, total=total, note=note)

        try:
            train_expert(Path(), params, world, progress)
        except UserError as error:
            _send(error=str(error))
            sys.exit(2)


def _send(**message: Any) -> None:
    """Send a message in one write, because all processes share the pipe."""
    os.write(1, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    worker(Path(sys.argv[1]), *map(int, sys.argv[2:]))
