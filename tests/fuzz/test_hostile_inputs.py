"""Whatever is in a drop or a checkpoint is accepted or refused readably: an hour of random inputs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Empty, Queue

import psutil
import pytest

from tests.arrive.conftest import PARAMS
from tests.fuzz import inputs, valid
from tests.project import ROOT, make

MINUTES = float(os.environ.get("CHRONOMERGE_FUZZ_MINUTES", "60"))
"""Of all kinds of input together."""
SECONDS = 10
"""Of the processor, that one input may take: on a busy machine a second lasts long."""
HANGS_AFTER = 120
"""Seconds on the clock without any use of the processor: then an input hangs. A busy machine only gives it less."""
BYTES = 1 << 30
"""Of memory that the process may take."""
FIRST_SECONDS = 60
"""For a process's first input, at which libraries are imported."""
AT_ONCE = 2000
"""Inputs of one process."""
ENOUGH = 20
"""Findings after which a kind is left."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    make(folder / "project")
    (folder / "project/params.yaml").write_text(PARAMS)
    (folder / "secret").mkdir()
    (folder / "secret/key").write_text("secret")
    (folder / "secret/key.png").write_bytes(inputs.png(5))
    valid.make(folder / "valid")
    return folder


@pytest.mark.long
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_every_input_is_accepted_or_refused_readably_in_time_and_memory(root: Path, kind: str) -> None:
    end = time.monotonic() + 60 * MINUTES / len(inputs.KINDS)
    number, findings = int(time.time()) * 1000, dict[int, str]()
    first = number
    while time.monotonic() < end and len(findings) < ENOUGH:
        number = _run(root, kind, number, end, findings)
    print(f"{kind}: {number - first} inputs, from number {first}")
    again = f"{sys.executable} -m tests.fuzz.child {root} {kind} NUMBER 1"
    assert not findings, f"{again}\n" + "\n".join(f"{kind} {at}: {why[-1500:]}" for at, why in findings.items())
    assert number > first


def _run(root: Path, kind: str, first: int, end: float, findings: dict[int, str]) -> int:
    """Let one process read inputs from number ``first``; returns the number of the next one."""
    # Threads that wait for one another on a busy machine would use the processor, and count.
    single = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fuzz.child", str(root), kind, str(first), str(AT_ONCE)],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=single,
    )  # fmt: skip
    lines: Queue[str] = Queue()
    threading.Thread(target=_collect, args=(process, lines), daemon=True).start()
    number, since, spent, other = first, time.monotonic(), 0.0, list[str]()
    moved, used = since, 0.0
    try:
        while True:
            try:
                line = lines.get(timeout=0.05)
            except Empty:
                line = None
            if line == "":
                findings[number] = f"the process ended: {process.wait()} {''.join(other)[-1000:]}"
                return number + 1
            word, _, rest = (line or "").partition(" ")
            if word == "start":
                number, since, spent = int(rest), time.monotonic(), _processor(process)
            elif word == "bad":
                findings[int(rest.split()[0])] = rest
            elif word == "end\n":
                return number + 1
            elif line:
                other.append(line)
            total, now = _processor(process), time.monotonic()
            if total > used + 0.1:
                moved, used = now, total
            if total - spent > (SECONDS if number > first else FIRST_SECONDS) or now - moved > HANGS_AFTER:
                findings[number] = f"takes more than {total - spent:.0f} s of the processor in {now - since:.0f} s"
                return number + 1
            if (taken := psutil.Process(process.pid).memory_info().rss) > BYTES:
                findings[number] = f"takes {taken} bytes of memory"
                return number + 1
            if (time.monotonic() > end and number > first) or len(findings) >= ENOUGH:
                return number
    finally:
        process.kill()
        process.wait()


def _processor(process: subprocess.Popen[str]) -> float:
    """Seconds of the processor that a process has used."""
    times = psutil.Process(process.pid).cpu_times()
    return float(times.user + times.system)


def _collect(process: subprocess.Popen[str], lines: Queue[str]) -> None:
    assert process.stdout
    for line in process.stdout:
        lines.put(line)
    lines.put("")
