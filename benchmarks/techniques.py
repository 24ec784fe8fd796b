"""Techniques that look at data, and coefficients that are found on it, on the icons: A_KA, A_ZS and what they cost.

    .venv/bin/python benchmarks/techniques.py --keep FOLDER [--seeds 0 1 2] [--deploy ema all]
        [--techniques linear fisher …] [--steps 80] [--arrivals 7] [--only-experts] [--threads 1]

The base and seven experts are trained once a seed (init: zs, so no expert depends on a technique), and statistics are
measured once; a row of the table takes a merge at each step and one evaluation, after the last. A tenth of the samples
is held out of every training, so that rows with and without a fit have the same experts. Calls the nodes on folders
below FOLDER, without a flow; what is there is not computed again, so the same command resumes.

Prints a Markdown table: means over the seeds after the last arrival ± the standard error, and the CPU seconds of the
nodes measure, fit and deploy at the last step.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ruamel.yaml import YAML

from tasks import prepare
from tasks.deploy.node import deploy
from tasks.errors import UserError
from tasks.evaluate.node import evaluate
from tasks.fit.node import fit
from tasks.measure.needs import needed
from tasks.measure.node import measure
from tasks.merge import check
from tasks.model import models
from tasks.params import Arrival, Params
from tasks.prepare.node import prepare_arrival, prepare_evaluation
from tasks.train.node import initialize, train

ROOT = Path(__file__).parents[1]
METRICS = ("A_KA", "A_ZS", "geometric_mean")
NODES = {"measure": measure, "fit": fit, "deploy": deploy}
HELD_OUT = 0.1
ARITHMETIC = {"name": "task_arithmetic", "scale": 0.3}
DONE = "done.json"

TECHNIQUES: dict[str, dict[str, Any]] = {
    "linear": {"technique": {"name": "linear"}},
    "task_arithmetic": {"technique": ARITHMETIC},
    "ties": {"technique": {"name": "ties"}},
    "fisher": {"technique": {"name": "fisher", "prior": 1e-6}},
    "regmean": {"technique": {"name": "regmean", "ridge": 1e-3}},
    "became": {"technique": {"name": "became"}},
    "wudi": {"technique": {"name": "wudi"}},
    "iso_cts": {"technique": {"name": "iso_cts"}},
    "dop": {"technique": {"name": "dop"}},
    "emr": {"technique": {"name": "emr"}},
    "paint": {"technique": ARITHMETIC, "fit": {"name": "paint", "setting": "scale"}},
    "adamerging": {"technique": ARITHMETIC, "fit": {"name": "adamerging", "iterations": 200}},
    "concrete": {"technique": ARITHMETIC, "fit": {"name": "concrete", "iterations": 200}},
    "frank_wolfe": {"technique": {"name": "linear"}, "fit": {"name": "frank_wolfe"}},
}
"""What a row of the table is: a technique, and a fit where it has one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, required=True, help="the folder to work in; it stays, to be resumed")
    parser.add_argument("--deploy", nargs="+", default=["ema", "all"], choices=["ema", "all"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--techniques", nargs="+", default=list(TECHNIQUES), choices=list(TECHNIQUES))
    parser.add_argument("--steps", type=int, help="training steps of a time step; by default those of params.yaml")
    parser.add_argument("--arrivals", type=int, help="how many of the stream; by default all")
    parser.add_argument("--only-experts", action="store_true", help="train, and merge nothing")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    rows: dict[tuple[str, str, int], dict[str, float]] = {}
    for seed in given.seeds:
        experts = given.keep.resolve() / f"seed-{seed}"
        train_experts(experts, params_of(given, seed, {"init": "zs", "deploy": "ema"}))
        for protocol in given.deploy if not given.only_experts else ():
            for name in given.techniques:
                row = TECHNIQUES[name]
                time = {"init": "zs", "deploy": protocol, "technique": row["technique"]}
                try:
                    params = params_of(given, seed, time, row.get("fit"))
                    row = timeline(experts, params, name, protocol)
                except UserError as error:  # such as a technique for two models with deploy: all
                    print(f"{name}, {protocol}: {error}", flush=True)
                    continue
                rows[name, protocol, seed] = row
                print(name, protocol, seed, json.dumps(row), flush=True)
    for protocol in given.deploy:
        seeds = {name: [rows[name, protocol, s] for s in given.seeds if (name, protocol, s) in rows]
                 for name in given.techniques}  # fmt: skip
        print(f"\ndeploy: {protocol}\n\n{table({name: scores for name, scores in seeds.items() if scores})}")


def params_of(given: argparse.Namespace, seed: int, axes: Mapping[str, Any], fit: Any = None) -> Params:
    """Those of the repository's params.yaml with TIME's axes and a fit.

    Raises:
        UserError: the technique does not go with them.
    """
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params |= {"seed": seed, "threads": given.threads, "time": axes, "fit": fit}
    params["train"]["holdout"] = HELD_OUT
    if given.steps:
        params["train"]["steps"] = params["base"]["train"]["steps"] = given.steps
    params["stream"] = params["stream"][: given.arrivals]
    params.pop("grid")
    checked = Params.model_validate(params)
    check(checked.time, len(checked.stream))
    return checked


def at(params: Params, step: int) -> Params:
    """The params of a step; at step 0 the pretraining pool arrives."""
    arrival = params.stream[step - 1] if step else Arrival(name="base", update=params.base.pretraining)
    return params.model_copy(update={"step": step, "arrival": arrival})


def train_experts(folder: Path, params: Params) -> None:
    """The base and an expert for each arrival: a project folder a step, as the flow would leave it."""
    for step in range(len(params.stream) + 1):
        here = folder / str(step)
        if (here / DONE).exists():
            continue
        shutil.rmtree(here, ignore_errors=True)
        history(here, folder, params, step)
        now = at(params, step)
        assert now.arrival
        link(prepared(folder.parent, now) / "data/step/arrival", here / "data/step/arrival")
        began = time.process_time()
        initialize(here, now)
        train(here, now)
        done(here, {"seconds": round(time.process_time() - began, 1)})


def prepared(keep: Path, params: Params) -> Path:
    """A folder with the data of a step, which depend on no seed, and at the last step with the test sets."""
    assert params.arrival
    where, downloads = keep / f"data-{params.step}", keep / "downloads"
    if (where / DONE).exists():
        return where
    shutil.rmtree(where, ignore_errors=True)
    models.resolve(params.base, ROOT, where / "data/history/model")
    raw = where / "data/raw"
    prepare.fetch_arrival(params, params.arrival, raw / "arrival", downloads, project=ROOT)
    prepare_arrival(where, params)
    if params.step == len(params.stream):
        prepare.fetch_evaluation(params, raw / "evaluation", downloads, project=ROOT)
        prepare_evaluation(where, params)
    shutil.rmtree(raw)
    done(where, {})
    return where


def history(here: Path, folder: Path, params: Params, step: int) -> None:
    """``data/history`` of a step: links to what earlier steps made."""
    past = here / "data/history"
    (past / "weights").mkdir(parents=True)
    (past / "pools").mkdir()
    (past / "regularizer").mkdir()
    (past / "regularizer/regularizer.json").write_text('{"name": null}', encoding="utf-8")
    if not step:
        models.resolve(params.base, ROOT, past / "model")
    else:
        link(folder / "0/data/history/model", past / "model")
        link(folder / "0/data/step/expert.safetensors", past / "weights/base.safetensors")
    names = ["pretraining", *(one.name for one in params.stream)][:step]
    for number, name in enumerate(names):
        link(folder / f"{number}/data/step/arrival", past / f"pools/{name}")
    (past / "pools/pools.json").write_text(json.dumps(names), encoding="utf-8")
    (past / "weights/lineage.json").write_text(json.dumps({"step": step}), encoding="utf-8")


def timeline(folder: Path, params: Params, name: str, protocol: str) -> dict[str, float]:
    """What is deployed after the last arrival scores with a technique, and the CPU seconds of its last step.

    Raises:
        UserError: the technique does not go with the protocol.
    """
    where, last = folder / f"{name}-{protocol}", len(params.stream)
    before: Path | None = None
    for step in range(1, last + 1):
        here, now = where / str(step), at(params, step)
        if not (here / DONE).exists():
            shutil.rmtree(here, ignore_errors=True)
            place(here, folder, step, before)
            seconds = run_nodes(folder, here, now)
            if step == last:
                link(prepared(folder.parent, now) / "data/step/evaluation", here / "data/step/evaluation")
                evaluate(here, now)
            done(here, seconds)
        if before:
            shutil.rmtree(before / "data", ignore_errors=True)
        before = here
    assert before
    scores = json.loads((before / "metrics.json").read_text(encoding="utf-8"))
    return {**{key: scores[key] for key in METRICS}, **json.loads((before / DONE).read_text(encoding="utf-8"))}


def place(here: Path, folder: Path, step: int, before: Path | None) -> None:
    """A step's inputs: what training left, and what the technique left at the step before."""
    trained, weights = folder / str(step), here / "data/history/weights"
    weights.mkdir(parents=True)
    for name in ("model", "pools"):
        link(trained / "data/history" / name, here / "data/history" / name)
    link(folder / "0/data/step/expert.safetensors", weights / "base.safetensors")
    link(trained / "data/history/weights/lineage.json", weights / "lineage.json")
    for number in range(1, step):
        link(folder / f"{number}/data/step/expert.safetensors", weights / f"experts/{number:04}.safetensors")
    for name in ("arrival", "expert.safetensors"):
        link(trained / "data/step" / name, here / "data/step" / name)
    if before:
        for name in ("running", "deployed.safetensors"):
            link(before / "data/step" / name, weights / name)
    else:
        link(folder / "0/data/step/expert.safetensors", weights / "running/ema.safetensors")


def run_nodes(folder: Path, here: Path, params: Params) -> dict[str, float]:
    """Measure, fit and deploy; CPU seconds of each. Statistics are measured once for all rows that need them."""
    seconds = {}
    if kinds := needed(params):
        kept = folder / str(params.step) / f"statistics-{'-'.join(kinds)}"
        if not (kept / DONE).exists():
            spent = timed(measure, here, params)
            shutil.rmtree(kept, ignore_errors=True)
            shutil.move(here / "data/step/statistics", kept)
            done(kept, {"measure": spent})
        link(kept, here / "data/step/statistics")
        seconds |= json.loads((kept / DONE).read_text(encoding="utf-8"))
    if params.fit:
        seconds["fit"] = timed(fit, here, params)
    seconds["deploy"] = timed(deploy, here, params)
    return seconds


def timed(node: Callable[[Path, Params], None], here: Path, params: Params) -> float:
    began = time.process_time()
    node(here, params)
    return round(time.process_time() - began, 2)


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source.resolve())


def done(folder: Path, content: Mapping[str, float]) -> None:
    """Written last: what is in a folder without it is computed again."""
    part = folder / f"{DONE}.part"
    part.write_text(json.dumps(content), encoding="utf-8")
    part.rename(folder / DONE)


def table(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """As Markdown."""
    lines = [f"| technique | {' | '.join(METRICS)} | {' | '.join(f'{node} (CPU s)' for node in NODES)} |"]
    lines.append("|---" * (1 + len(METRICS) + len(NODES)) + "|")
    for name, each in rows.items():
        cells = [spread([row[metric] for row in each]) for metric in METRICS]
        for node in NODES:
            seconds = [row[node] for row in each if node in row]
            cells.append(f"{fmean(seconds):.1f}" if seconds else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """The mean and its standard error."""
    error = f" ± {stdev(values) / math.sqrt(len(values)):.1f}" if len(values) > 1 else ""
    return f"{fmean(values):.1f}{error}"


if __name__ == "__main__":
    main()
