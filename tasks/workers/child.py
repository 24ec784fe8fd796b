"""``python -m tasks.workers.child``: runs one node after another, each in a fork of itself.

A fork starts with torch and open_clip imported, which takes a new process three seconds. A worker starts this process
with the code of a job on the path, and sends it only jobs with equal code: JSON requests on stdin, one a line. Answers
on stdout, one a line: each line of the node's stderr (``said``) and, when it has ended, ``status`` and ``seconds``.

This process ends with the worker that started it, and a fork ends with this process, even after SIGKILL.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import sys
import time
import traceback
from pathlib import Path

from tasks import processes
from tasks.model import light_imports, models


def main() -> None:
    processes.end_with(os.getppid(), every=0.5)
    models.preload()
    gc.freeze()  # a garbage collection in a fork would copy the shared memory
    code, own = os.getcwd(), os.getpid()  # noqa: PTH109
    for text in sys.stdin:
        request = json.loads(text)
        light_imports.load_towers(Path(request["folder"]))
        reading, writing = os.pipe()
        started = time.monotonic()
        fork = os.fork()
        if not fork:
            processes.end_with(own, every=0.5)  # a fork has no threads of its parent
            _settle(request["folder"], code, writing)
            os._exit(_run(request["command"]))  # a normal exit unloads torch for two seconds
        os.close(writing)
        with os.fdopen(reading, errors="replace", encoding="utf-8") as stderr:
            for line in stderr:
                _send(said=line.rstrip())
        _, status = os.waitpid(fork, 0)
        _send(status=os.waitstatus_to_exitcode(status), seconds=round(time.monotonic() - started, 3))


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
    """Give a fork the folder, path and descriptors that ``python -m`` in the folder of the job has."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor, target in ((nothing, 0), (nothing, 1), (stderr, 2)):
        os.dup2(descriptor, target)
    os.close(nothing)
    os.close(stderr)
    os.chdir(folder)
    sys.path[:] = [folder if path == code else path for path in sys.path]
    os.environ["PYTHONPATH"] = folder


def _send(**news: object) -> None:
    print(json.dumps(news), flush=True)


if __name__ == "__main__":
    main()
