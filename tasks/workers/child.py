"""``python -m tasks.workers.child``: runs one node after another, each in a fork of itself.

A fork begins with torch and open_clip imported, which takes a fresh process three seconds. A worker starts this with a
job's own code on the path, and gives it jobs of equal code only: one JSON request a line on stdin. Answers on stdout, a
JSON line each: what the node says on stderr (``said``) and, when it has ended, its ``status`` and ``seconds``.

This process ends with the worker that started it, and a fork with this process, however they end.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import sys
import time
import traceback

from tasks import processes
from tasks.model import models


def main() -> None:
    processes.end_with(os.getppid(), every=0.5)
    models.preload()
    gc.freeze()  # a collection in a fork would copy what they share
    code, own = os.getcwd(), os.getpid()  # noqa: PTH109
    for line in sys.stdin:
        request = json.loads(line)
        reading, writing = os.pipe()
        started = time.monotonic()
        fork = os.fork()
        if not fork:
            processes.end_with(own, every=0.5)  # threads are not forked
            _settle(request["folder"], code, writing)
            os._exit(_run(request["command"]))  # to take torch apart would cost two seconds
        os.close(writing)
        with os.fdopen(reading, errors="replace") as said:
            for sentence in said:
                _tell(said=sentence.rstrip())
        _, status = os.waitpid(fork, 0)
        _tell(status=os.waitstatus_to_exitcode(status), seconds=round(time.monotonic() - started, 3))


def _run(command: list[str]) -> int:
    """Run a module as ``python -m`` would, and return the exit status."""
    sys.argv = command
    status = 0
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    return status


def _settle(folder: str, code: str, stderr: int) -> None:
    """Make a fork what ``python -m`` in the job's folder would be."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor, target in ((nothing, 0), (nothing, 1), (stderr, 2)):
        os.dup2(descriptor, target)
    os.close(nothing)
    os.close(stderr)
    os.chdir(folder)
    sys.path[:] = [folder if path == code else path for path in sys.path]
    os.environ["PYTHONPATH"] = folder


def _tell(**news: object) -> None:
    print(json.dumps(news), flush=True)


if __name__ == "__main__":
    main()
