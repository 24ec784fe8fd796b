"""Training in several processes on this machine: torchrun starts them, and they end with who asked for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.params import Params
from tasks.progress import Progress

CODE = Path(__file__).parents[2]


def launch(project: Path, params: Params, processes: int, threads: int, progress: Progress) -> None:
    """Train the project's expert in ``processes`` processes of ``threads`` threads; rank 0 writes the outputs.

    Raises:
        UserError: as training in one process.
        RuntimeError: a process ended otherwise; with the end of what they wrote on stderr.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".json") as settings, tempfile.TemporaryFile("w+") as log:
        settings.write(params.model_dump_json())
        settings.flush()
        run = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone",
               "--local-addr=127.0.0.1", "-m", "tasks.train", "worker", settings.name]  # fmt: skip
        path = os.pathsep.join(filter(None, [str(CODE), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
        with subprocess.Popen(
            run, cwd=project, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        ) as started:
            try:
                error = _hear(started, progress)
            except BaseException:
                started.terminate()
                raise
        if error:
            raise UserError(error)
        if started.returncode:
            log.seek(0)
            raise RuntimeError(f"the training processes ended with status {started.returncode}: {log.read()[-2000:]}")


def _hear(started: subprocess.Popen[str], progress: Progress) -> str:
    """Pass on what the processes report; the first error among it, or nothing."""
    error = ""
    assert started.stdout is not None
    for line in started.stdout:
        news = json.loads(line)
        if "error" in news:
            error = error or news["error"]
        else:
            progress(news["what"], news["done"], news["total"], news["note"])
    return error


def worker(settings: Path) -> None:
    """One of the processes: torchrun's environment says which."""
    from tasks.train.node import train_expert
    from tasks.train.world import joined

    threading.Thread(target=_end_with_parent, daemon=True).start()
    params = Params.model_validate_json(settings.read_text())
    with joined() as world:

        def progress(what: str, done: int, total: int, note: str = "") -> None:
            if world.rank == 0:
                _tell(what=what, done=done, total=total, note=note)

        try:
            train_expert(Path(), params, world, progress)
        except UserError as error:
            _tell(error=str(error))
            sys.exit(2)


def _tell(**news: Any) -> None:
    print(json.dumps(news), flush=True)


def _end_with_parent() -> None:
    """Our standard input is a pipe that nobody writes to: it ends when its other end dies, however that dies."""
    os.read(0, 1)  # not sys.stdin, whose lock the interpreter would miss at its end
    os._exit(1)
