"""Speed and memory of every merging technique, beside mergekit and beside the floor, as fresh processes in one run.

    python benchmarks/merge.py --cache DIR                      # makes experts and a peer's environment under DIR
    python benchmarks/merge.py --cache DIR --only ties,linear   # some techniques; --no-peer: ours alone
    python benchmarks/merge.py --cache DIR --device cuda        # ours on a GPU, a row of its own each
    python benchmarks/merge.py --cache DIR --table              # the table of all that was measured so far
    python benchmarks/merge.py --cache DIR --compare            # one configuration through both: the same result?

The experts are float32 models of CLIP ViT-B/32's tensors (151 M parameters, 605 MB each). The floor reads all of
them and writes one, with safetensors and torch. Results gather in DIR/results.json. mergekit comes from the package
index, into an environment of its own; it is run as its users run it (``mergekit-pytorch``). The 0-d logit_scale is left
out of the files, since mergekit's DELLA fails on it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tasks.merge.sinks import FileSink
from tasks.merge.sources import Entry

REPOSITORY = Path(__file__).resolve().parent.parent
PEER = "mergekit==0.1.5"
DISTINCT = 8

OURS: dict[str, dict[str, Any]] = {
    "linear": {},
    "slerp": {},
    "task_arithmetic": {"scale": 1.0},
    "magmax": {},
    "model_stock": {},
    "karcher": {},
    "ties": {"density": 0.2},
    "dare_linear": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "breadcrumbs": {"density": 0.9, "gamma": 0.01, "scale": 1.0},
    "breadcrumbs_ties": {"density": 0.9, "gamma": 0.01},
    "della": {"density": 0.5, "epsilon": 0.2},
    "sce": {"density": 0.5},
    "consensus": {},
    "pcb": {},
    "tsv": {},
    "iso_c": {},
    "opcm": {},
}
PEERS: dict[str, dict[str, Any]] = {
    "linear": {"weight": 1.0},
    "slerp": {"t": 0.5},
    "task_arithmetic": {"weight": 1.0},
    "model_stock": {},
    "karcher": {},
    "ties": {"weight": 1.0, "density": 0.2},
    "dare_linear": {"weight": 1.0, "density": 0.5},
    "dare_ties": {"weight": 1.0, "density": 0.5},
    "breadcrumbs": {"weight": 1.0, "density": 0.9, "gamma": 0.01},
    "breadcrumbs_ties": {"weight": 1.0, "density": 0.9, "gamma": 0.01},
    "della": {"weight": 1.0, "density": 0.5, "epsilon": 0.1},
    "sce": {"select_topk": 0.5},
}
FLOOR = """
import sys
from contextlib import ExitStack
from safetensors import safe_open
from safetensors.torch import save_file
*inputs, out = sys.argv[1:]
with ExitStack() as stack:
    files = [stack.enter_context(safe_open(path, framework="pt")) for path in inputs]
    total = {}
    for name in files[0].keys():
        total[name] = files[0].get_tensor(name).clone()
        for file in files[1:]:
            total[name] += file.get_tensor(name)
save_file(total, out)
"""


def vit_b_32() -> dict[str, tuple[int, ...]]:
    """Names and shapes of open_clip's ViT-B-32, without the 0-d logit_scale."""
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (768,),
        "visual.positional_embedding": (50, 768),
        "visual.proj": (768, 512),
        "visual.conv1.weight": (768, 3, 32, 32),
        "token_embedding.weight": (49408, 512),
        "positional_embedding": (77, 512),
        "text_projection": (512, 512),
    }
    for norm, width in (("visual.ln_pre", 768), ("visual.ln_post", 768), ("ln_final", 512)):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for tower, width in (("visual.", 768), ("", 512)):
        for i in range(12):
            block = f"{tower}transformer.resblocks.{i}"
            for norm in ("ln_1", "ln_2"):
                shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
            for name, rows, columns in (
                ("attn.in_proj_", 3 * width, width),
                ("attn.out_proj.", width, width),
                ("mlp.c_fc.", 4 * width, width),
                ("mlp.c_proj.", width, 4 * width),
            ):
                shapes |= {f"{block}.{name}weight": (rows, columns), f"{block}.{name}bias": (rows,)}
    return shapes


def make_models(folder: Path, count: int) -> None:
    """``base.safetensors`` and ``1.safetensors`` …: normal weights of 0.02, task vectors of 0.001."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = vit_b_32()
    entries = {name: Entry("F32", shape) for name, shape in shapes.items()}
    for i in range(count + 1):
        path = folder / (f"{i}.safetensors" if i else "base.safetensors")
        if path.exists():
            continue
        if i > DISTINCT:  # more models than that are links: what counts then is memory
            path.hardlink_to(folder / f"{(i - 1) % DISTINCT + 1}.safetensors")
            continue
        sink = FileSink(path, entries)
        for j, (name, shape) in enumerate(shapes.items()):
            x = np.random.default_rng([0, j]).standard_normal(shape, np.float32) * np.float32(0.02)
            if i:
                x += np.random.default_rng([i, j]).standard_normal(shape, np.float32) * np.float32(0.001)
            sink.write(name, 0, x)
        sink.finish()


@dataclass
class Measured:
    """One process: seconds, and peaks in MB."""

    wall: float
    cpu: float
    resident: float
    anonymous: float


def measure(command: list[str], cwd: Path) -> Measured:
    """Run a command to its end; memory is sampled every 10 ms."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
    with (cwd / "log.txt").open("ab") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=cwd, stdout=log, stderr=log, env=environment)
        resident = anonymous = 0
        done = threading.Event()

        def watch() -> None:
            nonlocal resident, anonymous
            while not done.wait(0.01):
                now = _memory(process.pid)
                resident, anonymous = max(resident, now[0]), max(anonymous, now[1])

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        done.set()
        watcher.join()
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        tail = (cwd / "log.txt").read_text(errors="replace").strip().splitlines()[-3:]
        raise RuntimeError(f"{' '.join(command[:4])} … failed: {' | '.join(tail)}")
    return Measured(wall, usage.ru_utime + usage.ru_stime, resident / 1e3, anonymous / 1e3)


def _memory(pid: int) -> tuple[int, int]:
    """Peak resident and anonymous kB so far (zero after its end)."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    return int(lines.get("VmHWM", "0").split()[0]), int(lines.get("RssAnon", "0").split()[0])


def warm(paths: list[str]) -> None:
    """Bring files into the page cache: what is compared is the programs, not the disk."""
    for path in paths:
        with Path(path).open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def peer(cache: Path) -> Path:
    """The peer's Python, installed at the first call."""
    python = cache / "peer" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", cache / "peer"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", PEER], check=True)
    return python


def our_command(technique: str, models: Path, count: int, out: Path, device: str) -> list[str]:
    experts = [str(models / f"{i + 1}.safetensors") for i in range(2 if technique == "slerp" else count)]
    command = [sys.executable, "-m", "flows", "merge", "--technique", technique, "--out", str(out)]
    command += ["--device", device]
    if technique not in ("linear", "slerp", "karcher"):
        command += ["--base", str(models / "base.safetensors")]
    for expert in experts:
        command += ["--expert", expert]
    for key, value in OURS[technique].items():
        command += ["--set", f"{key}={json.dumps(value)}"]
    return command


def peer_command(technique: str, models: Path, count: int, out: Path, cache: Path) -> list[str]:
    two = technique == "slerp"
    parameters = PEERS[technique]
    inputs = [str(models / f"{i + 1}.safetensors") for i in range(2 if two else count)]
    config: dict[str, Any] = {
        "merge_method": technique,
        "dtype": "float32",
        "models": [{"model": path, "parameters": parameters} for path in inputs],
    }
    if two:
        config |= {"models": [{"model": path} for path in inputs], "base_model": inputs[0], "parameters": parameters}
    elif technique not in ("linear", "karcher"):
        config["base_model"] = str(models / "base.safetensors")
    if technique in ("sce", "karcher", "model_stock"):
        config |= {"models": [{"model": path} for path in inputs], "parameters": parameters}
    path = cache / "peer.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return [str(peer(cache).with_name("mergekit-pytorch")), str(path), str(out)]


def sequential_script(technique: str, models: Path, cache: Path, t: int) -> list[str]:
    """One update of a running state with expert ``t``; the states before it are made if they are not there."""
    script = (
        "import sys; from pathlib import Path; from tasks.merge import advance, create\n"
        "name, settings, expert, base, before, state, out = sys.argv[1:]\n"
        "import json\n"
        "advance(create(name, json.loads(settings)), Path(expert), Path(base), Path(before) if before else None,"
        " Path(state), Path(out))\n"
    )
    state = cache / "states" / technique
    return [
        sys.executable, "-c", script, technique, json.dumps(OURS[technique]), str(models / f"{t}.safetensors"),
        str(models / "base.safetensors"), str(state / str(t - 1)) if t > 1 else "", str(state / str(t)),
        str(cache / "out.safetensors"),
    ]  # fmt: skip


COMPARED: dict[str, dict[str, Any]] = {
    "linear": {"weight": 0.7},
    "slerp": {"t": 0.3},
    "karcher": {"max_iter": 50, "tol": 1e-7},
    "task_arithmetic": {"weight": 0.4, "lambda": 0.9},
    "ties": {"weight": 0.6, "density": 0.3, "lambda": 1.1},
    "breadcrumbs": {"weight": 1.0, "density": 0.7, "gamma": 0.05},
    "breadcrumbs_ties": {"weight": 1.0, "density": 0.7, "gamma": 0.05, "normalize": True},
    "model_stock": {},
    "sce": {"select_topk": 0.5},
}
"""Where both define the same thing: one mergekit configuration through both must give one result."""


def compare(cache: Path) -> None:
    """Largest difference between the two over small random checkpoints, by technique."""
    folder = cache / "compare"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shapes = {"a.weight": (64, 48), "layers.0.b": (48,), "layers.1.c": (16, 3, 4, 4), "d": (1000,)}
    for i in range(4):
        random = np.random.default_rng(i)
        shared = np.random.default_rng(99)
        save_file(
            {n: (shared.standard_normal(s) + 0.3 * random.standard_normal(s)).astype("f4") for n, s in shapes.items()},
            folder / f"{i}.safetensors",
        )
    for name, parameters in COMPARED.items():
        paths = [str(folder / f"{i}.safetensors") for i in ((1, 2) if name == "slerp" else (1, 2, 3))]
        config: dict[str, Any] = {"merge_method": name, "dtype": "float32", "models": [{"model": p} for p in paths]}
        if parameters:
            config["parameters"] = parameters
        if name not in ("linear", "karcher"):
            config["base_model"] = paths[0] if name == "slerp" else str(folder / "0.safetensors")
        path = folder / f"{name}.yaml"
        path.write_text(json.dumps(config))
        ours, theirs = folder / f"{name}.safetensors", folder / name
        measure([sys.executable, "-m", "flows", "merge", "--config", str(path), "--out", str(ours)], folder)
        measure([str(peer(cache).with_name("mergekit-pytorch")), str(path), str(theirs)], folder)
        a, b = load_file(ours), load_file(next(theirs.glob("*.safetensors")))
        print(f"{name:18} {max(float(np.abs(a[key] - b[key]).max()) for key in shapes):.1e}", flush=True)


def table(results: dict[str, Any]) -> str:
    """Markdown: a row a technique; ratios to the floor and to the peer of the same run."""
    lines = [
        "| what | wall s | CPU s | resident MB | anonymous MB | mergekit wall s | its anonymous MB | times faster |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in results.items():
        ours, theirs = entry.get("ours"), entry.get("peer")
        row = [name]
        row += [f"{ours[k]:.{d}f}" for k, d in _COLUMNS] if ours else ["–"] * 4
        if theirs and "wall" in theirs:
            row += [f"{theirs['wall']:.1f}", f"{theirs['anonymous']:.0f}"]
            row.append(f"{theirs['wall'] / ours['wall']:.1f}" if ours else "–")
        else:
            row += [theirs["failed"] if theirs else "–", "–", "–"]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


_COLUMNS = (("wall", 2), ("cpu", 2), ("resident", 0), ("anonymous", 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cache", type=Path, required=True, help="where experts, the peer and results go (8 GB)")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--only", help="comma-separated techniques; also floor, startup, sequential:NAME")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--device", default="cpu", help="where ours computes; on another than the CPU, ours alone")
    parser.add_argument("--table", action="store_true", help="print the table of what was measured, and stop")
    parser.add_argument("--compare", action="store_true", help="compare results instead of speed")
    arguments = parser.parse_args()
    cache: Path = arguments.cache
    cache.mkdir(parents=True, exist_ok=True)
    if arguments.compare:
        compare(cache)
        return
    path = cache / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if arguments.table:
        print(table(results))
        return
    models = cache / "models"
    make_models(models, arguments.experts)
    wanted = arguments.only.split(",") if arguments.only else ["startup", "floor", *OURS]
    label = "" if arguments.experts == 8 else f" N={arguments.experts}"
    on_cpu = arguments.device == "cpu"
    label += "" if on_cpu else f" on {arguments.device}"
    with_peer = on_cpu and not arguments.no_peer
    for name in wanted:
        entry = results.setdefault(name + label, {})
        entry.update(_measure_one(name, models, arguments.experts, cache, with_peer, arguments.device))
        path.write_text(json.dumps(results, indent=2))
        print(name + label, json.dumps(entry), flush=True)


def _measure_one(name: str, models: Path, count: int, cache: Path, with_peer: bool, device: str) -> dict[str, Any]:
    out, entry = cache / "out.safetensors", {}
    inputs = [str(models / f"{i + 1}.safetensors") for i in range(count)]
    warm([*inputs, str(models / "base.safetensors")])
    if name == "startup":
        entry["ours"] = asdict(measure([sys.executable, "-c", "import tasks.merge"], cache))
        entry["torch"] = asdict(measure([sys.executable, "-c", "import torch"], cache))
        if with_peer:
            help_command = [str(peer(cache).with_name("mergekit-pytorch")), "--help"]
            entry["peer"] = asdict(measure(help_command, cache))
    elif name == "floor":
        entry["ours"] = asdict(measure([sys.executable, "-c", FLOOR, *inputs, str(out)], cache))
    elif name.startswith("sequential:"):
        technique = name.partition(":")[2]
        for t in range(1, count + 1):
            entry["ours" if t == count else f"step {t}"] = asdict(
                measure(sequential_script(technique, models, cache, t), cache)
            )
            shutil.rmtree(cache / "states" / technique / str(t - 1), ignore_errors=True)
        shutil.rmtree(cache / "states")
    else:
        entry["ours"] = asdict(measure(our_command(name, models, count, out, device), cache))
        if with_peer and name in PEERS:
            folder = cache / "peer-out"
            try:
                entry["peer"] = asdict(measure(peer_command(name, models, count, folder, cache), cache))
            except RuntimeError as error:
                entry["peer"] = {"failed": str(error)}
            shutil.rmtree(folder, ignore_errors=True)
    out.unlink(missing_ok=True)
    return entry


if __name__ == "__main__":
    main()
