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
from pathlib import Path

from tasks import environment
from tasks.nodes import declared
from tasks.progress import Progress
from tasks.record import node_server

_NEEDED = ("HOME", "USER", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
_NEEDED_KINDS = ("LC_", "PYTHON", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "CUDA_", "CUBLAS_", "NVIDIA_", "TORCH_")


def _is_needed(variable: str) -> bool:
    """Whether recorded code gets a variable of the environment: never a credential of a store, a hub or a server."""
    return variable in _NEEDED or variable.startswith(_NEEDED_KINDS)


def repro(folder: Path, scratch: Path, logs: Path, progress: Progress) -> tuple[list[str], str | None]:
    """Run all nodes by force; nothing is put into DVC's cache, and nothing taken from its memory of earlier runs.

    Returns the nodes in the order they were started and, where the last of them failed, a sentence that says why. What
    it prints goes to ``verify.log`` in ``logs``; ``scratch`` takes what DVC keeps for itself.
    """
    nodes = declared(folder)
    total, modules = len(nodes), any(node.cmd.startswith("python -m ") for node in nodes.values())
    command = [sys.executable, "-m", "dvc", "repro", "--force", "--no-commit", "--no-run-cache"]
    path = [str(Path(sys.executable).parent), os.environ["PATH"]]  # nodes call `python`
    variables = {name: value for name, value in environment.for_child(folder).items() if _is_needed(name)}
    variables |= {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(scratch / "dvc"), "PATH": os.pathsep.join(path)}
    started: list[str] = []
    reason = "dvc repro did not start"
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / "verify.log").open("w") as log, contextlib.ExitStack() as stack:
        if modules and (programs := stack.enter_context(node_server.serving(scratch / "nodes", variables, log))):
            variables["PATH"] = os.pathsep.join([str(programs), *path])
        process = subprocess.Popen(
            command, cwd=folder, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        try:
            assert process.stdout
            for line in process.stdout:
                log.write(line)
                if stage := re.match(r"Running stage '(.+)':", line):
                    started.append(stage[1])
                    progress(started[-1], len(started) - 1, total)
                elif line.lower().startswith("error: ") and not reason.startswith("error: "):  # a node's own goes first
                    reason = line.strip()
            status = process.wait()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
    if status == 0:
        progress("", total, total)
        return started, None
    where = started[-1] if started else "dvc"
    return started, f"{where} failed: {reason.removeprefix('error: ')} (the log is {logs / 'verify.log'})"
