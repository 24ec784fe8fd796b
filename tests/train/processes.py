"""Training in processes of its own that can be killed, forked from a server that has imported everything once."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from tasks.model import models
from tasks.params import Params
from tasks.train import node
from tasks.train.world import ALONE, joined

models.preload()  # the server has it before it forks
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


def start(project: Path, params: Params, size: int = 1) -> tuple[Sequence[BaseProcess], Connection]:
    """Start training in ``size`` processes; the connection gives the number of steps done, and closes at the end."""
    here, there = CONTEXT.Pipe(duplex=False)
    meeting = Path(tempfile.mkdtemp()) / "rendezvous"
    arguments = [
        (project, params.model_dump_json(), rank, size, meeting, there if not rank else None) for rank in range(size)
    ]
    ranks = [CONTEXT.Process(target=_rank, args=given) for given in arguments]
    for rank in ranks:
        rank.start()
    there.close()
    return ranks, here


def launched(project: Path, params: Params) -> tuple[BaseProcess, Connection]:
    """As `start`, through the node itself: a process of ours that the training processes are children of."""
    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_launched, args=(project, params.model_dump_json(), there))
    process.start()
    there.close()
    return process, here


def _launched(project: Path, params: str, heard: Connection) -> None:
    node.train(project, Params.model_validate_json(params), lambda _what, done, _total, _note="": heard.send(done))


def _rank(project: Path, params: str, rank: int, size: int, meeting: Path, heard: Connection | None) -> None:
    def progress(what: str, done: int, total: int, note: str = "") -> None:  # noqa: ARG001
        if heard:
            heard.send(done)

    settings = Params.model_validate_json(params)
    if size == 1:
        node.train_expert(project, settings, ALONE, progress)
        return
    with joined(meeting, rank, size) as world:
        node.train_expert(project, settings, world, progress)
