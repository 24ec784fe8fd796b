"""``dvc repro`` in a process of its own: every node of a folder's ``dvc.yaml``, run again whatever is known of it.

Nodes that are modules run as forks of `tasks.record.node_server`, which has imported their libraries.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tasks import environment
from tasks.nodes import declared
from tasks.progress import Progress
from tasks.record import node_server

_NEEDED = ("HOME", "USER", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
_NEEDED_KINDS = ("LC_", "PYTHON", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "CUDA_", "CUBLAS_", "NVIDIA_", "TORCH_")


def _is_needed(variable: str) -> bool:
    """Whether recorded code gets a variable of the environment: never a credential of a store, a hub or a server."""
    return variable in _NEEDED or variable.startswith(_NEEDED_KINDS)


class Repro:
    """Runs ``dvc repro`` in one folder after another; the nodes of all are forks of one process.

    That process starts when it is first needed. What all print goes to ``verify.log`` in ``logs``; ``home`` takes what
    the process keeps for itself.
    """

    def __init__(self, home: Path, logs: Path) -> None:
        self._home, self._path = home, logs / "verify.log"
        self._stack = contextlib.ExitStack()
        self._programs: Path | None = None
        self._asked = False

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._log = self._stack.enter_context(self._path.open("w", encoding="utf-8"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def run(self, folder: Path, scratch: Path, progress: Progress) -> tuple[list[str], str | None]:
        """Run all nodes by force; nothing is put into DVC's cache, and nothing taken from its memory of earlier runs.

        Returns the nodes in the order they were started and, where the last of them failed, a sentence that says why.
        ``scratch`` takes what DVC keeps for itself.
        """
        nodes = declared(folder)
        total = len(nodes)
        path = [str(Path(sys.executable).parent), os.environ["PATH"]]  # nodes call `python`
        if any(node.cmd.startswith("python -m ") for node in nodes.values()) and (programs := self._served(path)):
            path.insert(0, str(programs))
        variables = {**_variables(path, folder), "DVC_SITE_CACHE_DIR": str(scratch / "dvc")}
        started: list[str] = []
        reason = "dvc repro did not start"
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro", "--force", "--no-commit", "--no-run-cache"],
            cwd=folder, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True, encoding="utf-8"
        )  # fmt: skip
        try:
            assert process.stdout
            for line in process.stdout:
                self._log.write(line)
                if stage := re.match(r"Running stage '(.+)':", line):
                    started.append(stage[1])
                    progress(started[-1], len(started) - 1, total)
                elif line.lower().startswith("error: ") and not reason.startswith("error: "):  # a node's own goes first
                    reason = line.strip()
            status = process.wait()
        finally:
            self._log.flush()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
        if status == 0:
            progress("", total, total)
            return started, None
        where = started[-1] if started else "dvc"
        return started, f"{where} failed: {reason.removeprefix('error: ')} (the log is {self._path})"

    def _served(self, path: Sequence[str]) -> Path | None:
        """The folder of the program that has nodes forked; its process has no recorded code on its path."""
        if not self._asked:
            self._asked = True
            serving = node_server.serving(self._home, _variables(path), self._log)
            self._programs = self._stack.enter_context(serving)
        return self._programs


def _variables(path: Sequence[str], code: Path | None = None) -> dict[str, str]:
    """What recorded code gets of this process's environment, with ``path`` as the search path for programs."""
    variables = {name: value for name, value in environment.for_child(code).items() if _is_needed(name)}
    return {**variables, "DVC_NO_ANALYTICS": "1", "PATH": os.pathsep.join(path)}
