"""The codecs of the expert store, side by side with copying and hashing the same file.

    .venv/bin/python benchmarks/codecs.py [--megabytes 605] [--change 1e-2] [--codec lossless] [--home DIR]
    .venv/bin/python benchmarks/codecs.py --model ViT-B-32 --experts 8 --change 1e-3 --repeat 1

A base and an expert of float32 weights as large as a ViT-B/32 (605 MB): normal entries, each changed by a normal number
of ``--change`` times their size. With ``--model``, the tensors of that architecture with open_clip's initial weights,
and ``--experts`` of them: as in a training, 2000 rows of the token embedding change, and all others shrink by 1e-5 of
themselves (weight decay). ``adapter`` gets experts whose matrices have changes of rank 16.

``copy`` reads and writes the file and waits for the disk, as a codec does; ``md5`` reads and hashes it, as recording a
file does. Speeds are megabytes of the decoded expert in a second of one core's time (that of all threads together), and
``restore`` is what `chronomerge restore` does more: seconds of the clock, then of a core; of ``--repeat``, the best.
``stored`` is the base and all experts; memory is the largest resident set in the turn less what it was before.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from tasks.choice import available
from tasks.model import coded
from tasks.model.codec import Codec, chosen
from tasks.model.factors import Factors
from tasks.params import Named
from tasks.storage.cache import md5_of

CHANGES = (1e-2, 1e-3, 1e-4)
WIDTH = 768
RANK = 16
TOKENS = "token_embedding.weight"
ROWS = 2000
DECAY = 1e-5
Arrays = dict[str, NDArray[np.float32]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=605)
    parser.add_argument("--model", help="an architecture of open_clip in place of square matrices")
    parser.add_argument("--experts", type=int, default=1)
    parser.add_argument("--change", action="append", type=float)
    parser.add_argument("--codec", action="append", choices=sorted(available(Codec)))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--home", type=Path, help="where the files lie meanwhile")
    given = parser.parse_args()
    heads = ("change", "bytes", "stored", "encode", "decode", "restore", "", "lost", "memory")
    print(f"{'':<10}" + "".join(f"{head:>9}" for head in heads))
    for change in given.change or CHANGES:
        with tempfile.TemporaryDirectory(dir=given.home) as folder:
            home = Path(folder)
            base = of_model(given.model) if given.model else matrices(given.megabytes)
            save_file(base, home / "base.safetensors")
            if change == (given.change or CHANGES)[0]:
                peers(home / "base.safetensors", home / "copy", given.repeat)
            for name in given.codec or [n for n, one in available(Codec).items() if one.codes or given.model]:
                if not available(Codec)[name].factors or given.model:
                    measure(home, base, name, change, given.experts, given.repeat)


def matrices(megabytes: int) -> Arrays:
    """Square matrices, as many as there is room for."""
    random = np.random.default_rng(0)
    count = max(1, megabytes * 1_000_000 // (4 * WIDTH * WIDTH))
    return {f"{i:04}": 0.03 * random.standard_normal((WIDTH, WIDTH), np.float32) for i in range(count)}


def of_model(name: str) -> Arrays:
    """The float tensors of an architecture, with the weights that training it would start from."""
    import open_clip
    import torch

    torch.manual_seed(0)
    weights = open_clip.create_model(name).state_dict()
    return {name: tensor.numpy() for name, tensor in weights.items() if tensor.dtype == torch.float32}


def changed(base: Arrays, change: float, seed: int) -> Arrays:
    """An expert: each tensor changed by ``change`` of its size; of the token embedding, some rows alone."""
    random = np.random.default_rng(seed)
    expert = {}
    for name, one in base.items():
        size = np.float32(change) * (one.std() or np.abs(one).mean())
        expert[name] = np.asarray(one + size * random.standard_normal(one.shape, np.float32))
        if name == TOKENS:
            rest = np.sort(random.permutation(len(one))[ROWS:])
            expert[name][rest] = one[rest] * np.float32(1 - DECAY)
    return expert


def adapted(base: Arrays, change: float, seed: int) -> tuple[Arrays, dict[str, Factors]]:
    """An expert whose matrices have low-rank changes, summed as a library sums them; and the factors."""
    random, expert, factors = np.random.default_rng(seed), dict(base), {}
    for name, one in base.items():
        if one.ndim == 2 and min(one.shape) > RANK and name != TOKENS:
            left, right = (
                random.standard_normal(shape, np.float32) for shape in ((len(one), RANK), (RANK, one.shape[1]))
            )
            scale = float(np.float32(change * one.std() / RANK**0.5))
            factors[name] = Factors(left=left, right=right, scale=scale)
            expert[name] = one + np.float32(scale) * (left @ right)
    return expert, factors


@dataclass(frozen=True)
class Spent:
    """Seconds of the clock, and of a core."""

    wall: float
    cpu: float


def peers(file: Path, to: Path, repeat: int) -> None:
    """What the disk and the hash do on this machine at this time."""

    def copy() -> None:
        shutil.copyfile(file, to)
        with to.open("rb") as copied:
            os.fsync(copied.fileno())

    for name, work in (("copy", copy), ("md5", lambda: md5_of(file))):
        spent = best(work, repeat)
        print(f"{name:<10}{'':>45}{spent.wall:>9.2f}{spent.cpu:>9.2f}", flush=True)


def measure(home: Path, base: Arrays, name: str, change: float, experts: int, repeat: int) -> None:
    """Code and decode the experts, and print a row."""
    codec = chosen(Named(name=name))
    origin, expert, out = (home / n for n in ("base.safetensors", "expert.safetensors", "out"))
    stored, speeds, decoding, lost = origin.stat().st_size, [], [], 0.0
    memory = 0.0
    for number in range(experts):
        factors: Mapping[str, Factors] | None = None
        if codec.factors:
            weights, factors = adapted(base, change, number + 1)
        else:
            weights = changed(base, change, number + 1)
        save_file(weights, expert)
        del weights
        size, path = expert.stat().st_size, home / f"{number}.weights"
        before = peak(reset=True)
        if codec.codes:
            speeds.append(best(lambda f=factors, p=path: coded.encode(codec, expert, origin, p, factors=f), repeat).cpu)
            decoding.append(best(lambda p=path: coded.decode(p, origin, out), repeat))
            lost = coded.coding(path).error
            memory = max(memory, peak() - before)
            stored += path.stat().st_size
            path.unlink()
        else:
            stored += size
    share = (stored - origin.stat().st_size) / experts / size
    row = f"{name:<10}{change:>9.0e}{share:>9.1%}{stored / 1e6:>9.0f}"
    if codec.codes:
        encode, wall, cpu = min(speeds), min(one.wall for one in decoding), min(one.cpu for one in decoding)
        row += f"{size / 1e6 / encode:>9.0f}{size / 1e6 / cpu:>9.0f}{wall:>9.2f}{cpu:>9.2f}{lost:>9.1%}{memory:>9.0f}"
    print(row, flush=True)


def best(work: Callable[[], object], repeat: int) -> Spent:
    runs = []
    for _ in range(repeat):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        runs.append(Spent(time.perf_counter() - wall, time.process_time() - cpu))
    return Spent(min(one.wall for one in runs), min(one.cpu for one in runs))


def peak(*, reset: bool = False) -> float:
    """The largest resident set since the last reset, in megabytes."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    rows = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    main()
