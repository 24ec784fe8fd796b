"""A process that has imported what tests import; the workers of a test session are forks of it.

``python -m tests.worker_server FOLDER``, itself a fork of `tests.fork_server`, listens in FOLDER until its standard
input ends. xdist starts ``python`` for each worker; `command` is what it calls instead.
"""

from __future__ import annotations

import gc
import importlib
import os
import shlex
import socket
import sys
import threading
from pathlib import Path

import pytest

from tasks import fork_call, forking
from tests import fork_server, forks
from tests.waiting import until

IMPORTED = (
    "chronomerge", "distributed", "flows.cli.status", "flows.cli.verification", "flows.prefect.server", "flows.run",
    "flows.withdraw", "hypothesis.extra.numpy", "hypothesis.strategies", "mlflow", "peft", "playwright.sync_api",
    "prefect.client.orchestration", "scipy.io", "scipy.linalg", "scipy.stats", "sklearn.discriminant_analysis",
    "sklearn.linear_model", "sklearn.neighbors", "torchvision.datasets", "torchvision.transforms.v2",
    "transformers.models.auto.image_processing_auto", "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip", "transformers.models.siglip.image_processing_siglip",
    "transformers.models.siglip.modeling_siglip", "transformers.pytorch_utils", "typer.testing",
)  # fmt: skip
"""What tests import and the command line does not."""


def command(folder: Path) -> str:
    """Start the server in a new folder; returns the command that stands for ``python``.

    The server ends with this process.
    """
    folder.mkdir()
    log = folder / "log"
    stdin, _lasting = os.pipe()
    with log.open("wb") as file:
        process = forks.server().start(
            Path(__file__).parents[1], os.environ, (stdin, file.fileno(), file.fileno()), __name__, str(folder)
        )
    os.close(stdin)

    def listens() -> bool:
        assert process.poll() is None, log.read_text()
        return (folder / fork_call.SOCKET).exists()

    until(listens, log.read_text)
    call = [sys.executable, "-IS", fork_call.__file__, str(folder), sys.executable, "-m", "tests.worker"]
    return shlex.join(call)


def compile_tests() -> None:
    """Have pytest compile the tests that it has not kept compiled, in two processes: each worker would do it.

    What cannot be collected is the workers' to report.
    """
    if sys.dont_write_bytecode:
        return
    ending = f".{sys.implementation.cache_tag}-pytest-{pytest.__version__}.pyc"
    changed = []
    for path in sorted(Path("tests").rglob("test_*.py")):
        compiled = path.parent / "__pycache__" / f"{path.stem}{ending}"
        if not compiled.exists() or compiled.stat().st_mtime < path.stat().st_mtime:
            changed.append(str(path))
    started = []
    for half in (changed[::2], changed[1::2]):
        if not half:
            continue
        if pid := os.fork():
            started.append(pid)
        else:
            os._exit(pytest.main(["--collect-only", "--quiet", "-p", "no:cacheprovider", *half]))
    for pid in started:
        os.waitpid(pid, 0)


def main(folder: Path) -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    compile_tests()
    gc.collect()
    gc.freeze()
    assert threading.active_count() == 1, threading.enumerate()
    place = os.open(folder, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"/proc/self/fd/{place}/new")  # a path of any length
        listening.listen()
        (folder / "new").rename(folder / fork_call.SOCKET)
        called = forking.serve(listening, users=(sys.stdin.fileno(),))
    if called:
        fork_server.begin(*called)
        forking.run(*called[0]["arguments"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
