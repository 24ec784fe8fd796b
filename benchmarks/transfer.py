"""How fast states go to a store and come back, beside boto3 alone with the same files.

    .venv/bin/python benchmarks/transfer.py [--megabytes 600] [--small 70] [--repeat 3] [--folder DIR]

One large file and small ones (2 kB each), new ones each time, in the embedded store. ``chronomerge`` is what the DVC
process of a run or a worker does with them (`tasks.storage.transfer`: ask which ones the store lacks, send, compare;
fetch into the cache and compare each byte). ``boto3`` is the limit: it copies them with its own defaults (parts of
8 MB, ten at a time; small ones ten at a time), and asks and compares nothing. ``cp`` copies the large file beside
itself. Prints the megabytes of a second of the clock, the seconds of a processor of the client, and the largest memory
of the DVC process less what it was before. Says which goals are met, and ends with status 1 if one is not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

sys.path.append(str(Path(__file__).parents[1]))

from tasks.storage import dvc_config, store
from tasks.storage.cache import Cache
from tasks.storage.dvc import Dvc
from tasks.storage.dvc_config import Remote
from tests import project as projects

SHARE, MEGABYTES = 0.8, 200.0
"""The goals: of the speed of boto3, and memory."""


@dataclass
class Turn:
    """Seconds of the clock and of a processor, and megabytes of memory more."""

    wall: float
    cpu: float
    memory: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=600)
    parser.add_argument("--small", type=int, default=70, help="small files")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work; the disk counts")
    given = parser.parse_args()
    os.environ.update(GIT_CONFIG_NOSYSTEM="1", DVC_NO_ANALYTICS="1")
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        project = projects.make(Path(name) / "project")
        sys.exit(0 if measure(project, given.megabytes * 1_000_000, given.small, given.repeat) else 1)


def measure(project: Path, size: int, small: int, repeat: int) -> bool:
    """Measure, print, and tell whether all goals are met."""
    turns: dict[str, list[Turn]] = {}
    with store.open_store(project, dvc_config.EMBEDDED) as remote, Dvc(project) as dvc:
        cache = Cache(dvc_config.cache_dir(project))
        dvc_config.write_local(project, {"core": {"remote": remote.name}})
        for turn in range(repeat + 1):
            # The first turn is small: clients and server have their connections then.
            made = _files(project / "made", size if turn else 1_000_000, small)
            turn_results = _turn(project, remote, dvc, cache, made)
            for name, one in turn_results.items() if turn else ():
                turns.setdefault(name, []).append(one)
    total = size + small * 2000
    print(f"{'':24} {'MB/s':>7} {'CPU s':>7} {'MB of memory':>13}")
    speed = {}
    for name, of_name in turns.items():
        speed[name] = total / 1e6 / statistics.median(one.wall for one in of_name)
        cpu, memory = (statistics.median(getattr(one, key) for one in of_name) for key in ("cpu", "memory"))
        print(f"{name:24} {speed[name]:7.0f} {cpu:7.2f} {memory:13.0f}")
    print(f"\nload of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    memory = max(one.memory for name in turns if name.startswith("chronomerge") for one in turns[name])
    goals = [(f"memory: {memory:.0f} MB", f"< {MEGABYTES:.0f} MB", memory < MEGABYTES)]
    for way in ("send", "fetch"):
        share = statistics.median(
            peer.wall / own.wall for own, peer in zip(turns[f"chronomerge, {way}"], turns[f"boto3, {way}"], strict=True)
        )
        goals.append((f"{way}: {share:.2f} of boto3's speed", f"≥ {SHARE}", share >= SHARE))
    for what, goal, met in goals:
        print(f"{'met   ' if met else 'MISSED'}  {what}  (goal {goal})")
    return all(met for *_, met in goals)


def _files(folder: Path, size: int, small: int) -> list[Path]:
    """New files of random bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with (folder / "large").open("wb") as file:
        for start in range(0, size, 1 << 20):
            file.write(os.urandom(min(1 << 20, size - start)))
    for number in range(small):
        (folder / f"{number:04}").write_bytes(os.urandom(2000))
    return sorted(folder.iterdir())


def _turn(project: Path, remote: Remote, dvc: Dvc, cache: Cache, files: list[Path]) -> dict[str, Turn]:
    """Send the files and fetch them again, both ways."""
    s3, bucket = store.client(remote), remote.bucket
    child = psutil.Process(dvc._process.pid)

    def each(work: Callable[[Path], object]) -> None:
        with ThreadPoolExecutor(10) as pool:
            list(pool.map(work, files))

    def sent() -> None:
        each(lambda path: s3.upload_file(str(path), bucket, f"raw/{path.name}"))

    def fetched() -> None:
        each(lambda path: s3.download_file(bucket, f"raw/{path.name}", f"{path}.back"))

    results = {"cp": _timed(lambda: shutil.copyfile(files[-1], f"{files[-1]}.copy"), psutil.Process())}
    results["boto3, send"] = _timed(sent, psutil.Process())
    results["boto3, fetch"] = _timed(fetched, psutil.Process())
    md5s = [cache.put(path).md5 for path in files]
    with _memory(child.pid) as grown:
        turn = _timed(lambda: dvc("keep", project, remote=remote.name, objects=md5s), child)
    results["chronomerge, send"] = Turn(turn.wall, turn.cpu, grown[0])
    for md5 in md5s:
        cache.path(md5).unlink()
    with _memory(child.pid) as grown:
        turn = _timed(lambda: dvc("fetch", project, md5s=md5s), child)
    results["chronomerge, fetch"] = Turn(turn.wall, turn.cpu, grown[0])
    for path, md5 in zip(files, md5s, strict=True):
        assert cache.path(md5).read_bytes() == path.read_bytes()
        s3.delete_object(Bucket=bucket, Key=f"raw/{path.name}")
    dvc("discard", project, remote=remote.name, objects=md5s)
    return results


def _timed(work: Callable[[], object], client: psutil.Process) -> Turn:
    os.sync()  # what was written before is no part of it
    cpu, wall = _cpu(client), time.perf_counter()
    work()
    return Turn(time.perf_counter() - wall, _cpu(client) - cpu)


def _cpu(process: psutil.Process) -> float:
    spent = process.cpu_times()
    return float(spent.user + spent.system)


@contextmanager
def _memory(pid: int) -> Iterator[list[float]]:
    """The largest resident memory of a process in the block less what it was before, in megabytes."""
    status = Path(f"/proc/{pid}/status")
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="utf-8")

    def peak() -> float:
        rows = status.read_text(encoding="utf-8").splitlines()
        return next(int(row.split()[1]) for row in rows if row.startswith("VmHWM")) / 1024

    before, grown = peak(), [0.0]
    yield grown
    grown[0] = peak() - before


if __name__ == "__main__":
    main()
