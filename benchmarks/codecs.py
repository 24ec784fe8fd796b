"""The codecs of the expert store, side by side with copying the same file.

    .venv/bin/python benchmarks/codecs.py [--megabytes 605] [--change 1e-2] [--codec lossless] [--home DIR]

A base and an expert of float32 weights as large as a ViT-B/32 (605 MB): normal entries, each changed by a normal number
of ``--change`` times their size. ``copy`` reads and writes the file and waits for the disk, as a codec does; ``md5``
reads and hashes it, as recording a file does. Speeds are megabytes of the decoded expert a second, the best of
``--repeat``; memory is the largest resident set in the turn less what it was before.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from tasks.choice import available
from tasks.model import coded
from tasks.model.codec import Codec, chosen
from tasks.params import Named
from tasks.storage.cache import md5_of

CHANGES = (1e-2, 1e-3, 1e-4)
WIDTH = 768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=605)
    parser.add_argument("--change", action="append", type=float)
    parser.add_argument("--codec", action="append", choices=sorted(available(Codec)))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--home", type=Path, help="where the files lie meanwhile")
    given = parser.parse_args()
    print(f"{'':<10} {'change':>7} {'bytes':>7} {'encode':>7} {'decode':>7} {'lost':>7} {'memory':>7}")
    for change in given.change or CHANGES:
        with tempfile.TemporaryDirectory(dir=given.home) as folder:
            home = Path(folder)
            make(home, given.megabytes, change)
            if change == (given.change or CHANGES)[0]:
                peers(home, given.repeat)
            for name in given.codec or [
                name for name, one in available(Codec).items() if one.codes and not one.factors
            ]:
                measure(home, name, change, given.repeat)


def make(home: Path, megabytes: int, change: float) -> None:
    """Write a base and an expert: square matrices, as many as there is room for."""
    random = np.random.default_rng(0)
    count = max(1, megabytes * 1_000_000 // (4 * WIDTH * WIDTH))
    base = {f"{i:04}": 0.03 * random.standard_normal((WIDTH, WIDTH), np.float32) for i in range(count)}
    save_file(base, home / "base.safetensors")
    for one in base.values():
        one += np.float32(0.03 * change) * random.standard_normal((WIDTH, WIDTH), np.float32)
    save_file(base, home / "expert.safetensors")


def peers(home: Path, repeat: int) -> None:
    """What the disk and the hash do on this machine at this time."""

    def copy() -> None:
        shutil.copyfile(home / "expert.safetensors", home / "copy")
        with (home / "copy").open("rb") as file:
            os.fsync(file.fileno())

    size = (home / "expert.safetensors").stat().st_size / 1e6
    print(f"{'copy':<10} {'':>7} {'100.0%':>7} {size / best(copy, repeat):>7.0f}")
    print(f"{'md5':<10} {'':>7} {'':>7} {size / best(lambda: md5_of(home / 'expert.safetensors'), repeat):>7.0f}")


def measure(home: Path, name: str, change: float, repeat: int) -> None:
    codec = chosen(Named(name=name))
    base, expert, path, out = (home / n for n in ("base.safetensors", "expert.safetensors", "coded", "out"))
    size = expert.stat().st_size
    before = peak(reset=True)
    encoded = best(lambda: coded.encode(codec, expert, base, path), repeat)
    decoded = best(lambda: coded.decode(path, base, out), repeat)
    print(
        f"{name:<10} {change:>7.0e} {path.stat().st_size / size:>7.1%} {size / 1e6 / encoded:>7.0f}"
        f" {size / 1e6 / decoded:>7.0f} {coded.coding(path).error:>7.1%} {peak() - before:>7.0f}",
        flush=True,
    )


def best(work: Callable[[], object], repeat: int) -> float:
    """Seconds."""
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def peak(*, reset: bool = False) -> float:
    """The largest resident set since the last reset, in megabytes."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    main()
