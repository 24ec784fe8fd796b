"""What is found in an index of an earlier state, before and after the rotation, on the states of a recorded timeline.

    .venv/bin/python benchmarks/compatibility.py [--project .] [--timeline demo] [--probe 2048] [--threads 1]
        [--json FILE]

Each state's deployed model embeds all test sets; the rotation of each is fitted on a probe of the pools that had
arrived by then, as `deploy: {compatible_with: first}` does, and measured on the test images. Give a timeline that was
recorded without that key, ``make demo`` for one; nothing is written to it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from tasks import layout
from tasks.deploy.probe import Probe
from tasks.deploy.rotation import rotation
from tasks.evaluate.crossing import KS, Crossing, crossing
from tasks.model import checkpoints, models
from tasks.model.datasets import Dataset
from tasks.record import timelines
from tasks.record.state import State
from tasks.storage import dvc_config
from tasks.storage.cache import Cache

BATCH = 256


def loaded(folder: Path, weights: Path) -> Any:
    """An open_clip model of a model folder."""
    model = models.build(folder)
    models.load_weights(model, checkpoints.load(weights), weights)
    return model.eval()


def placed(states: Sequence[State], cache: Cache, into: Path) -> tuple[Path, dict[str, Dataset], dict[str, Dataset]]:
    """The model folder, the pools in the order in which they came, and the test sets, all of the newest state."""
    newest = states[-1]
    for path in (layout.HISTORY, layout.ARRIVAL, layout.EVALUATION):
        cache.link(newest.entries[path], into / path)
    history = into / layout.HISTORY
    names = json.loads((history / "pools/pools.json").read_text(encoding="utf-8"))
    pools = {name: Dataset(history / "pools" / name) for name in names}
    if (into / layout.ARRIVAL / "dataset.json").exists():
        pools[newest.params["arrival"]["name"]] = Dataset(into / layout.ARRIVAL)
    tests = {path.name: Dataset(path) for path in sorted((into / layout.EVALUATION).iterdir()) if path.is_dir()}
    return history / "model", pools, tests


def matrix(
    queries: Sequence[dict[str, torch.Tensor]], galleries: Sequence[dict[str, torch.Tensor]], sets: dict[str, Crossing]
) -> dict[str, list[list[float]]]:
    """recall@k of step t's queries in the gallery of step s ≤ t, mean over sets, in percent."""
    recalls: dict[str, list[list[float]]] = {str(k): [] for k in KS}
    for t, asked in enumerate(queries):
        rows = [[one.recall(asked[name], galleries[s][name]) for name, one in sets.items()] for s in range(t + 1)]
        for k in recalls:
            recalls[k].append([fmean(one[k] for one in row) for row in rows])
    return recalls


def compatible(rows: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The share of pairs in which as much is found as by the gallery's own state (percent), and the largest drop."""
    drops = [rows[s][s] - row[s] for t, row in enumerate(rows) for s in range(t)]
    return 100 * fmean(drop <= 0 for drop in drops), max(drops)


def run(project: Path, timeline: str, size: int) -> dict[str, Any]:
    """Both matrices, and cosines of test images with the first state's."""
    states, cache = timelines.lineage(project, timeline), Cache(dvc_config.cache_dir(project))
    with tempfile.TemporaryDirectory() as folder:
        home, pools, tests = placed(states, cache, Path(folder))
        tokenize, preprocess = models.tokenizer(home), models.preprocess(home)
        sets = {name: crossing(name, data, tokenize) for name, data in tests.items()}
        sets = {name: one for name, one in sets.items() if one.queries}
        first = loaded(home, cache.path(states[0].entries[layout.DEPLOYED].md5))
        queries, galleries, turns, seconds = [], [], [], []
        for step, state in enumerate(states):
            model = loaded(home, cache.path(state.entries[layout.DEPLOYED].md5))
            images = {
                name: one.gallery(model, preprocess, BATCH, lambda _: None, "float32") for name, one in sets.items()
            }
            galleries.append(images)
            queries.append(
                {name: one.embedded_queries(model, images[name], BATCH, "float32") for name, one in sets.items()}
            )
            start = time.perf_counter()
            arrived = dict(list(pools.items())[: step + 1])
            probe = Probe(arrived, size, state.settings.seed)
            turns.append(rotation(probe.features(model, preprocess, lambda _: None),
                                  probe.features(first, preprocess, lambda _: None))[0])  # fmt: skip
            seconds.append(time.perf_counter() - start)
        turned = [
            [
                {name: (f.double() @ turn).float() for name, f in one.items()}
                for one, turn in zip(each, turns, strict=True)
            ]
            for each in (queries, galleries)
        ]
        before, after = matrix(queries, galleries, sets), matrix(turned[0], turned[1], sets)
        cosines = [
            [float(torch.cat([(f[n].double() * galleries[0][n]).sum(dim=1) for n in sets]).mean()) for f in each]
            for each in (galleries, turned[1])
        ]
    return {
        "timeline": timeline, "states": len(states), "sets": {name: one.queries for name, one in sets.items()},
        "probe": size, "seconds": [round(one, 1) for one in seconds],
        "cosine_with_first": {"before": cosines[0], "after": cosines[1]},
        "before": before, "after": after,
        "compatible_pairs": {k: [compatible(one[k])[0] for one in (before, after)] for k in before},
        "largest_drop": {k: [compatible(one[k])[1] for one in (before, after)] for k in before},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, default=Path())
    parser.add_argument("--timeline", default="demo")
    parser.add_argument("--probe", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = run(options.project.resolve(), options.timeline, options.probe)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{result['states']} states, {sum(result['sets'].values())} queries in {len(result['sets'])} sets")
    for when in ("before", "after"):
        print(f"\n{when}: cosine of test images with step 0's",
              " ".join(f"{one:.3f}" for one in result["cosine_with_first"][when]))  # fmt: skip
        for k in map(str, KS):
            print(f"recall@{k} of the queries of step (row) in the gallery of step (column), percent")
            for t, row in enumerate(result[when][k]):
                print(f"  {t}  " + " ".join(f"{value:5.1f}" for value in row))
    for k in map(str, KS):
        pairs, drops = result["compatible_pairs"][k], result["largest_drop"][k]
        print(
            f"recall@{k}: compatible pairs {pairs[0]:.0f} % → {pairs[1]:.0f} %;"
            f" largest drop {drops[0]:.1f} → {drops[1]:.1f}"
        )
    print(f"fitting a rotation: {max(result['seconds'])} s at most, {options.threads} threads")


if __name__ == "__main__":
    main()
