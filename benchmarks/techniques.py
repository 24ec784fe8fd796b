"""Techniques that look at data, and coefficients that are found on it, on the icons: A_KA, A_ZS and what they cost.

    .venv/bin/python benchmarks/techniques.py --keep FOLDER [--init ema] [--deploy all] [--seeds 0 1 2]
        [--techniques linear fisher …] [--arrivals 7] [--threads 1]

Clones the project into FOLDER and runs a timeline for each technique and seed there; the same command resumes. Prints
a Markdown table: means over the seeds after the last arrival ± half of the 95 % interval, and the seconds of the nodes
measure, fit and deploy a step. Fits hold a tenth of the samples out of training, so their experts are others than those
of the techniques; `linear, held out` is what they compare with.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
METRICS = ("A_KA", "A_ZS", "geometric_mean")
NODES = ("measure", "fit", "deploy")
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""97.5 % points of Student's t, by number of seeds."""
HELD_OUT = 0.1
ARITHMETIC = {"name": "task_arithmetic", "scale": 0.3}

TECHNIQUES: dict[str, dict[str, Any]] = {
    "linear": {"technique": "linear"},
    "task_arithmetic": {"technique": ARITHMETIC},
    "fisher": {"technique": {"name": "fisher", "prior": 1e-6}},
    "regmean": {"technique": {"name": "regmean", "ridge": 1e-3}},
    "wudi": {"technique": "wudi"},
    "iso_cts": {"technique": "iso_cts"},
    "dop": {"technique": "dop"},
    "emr": {"technique": "emr"},
    "linear, held out": {"technique": "linear", "holdout": True},
    "paint": {"technique": ARITHMETIC, "fit": {"name": "paint", "setting": "scale"}},
    "adamerging": {"technique": ARITHMETIC, "fit": {"name": "adamerging", "iterations": 200}},
    "frank_wolfe": {"technique": "linear", "fit": {"name": "frank_wolfe"}},
}
"""What a row of the table is: a technique, and a fit where it has one. `became` merges two models: --deploy ema."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, required=True, help="the folder to run in; it stays, to be resumed")
    parser.add_argument("--init", default="ema", choices=["zs", "ft", "ema"])
    parser.add_argument("--deploy", default="all", choices=["ema", "all"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--techniques", nargs="+", default=list(TECHNIQUES), choices=list(TECHNIQUES))
    parser.add_argument("--arrivals", type=int, default=7, help="how many of the stream")
    parser.add_argument("--steps", type=int, help="training steps of a time step; by default those of params.yaml")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if not given.keep.exists():
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(given.keep)], check=True)
    rows = {}
    for name in given.techniques:
        for seed in given.seeds:
            timeline = f"icons-{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            run(given.keep, timeline, TECHNIQUES[name], seed, given)
            rows[name, seed] = states(given.keep, timeline)
    print(table(rows, given.techniques, given.seeds))


def run(folder: Path, timeline: str, what: Mapping[str, Any], seed: int, given: argparse.Namespace) -> None:
    """One timeline, or what is left of it; equal experts are trained once."""
    yaml = YAML(typ="safe")
    params = yaml.load((ROOT / "params.yaml").read_text())
    technique = what["technique"] if isinstance(what["technique"], dict) else {"name": what["technique"]}
    params |= {"timeline": timeline, "seed": seed, "threads": given.threads}
    params["stream"] = params["stream"][: given.arrivals]
    params["time"] = {"init": given.init, "deploy": given.deploy, "technique": technique}
    if given.steps:
        params["train"]["steps"] = params["base"]["train"]["steps"] = given.steps
    if "fit" in what:
        params["fit"] = what["fit"]
    if "fit" in what or what.get("holdout"):
        params["train"]["holdout"] = HELD_OUT
    params.pop("grid", None)
    yaml.dump(params, folder / "params.yaml")
    subprocess.run([sys.executable, "-m", "flows", "run"], cwd=folder, check=True, stdout=sys.stderr)


def states(folder: Path, timeline: str) -> list[dict[str, Any]]:
    """The recorded states of a timeline."""
    command = [sys.executable, "-m", "flows", "states", "--json", "--timeline", timeline]
    found: list[dict[str, Any]] = json.loads(
        subprocess.run(command, cwd=folder, check=True, capture_output=True).stdout
    )
    return found


def table(
    rows: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]], techniques: Sequence[str], seeds: Sequence[int]
) -> str:
    """As Markdown."""
    lines = [f"| technique | {' | '.join(METRICS)} | {' | '.join(f'{node} (s)' for node in NODES)} |"]
    lines.append("|---" * (1 + len(METRICS) + len(NODES)) + "|")
    for name in techniques:
        cells = [spread([float(rows[name, seed][-1][metric]) for seed in seeds]) for metric in METRICS]
        later = [row for seed in seeds for row in rows[name, seed] if row["step"]]
        for node in NODES:
            seconds = [row["seconds"][node] for row in later if node in row["seconds"]]
            cells.append(f"{fmean(seconds):.2f}" if seconds else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """The mean, with half of the 95 % interval where there are several values."""
    if len(values) not in STUDENT:
        return f"{fmean(values):.1f}"
    return f"{fmean(values):.1f} ± {STUDENT[len(values)] * stdev(values) / math.sqrt(len(values)):.1f}"


if __name__ == "__main__":
    main()
