"""What recording a step costs beside the raw work that no recording can do without.

    .venv/bin/python benchmarks/record.py [--megabytes 600] [--repeat 3] [--folder DIR]

Records steps of new weights (half of them the expert, half the deployed model), from finished node outputs in the
worktree to the tag, into the embedded store. The raw work, in the same run and on the same files: one md5 pass, one
hardlink each, one upload by boto3 alone (multipart, parts and concurrency as DVC has them) into the same store. Prints
the medians, the ratio, the bytes that were stored, the memory of this process and of DVC's (anonymous pages, peak of
the sum), and the time to restore the state from a warm cache; says which goals are met, and ends with status 1 if one
is not.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from boto3.s3.transfer import TransferConfig
from s3fs.core import calculate_chunksize

sys.path.append(str(Path(__file__).parents[1]))

from tasks import layout, nodes
from tasks.record import project_code, recording, restoration, timelines, worktrees
from tasks.record.state import State
from tasks.references import Reference
from tasks.storage import dvc_config, store
from tasks.storage.cache import Cache, Entry
from tasks.storage.dvc import Dvc
from tasks.storage.dvc_config import Remote
from tests import project as projects

CONCURRENCY = 2
"""Parts on their way at a time, as in `tasks.storage.transfer`."""
RATIO, RESTORE_SECONDS, MEGABYTES = 1.5, 3.0, 300.0
"""The goals: recording against raw work, restoring from a warm cache, memory of the client."""


@dataclass
class Peak:
    """The most anonymous memory of this process and its children together, in bytes, while a block runs."""

    before: int = 0
    ours: int = 0
    together: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        self.before = _anonymous(os.getpid())
        watch = threading.Thread(target=self._watch, daemon=True)
        watch.start()
        try:
            yield
        finally:
            self._stop.set()
            watch.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            own = _anonymous(os.getpid())
            children = [p.pid for p in psutil.Process().children() if "weed" not in p.name()]
            self.ours = max(self.ours, own)
            self.together = max(self.together, own + sum(map(_anonymous, children)))


def _anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


@dataclass
class StepCost:
    """One recorded step."""

    seconds: float
    """From finished outputs to the tag."""
    parts: dict[str, float]
    raw: dict[str, float]
    new: int
    """Bytes of new content."""
    cached: int
    stored: int
    """Growth of cache and store."""
    memory: Peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=600, help="new weights of a step")
    parser.add_argument("--repeat", type=int, default=3, help="steps to record")
    parser.add_argument("--folder", type=Path, help="where to work; the disk counts")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        sys.exit(0 if measure(Path(name), given.megabytes * 1_000_000, given.repeat) else 1)


def measure(folder: Path, size: int, repeat: int) -> bool:
    """Record, print, and tell whether all goals are met."""
    os.environ.update(GIT_CONFIG_NOSYSTEM="1", DVC_NO_ANALYTICS="1")
    stream = [{"name": f"arrival-{step}", "update": ["images:drawings/first#train"]} for step in range(1, repeat + 1)]
    project = projects.make(folder / "project", stream=stream)
    rows = []
    with store.open_store(project, dvc_config.EMBEDDED) as remote:
        for step in range(repeat + 1):
            measured, state = _step(project, remote, step, size if step else 1_000_000)
            if step:
                rows.append(measured)
                print(f"step {step}: recorded in {measured.seconds:.2f} s, raw {sum(measured.raw.values()):.2f} s")
        started = time.monotonic()
        restoration.restore_into(project, state, folder / "restored", None)
        restored = time.monotonic() - started
        weights = folder / "restored" / layout.DEPLOYED
        assert _md5(weights) == state.entries[layout.DEPLOYED].md5
    return _report(rows, restored)


def _report(rows: list[StepCost], restored: float) -> bool:
    def median(values: list[float]) -> float:
        return statistics.median(values)

    print()
    for name in rows[0].parts:
        print(f"{name:34} {median([row.parts[name] for row in rows]):8.2f} s")
    seconds = median([row.seconds for row in rows])
    print(f"{'recording, all of it':34} {seconds:8.2f} s\n")
    for name in rows[0].raw:
        print(f"raw: {name:29} {median([row.raw[name] for row in rows]):8.2f} s")
    raw = median([sum(row.raw.values()) for row in rows])
    print(f"{'raw, all of it':34} {raw:8.2f} s\n")
    ratio = median([row.seconds / sum(row.raw.values()) for row in rows])
    worst = max(rows, key=lambda row: row.memory.together)
    memory, before = worst.memory.together / 1e6, worst.memory.before / 1e6
    extra = max(max(row.cached, row.stored) / row.new - 1 for row in rows)
    goals = [
        (f"recording / raw work: {ratio:.2f}", f"≤ {RATIO}", ratio <= RATIO),
        (f"bytes stored beyond new content: {extra:.3%}", "≤ 0.1%", extra <= 0.001),
        (f"restore from a warm cache: {restored:.2f} s", f"< {RESTORE_SECONDS:.0f} s", restored < RESTORE_SECONDS),
        (f"memory of both processes: {memory:.0f} MB (ours before: {before:.0f})", f"< {MEGABYTES:.0f} MB",
         memory < MEGABYTES),
    ]  # fmt: skip
    for what, goal, met in goals:
        print(f"{'met   ' if met else 'MISSED'}  {what}  (goal {goal})")
    return all(met for *_, met in goals)


def _step(project: Path, remote: Remote, step: int, size: int) -> tuple[StepCost, State]:
    """Record one step of ``size`` bytes of new weights, then do the raw work on the same files."""
    code = project_code.code_of(project)
    params = project_code.params_of(project, code)
    cache = Cache(dvc_config.cache_dir(project))
    arrival = params.stream[step - 1] if step else None
    previous = timelines.last(project, params.timeline)
    with Dvc(project) as dvc, worktrees.for_step(project, code, remote, step, arrival) as tree:
        declared = nodes.declared(tree.folder).values()
        read = {path for node in declared for path in node.deps}
        for path in (*layout.INPUTS, *(path for path in read if path.startswith(layout.INPUTS))):
            _fake_folder(tree.folder / path)
        inputs = {path: cache.put(tree.folder / path) for path in layout.INPUTS}
        new = _fake_outputs(tree.folder, size, [path for node in declared for path in node.outputs])
        files = [tree.folder / layout.EXPERT, tree.folder / layout.DEPLOYED]
        before, there = _bytes(project / ".dvc/cache"), _held(remote)
        memory, clock = Peak(), _Clock()
        began = time.monotonic()
        with memory.watched():
            references = [
                Reference(node.name, "", {path: _put(cache, tree.folder, path) for path in node.outputs}, 0.0, {})
                for node in declared
            ]
            clock.lap("hash and link into the cache")
            with _timed_dvc(clock):
                state = recording.record(project, tree, code, previous, inputs, references, cache, dvc, began)
            clock.lap("git and manifest")
        measured = StepCost(
            clock.total, clock.parts, {}, new, _bytes(project / ".dvc/cache") - before, _held(remote) - there, memory
        )
        measured.raw.update(_raw(files, project / ".dvc/cache", remote))
    return measured, state


def _put(cache: Cache, folder: Path, path: str) -> Entry:
    return cache.put(folder / path)


class _Clock:
    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self.started = self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.parts[name] = self.parts.get(name, 0.0) + now - self._last
        self._last = now

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@contextlib.contextmanager
def _timed_dvc(clock: _Clock) -> Iterator[None]:
    """Tell DVC's part of recording from git's."""
    original = Dvc.__call__

    def timed(self: Dvc, *args: object, **kwargs: object) -> object:
        clock.lap("git and manifest")
        answer = original(self, *args, **kwargs)  # type: ignore[arg-type]
        clock.lap("DVC: add, commit, push, check")
        return answer

    Dvc.__call__ = timed  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        Dvc.__call__ = original  # type: ignore[method-assign]


def _fake_outputs(folder: Path, size: int, declared: Iterable[str]) -> int:
    """What the nodes of a step leave behind: new weights, and small files; returns the bytes of the weights."""
    small = {
        f"{layout.ARRIVAL}/dataset.json": b"{}", "data/step/evaluation/sets.json": b"[]",
        f"{layout.TRAINING}/training.json": json.dumps({"steps": 1, "size": size}).encode(),
        f"{layout.RUNNING}/running.json": b"{}", "data/step/init.safetensors": b"the previous state's",
        "metrics.json": json.dumps({"A_KA": 1.0, "A_ZS": 1.0, "geometric_mean": 1.0, "top1": {}}).encode(),
    }  # fmt: skip
    for name, content in small.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    for name in declared:
        if not Path(name).suffix:
            _fake_folder(folder / name)
    for name in (layout.EXPERT, layout.DEPLOYED):
        with (folder / name).open("wb") as file:
            for start in range(0, size // 2, 1 << 20):
                file.write(os.urandom(min(1 << 20, size // 2 - start)))
    return size // 2 * 2


def _fake_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "note.json").write_text(json.dumps({"folder": folder.name}), encoding="utf-8")


def _raw(files: list[Path], cache: Path, remote: Remote) -> dict[str, float]:
    """Seconds of one md5 pass, one hardlink each, and one upload by boto3."""
    clock = _Clock()
    for path in files:
        _md5(path)
    clock.lap("one md5 pass")
    for number, path in enumerate(files):
        (cache / f"raw-{number}").hardlink_to(path)
    clock.lap("one hardlink each")
    s3 = store.client(remote)
    for number, path in enumerate(files):
        parts = calculate_chunksize(path.stat().st_size)
        settings = TransferConfig(multipart_threshold=parts, multipart_chunksize=parts, max_concurrency=CONCURRENCY)
        s3.upload_file(str(path), remote.bucket, f"raw/{number}", Config=settings)
    clock.lap("one upload by boto3")
    for number in range(len(files)):
        (cache / f"raw-{number}").unlink()
        s3.delete_object(Bucket=remote.bucket, Key=f"raw/{number}")
    return clock.parts


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _bytes(folder: Path) -> int:
    """Of all files below a folder, each content once."""
    return sum({info.st_ino: info.st_size for p in folder.rglob("*") if (info := p.stat()) and p.is_file()}.values())


def _held(remote: Remote) -> int:
    """Bytes that the store keeps of states."""
    pages = store.client(remote).get_paginator("list_objects_v2").paginate(Bucket=remote.bucket, Prefix=remote.prefix)
    return sum(row["Size"] for page in pages for row in page.get("Contents", ()))


if __name__ == "__main__":
    main()
