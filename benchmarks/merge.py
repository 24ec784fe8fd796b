"""Speed and memory of every merging technique, beside mergekit and beside the floor, as fresh processes.

    python benchmarks/merge.py --cache DIR                      # all rows that DIR/results.json lacks; then the table
    python benchmarks/merge.py --cache DIR --only ties,floor    # some rows, by name
    python benchmarks/merge.py --cache DIR --only ties --again  # ours once more; mergekit's figures stay
    python benchmarks/merge.py --cache DIR --device cuda        # ours on a GPU, rows of their own
    python benchmarks/merge.py --cache DIR --table              # the table and the goals, of what was measured so far
    python benchmarks/merge.py --cache DIR --compare            # one configuration through both: the same result?

Experts and mergekit's environment are made under DIR. The experts are float32 models of CLIP ViT-B/32's tensors (151 M
parameters, 605 MB each). The floor reads all of them and writes one, with safetensors and torch. mergekit comes from
the package index, into an environment of its own; it is run as its users run it (``mergekit-pytorch``). The 0-d
logit_scale is left out of the files, since mergekit's DELLA fails on it. What takes less than ten seconds is run three
times, whosever it is, and the fastest counts.
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

from tasks.model.sinks import FileSink
from tasks.model.sources import TensorEntry

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
    "della_linear": {"density": 0.5, "epsilon": 0.2},
    "sce": {"density": 0.5},
    "consensus": {},
    "pcb": {},
    "tsv": {},
    "iso_c": {},
    "opcm": {},
    "iso_cts": {},
    "wudi": {},
    "dop": {},
    "emr": {},
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
    "della_linear": {"weight": 1.0, "density": 0.5, "epsilon": 0.1},
    "sce": {"select_topk": 0.5},
}
"""mergekit has no magmax, Consensus, PCB, TSV, Iso-C, Iso-CTS, WUDI, DOP, EMR or OPCM."""
UPDATED = (
    "linear",
    "task_arithmetic",
    "magmax",
    "ties",
    "dare_ties",
    "della",
    "model_stock",
    "iso_c",
    "opcm",
    "wudi",
    "dop",
)
"""Whose running state is measured."""
FASTER = {
    **dict.fromkeys(("linear", "slerp", "task_arithmetic"), 3.0),
    **dict.fromkeys(("ties", "breadcrumbs", "breadcrumbs_ties"), 15.0),
    **dict.fromkeys(("dare_linear", "dare_ties", "della", "della_linear", "sce", "model_stock", "karcher"), 5.0),
}
"""Goals: so many times faster than mergekit."""
ELEMENTWISE = ("linear", "task_arithmetic", "magmax")
TIMES_FLOOR = 2.0
"""Goal: elementwise techniques take at most so many times the floor."""
ANONYMOUS_MB = 400.0
GROWTH_MB = 20.0
"""Flat: at N = 32 at most so much more than at N = 2."""
STARTUP_S = 0.5
"""Goal: start-up takes at most so much longer than importing torch."""
UPDATE = 1.25
"""Goal: the last update of a running state takes at most so many times the second."""
SHORT_S, REPEATS = 10.0, 3
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
    entries = {name: TensorEntry("F32", shape) for name, shape in shapes.items()}
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
class ProcessCost:
    """One process: seconds, and peaks in MB."""

    wall: float
    cpu: float
    resident: float
    anonymous: float


def fastest(command: list[str], cwd: Path) -> dict[str, float]:
    """`measure`; of three times where it is short."""
    best = measure(command, cwd)
    for _ in range(REPEATS - 1 if best.wall < SHORT_S else 0):
        best = min(best, measure(command, cwd), key=lambda m: m.wall)
    return asdict(best)


def measure(command: list[str], cwd: Path) -> ProcessCost:
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
        tail = (cwd / "log.txt").read_text(errors="replace", encoding="utf-8").strip().splitlines()[-3:]
        raise RuntimeError(f"{' '.join(command[:4])} … failed: {' | '.join(tail)}")
    return ProcessCost(wall, usage.ru_utime + usage.ru_stime, resident / 1e3, anonymous / 1e3)


def _memory(pid: int) -> tuple[int, int]:
    """Peak resident and anonymous kB so far (zero after its end)."""
    try:
        lines = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        )
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


def _experts(models: Path, count: int) -> list[str]:
    return [str(models / f"{i + 1}.safetensors") for i in range(count)]


def our_command(technique: str, models: Path, count: int, out: Path, device: str) -> list[str]:
    experts = _experts(models, 2 if technique == "slerp" else count)
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
    inputs = _experts(models, 2 if two else count)
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
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    return [str(peer(cache).with_name("mergekit-pytorch")), str(path), str(out)]


def sequential_script(technique: str, models: Path, cache: Path, t: int) -> list[str]:
    """The update of a running state with expert ``t``."""
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
    "dare_linear": {"weight": 0.4, "density": 1.0, "lambda": 0.9},
    "dare_ties": {"weight": 0.4, "density": 1.0, "lambda": 0.9},
    "della": {"weight": 0.4, "density": 1.0, "lambda": 0.9},
    "della_linear": {"weight": 0.4, "density": 1.0, "lambda": 0.9},
}
"""Where both define the same thing: one mergekit configuration through both must give one result.

DARE and DELLA where they drop nothing: their draws differ.
"""


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
        path.write_text(json.dumps(config), encoding="utf-8")
        ours, theirs = folder / f"{name}.safetensors", folder / name
        measure([sys.executable, "-m", "flows", "merge", "--config", str(path), "--out", str(ours)], folder)
        measure([str(peer(cache).with_name("mergekit-pytorch")), str(path), str(theirs)], folder)
        a, b = load_file(ours), load_file(next(theirs.glob("*.safetensors")))
        print(f"{name:18} {max(float(np.abs(a[key] - b[key]).max()) for key in shapes):.1e}", flush=True)


def table(results: dict[str, Any]) -> str:
    """Markdown: a row a technique and number of experts; ratios to the floor and to mergekit."""
    lines = [
        "| what | N | wall s | CPU s | resident MB | anonymous MB | × floor | mergekit s | its MB | × faster |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(results, key=lambda row: _rows().index(row.partition(" on ")[0])):
        plain, on, device = row.partition(" on ")
        name, _, count = plain.partition(" N=")
        ours, theirs = results[row].get("ours"), results[row].get("peer")
        if ours is None:
            continue
        cells = [name + on + device, count or ("–" if name == "startup" else "8")]
        cells += [f"{ours[key]:.{digits}f}" for key, digits in _COLUMNS]
        floor = results.get(_floor_of(name, count))
        compared = floor and name != "startup" and not name.startswith("update")
        cells.append(f"{ours['wall'] / floor['ours']['wall']:.2f}" if floor and compared else "–")
        if theirs and "wall" in theirs:
            cells += [f"{theirs['wall']:.1f}", f"{theirs['anonymous']:.0f}", f"{theirs['wall'] / ours['wall']:.1f}"]
        else:
            cells += [theirs["failed"] if theirs else "–", "–", "–"]
        lines.append("| " + " | ".join(cells) + " |")
        if "second" in results[row]:
            second = [f"{results[row]['second'][key]:.{digits}f}" for key, digits in _COLUMNS]
            lines.append(f"| {name} | 2 | " + " | ".join([*second, *4 * ["–"]]) + " |")
    return "\n".join(lines)


_COLUMNS = (("wall", 2), ("cpu", 2), ("resident", 0), ("anonymous", 0))


def goals(results: dict[str, Any]) -> list[str]:
    """Each goal that the CPU's rows measured so far can tell of: met or missed, and by what."""
    verdicts: list[tuple[str, float, float]] = []  # what, measured, at most
    results = {row: entry for row, entry in results.items() if " on " not in row and "ours" in entry}
    ours = {row: entry["ours"] for row, entry in results.items()}
    if "startup" in results:
        limit = results["startup"]["torch"]["wall"] + STARTUP_S
        verdicts.append(("startup: s, at most torch's import + 0.5", ours["startup"]["wall"], limit))
    for name in ELEMENTWISE:
        if name in ours and "floor" in ours:
            ratio = ours[name]["wall"] / ours["floor"]["wall"]
            verdicts.append((f"{name}: times the floor", ratio, TIMES_FLOOR))
    for name, times in FASTER.items():
        theirs = results.get(name, {}).get("peer", {})
        if "wall" in theirs:
            part = ours[name]["wall"] / theirs["wall"]
            verdicts.append((f"{name}: part of mergekit's time, at most 1/{times:.0f}", part, 1 / times))
    for row, entry in ours.items():
        if row.partition(" ")[0] not in ("startup", "floor"):
            verdicts.append((f"{row}: anonymous MB", entry["anonymous"], ANONYMOUS_MB))
        if row.endswith(" N=32") and (few := ours.get(row.replace("=32", "=2"))):
            growth = entry["anonymous"] - few["anonymous"]
            verdicts.append((f"{row}: anonymous MB more than at N = 2", growth, GROWTH_MB))
    for row, entry in results.items():
        if "second" in entry:
            ratio = entry["ours"]["wall"] / entry["second"]["wall"]
            verdicts.append((f"{row}: update 8, times update 2", ratio, UPDATE))
    lines = [
        f"{'met' if got <= most else 'MISSED'}: {what} ({got:.3g}, goal {most:.3g})" for what, got, most in verdicts
    ]
    return [*sorted(lines), f"{sum(line.startswith('met') for line in lines)} of {len(lines)} goals met"]


def _rows() -> list[str]:
    """All rows, in the order of the table: techniques at N = 8, 2 and 32; the floor of each; updates of a state."""
    rows = ["startup"]
    for label in ("", " N=2", " N=32"):
        rows += [f"{name}{label}" for name in ("floor", *OURS) if name != "slerp" or not label]
    return [*rows, *(f"update:{name}" for name in UPDATED)]


def _floor_of(name: str, count: str) -> str:
    return "floor N=2" if name == "slerp" else f"floor N={count}" if count else "floor"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cache", type=Path, required=True, help="where experts, mergekit and results go (8 GB)")
    parser.add_argument("--only", help="comma-separated rows, such as ties, 'ties N=32', floor, startup, update:ties")
    parser.add_argument("--again", action="store_true", help="measure ours again where it was measured")
    parser.add_argument("--no-peer", action="store_true", help="leave mergekit out")
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
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not arguments.table:
        on_cpu = arguments.device == "cpu"
        rows = [row for row in _rows() if on_cpu or row.partition(" ")[0] in OURS]
        wanted = arguments.only.split(",") if arguments.only else rows
        if unknown := set(wanted) - set(rows):
            parser.error(f"no rows {', '.join(sorted(unknown))}; there are {', '.join(rows)}")
        for row in wanted:
            label = row if on_cpu else f"{row} on {arguments.device}"
            before = results.get(label, {})
            entry = measure_row(row, cache, {} if arguments.again else before, arguments.device)
            if on_cpu and not arguments.no_peer and "peer" not in before:
                entry |= measure_peer(row, cache)
            results[label] = before | entry
            path.write_text(json.dumps(results, indent=2), encoding="utf-8")
            if entry:
                print(label, json.dumps(entry), flush=True)
    print("\n".join([table(results), "", *goals(results)]))


def measure_row(row: str, cache: Path, before: dict[str, Any], device: str) -> dict[str, Any]:
    """Our side of a row; nothing where it is measured already."""
    if "ours" in before:
        return {}
    name, _, label = row.partition(" N=")
    count, out, models = int(label or 8), cache / "out.safetensors", cache / "models"
    if name == "startup":
        return {
            "ours": fastest([sys.executable, "-c", "import tasks.merge"], cache),
            "torch": fastest([sys.executable, "-c", "import torch"], cache),
        }
    make_models(models, count)
    inputs = _experts(models, count)
    warm([*inputs[:DISTINCT], str(models / "base.safetensors")])
    if name == "floor":
        entry = {"ours": fastest([sys.executable, "-c", FLOOR, *inputs, str(out)], cache)}
    elif name.startswith("update:"):
        entry = _updates(name.partition(":")[2], models, cache)
    else:
        entry = {"ours": fastest(our_command(name, models, count, out, device), cache)}
    out.unlink(missing_ok=True)
    return entry


def _updates(technique: str, models: Path, cache: Path) -> dict[str, Any]:
    states = cache / "states"
    shutil.rmtree(states, ignore_errors=True)
    last = {2: "second", DISTINCT: "ours"}
    entry = {}
    for t in range(1, DISTINCT + 1):
        command = sequential_script(technique, models, cache, t)
        measured = fastest(command, cache) if t in last else asdict(measure(command, cache))
        if t in last:
            entry[last[t]] = measured
        shutil.rmtree(states / technique / str(t - 1), ignore_errors=True)
    shutil.rmtree(states)
    return entry


def measure_peer(row: str, cache: Path) -> dict[str, Any]:
    """mergekit's side of a row, where it has one."""
    program, folder = str(peer(cache).with_name("mergekit-pytorch")), cache / "peer-out"
    if row == "startup":
        return {"peer": fastest([program, "--help"], cache)}
    if row not in PEERS:
        return {}
    models = cache / "models"
    make_models(models, DISTINCT)
    warm([*_experts(models, DISTINCT), str(models / "base.safetensors")])
    try:
        return {"peer": fastest(peer_command(row, models, DISTINCT, folder, cache), cache)}
    except RuntimeError as error:
        return {"peer": {"failed": str(error)}}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
