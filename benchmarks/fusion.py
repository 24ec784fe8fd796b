"""Techniques that look at data or take matrices apart: CPU seconds and memory beside fusion_bench's, on the same files.

    python -m venv PEER && PEER/bin/pip install fusion_bench
    .venv/bin/python benchmarks/fusion.py --peer PEER/bin/python --cache DIR [--only fisher regmean] [--experts 8]
        [--width 768] [--blocks 2] [--threads 1]

Experts are blocks of a ViT of random float32 weights, with Fisher and Gram matrices of random inputs. Each library is
one process. A merge costs the seconds of a processor from opening the files to the result on disk, which hardly
depend on what else runs, and memory is the peak beside what was resident before. fusion_bench's functions are called
as its algorithms call them; loading and saving are safetensors'. `wudi` is 300 steps of Adam there and a closed form
here, and emr has masks there too, so these are not to agree.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "fisher": {"floor": 0.0},
    "regmean": {"offdiagonal": 0.9, "ridge": 0.0},
    "iso_cts": {"common": 0.8},
    "wudi": {},
    "emr": {},
}
AGREE = ("fisher", "regmean", "iso_cts")
"""What both define alike."""
_MEASURED = """
import ctypes, gc, json, sys, time
from pathlib import Path
jobs, base, threads = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
{imports}
def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(key))
def merged_by(name, settings, experts, out):
    statistics = [path.replace(".safetensors", ".stats.safetensors") for path in experts]
{work}
for job in jobs:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, start = memory("VmRSS"), time.process_time()
    merged_by(*job)
    spent = time.process_time() - start
    print(json.dumps([spent, memory("VmHWM") - before]), file=sys.__stdout__, flush=True)
"""
OURS = _MEASURED.format(
    imports="from tasks.merge import merge",
    work="""
    given = {"statistics": statistics} if name in ("fisher", "regmean") else {}
    merge(name, experts, base, out, settings=settings, threads=threads, **given)
""",
)
THEIRS = _MEASURED.format(
    imports="""
import torch
from safetensors.torch import load_file, save_file
from fusion_bench.method.emr_merging.utils import emr_merge
from fusion_bench.method.fisher_merging.fisher_merging import merging_with_fisher_weights
from fusion_bench.method.isotropic_merging.iso_utils import iso_cts
from fusion_bench.method.regmean.regmean import merging_with_regmean_weights
from fusion_bench.method.wudi.wudi import wudi_merging
torch.set_num_threads(threads)
sys.stdout = sys.stderr
""",
    work="""
    origin, models = load_file(base), [load_file(path) for path in experts]
    def vectors():
        return [{key: model[key] - origin[key] for key in origin} for model in models]
    if name in ("fisher", "regmean"):
        kind = "fisher/" if name == "fisher" else "gram/"
        each = {key: [one[key] for one in models] for key in origin}
        given = [{key.removeprefix(kind): value for key, value in load_file(path).items() if key.startswith(kind)}
                 for path in statistics]
        if name == "fisher":
            merged = merging_with_fisher_weights(each, given, torch.ones(len(models)) / len(models), True, 0.0)
        else:
            given = [{key.removesuffix(".weight"): value for key, value in one.items()} for one in given]
            merged = merging_with_regmean_weights(each, given, settings["offdiagonal"], True)
    else:
        if name == "iso_cts":
            vector = iso_cts(vectors(), settings["common"], "cpu")
        elif name == "wudi":
            vector = {key: value.detach() for key, value in wudi_merging(vectors(), "cpu").items()}
        else:
            vector = emr_merge(vectors())[0]
        merged = {key: origin[key] + vector[key] for key in origin}
    save_file({key: value.contiguous() for key, value in merged.items()}, out)
""",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="the Python of an environment with fusion_bench")
    parser.add_argument("--cache", type=Path, required=True, help="the folder for models; what is there is used again")
    parser.add_argument("--only", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    folder = given.cache / f"{given.width}-{given.blocks}"
    make(folder, given.experts, given.width, given.blocks)
    experts = [str(folder / f"{i}.safetensors") for i in range(1, given.experts + 1)]
    megabytes = (folder / "base.safetensors").stat().st_size / 1e6
    ours, theirs = (
        costs(python, code, given.only, experts, folder, given.threads)
        for python, code in ((Path(sys.executable), OURS), (given.peer, THEIRS))
    )
    print(
        f"{given.experts} experts of {megabytes:.0f} MB, {given.threads} threads; memory of {given.experts} and of two"
    )
    print("| technique | ours (CPU s) | fusion_bench (CPU s) | times | ours (MB) | fusion_bench (MB) | apart |")
    print("|---|---|---|---|---|---|---|")
    for name, (spent, most, least), (spent_there, most_there, least_there) in zip(
        given.only, ours, theirs, strict=True
    ):
        apart = f"{difference(folder, name):.0e}" if name in AGREE else ""
        print(
            f"| {name} | {spent:.2f} | {spent_there:.2f} | {spent_there / spent:.1f} | {most:.0f}, {least:.0f} "
            f"| {most_there:.0f}, {least_there:.0f} | {apart} |"
        )


def costs(
    python: Path, code: str, names: Sequence[str], experts: Sequence[str], folder: Path, threads: int
) -> list[tuple[float, float, float]]:
    """CPU seconds of each merge of all experts, and megabytes of that and of one of two."""
    whose = "ours" if code is OURS else "theirs"
    jobs = [
        (name, SETTINGS[name], some, str(folder / f"{whose}-{name}.out"))
        for name in names
        for some in (experts[:2], experts)
    ]
    command = [str(python), "-c", code, json.dumps(jobs), str(folder / "base.safetensors"), str(threads)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        sys.exit(f"{python}: {done.stderr[-1000:]}")
    each = [json.loads(line) for line in done.stdout.splitlines()]
    return [(most[0], most[1], least[1]) for least, most in zip(each[::2], each[1::2], strict=True)]


def make(folder: Path, count: int, width: int, blocks: int) -> None:
    """``base.safetensors``, ``1.safetensors`` and ``1.stats.safetensors`` …"""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {}
    for i in range(blocks):
        for name, rows, columns in (("in", 3, 1), ("out", 1, 1), ("fc", 4, 1), ("proj", 1, 4)):
            shapes[f"{i}.{name}.weight"] = (rows * width, columns * width)
            shapes[f"{i}.{name}.bias"] = (rows * width,)
    random = np.random.default_rng(0)
    base = {name: random.standard_normal(shape, np.float32) * np.float32(0.02) for name, shape in shapes.items()}
    save_file(base, folder / "base.safetensors")
    facts = {"samples": "1", "estimator": '"expected"', "pool": '"random"'}
    for number in range(1, count + 1):
        path = folder / f"{number}.safetensors"
        if path.exists():
            continue
        random, statistics, expert = np.random.default_rng(number), {}, {}
        for name, shape in shapes.items():
            expert[name] = base[name] + random.standard_normal(shape, np.float32) * np.float32(0.001)
            statistics[f"fisher/{name}"] = random.standard_normal(shape, np.float32) ** 2
            if len(shape) == 2:
                inputs = random.standard_normal((shape[1] + 64, shape[1]), np.float32)
                statistics[f"gram/{name}"] = inputs.T @ inputs / len(inputs)
        save_file(statistics, path.with_suffix(".stats.safetensors"), metadata=facts)
        save_file(expert, path)


def difference(folder: Path, name: str) -> float:
    """The largest difference of the two results, a share of the largest task vector's entry."""
    base, ours, theirs = (
        load_file(folder / name) for name in ("base.safetensors", f"ours-{name}.out", f"theirs-{name}.out")
    )
    apart = max(float(np.abs(ours[key] - theirs[key]).max()) for key in base)
    return apart / max(float(np.abs(theirs[key] - base[key]).max()) for key in base)


if __name__ == "__main__":
    main()
