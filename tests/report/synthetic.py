"""Made-up tables that look like a grid's: what a report shows without a project."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from tasks.grid.cells import Cell
from tasks.report import metrics
from tasks.report.tidy import CELL, COLUMNS
from tasks.report.vectors import Experts, Geometry, Vectors

PROTOCOLS = ("zs+ema", "zs+all", "ft+ft", "ft+ema", "ft+all", "ema+ft", "ema+ema", "ema+all")
ARRIVALS = ("food", "nature", "travel", "activities", "objects", "flags", "outlines", "sketches")
RETENTION = ("smileys", "people", "symbols")
NODES = {"prepare": 4, "prepare-evaluation": 6, "initialize": 1, "train": 34, "deploy": 2, "evaluate": 8}
_GAIN = {"zs": 0.55, "ft": 0.9, "ema": 0.95}
_KEPT = {"ft": 0.72, "ema": 0.93, "all": 0.9}


def cells(techniques: Sequence[str], seeds: int, protocols: Sequence[str] = PROTOCOLS) -> list[Cell]:
    found = []
    for protocol in protocols:
        init, deploy = protocol.split("+")
        for technique in [""] if protocol == "ft+ft" else techniques:
            for seed in range(seeds):
                name = "-".join(filter(None, ["grid", init, deploy, technique, str(seed)]))
                found.append(Cell(name, init, deploy, technique, seed))
    return found


def references(seeds: int) -> list[Cell]:
    return [
        Cell(f"grid-{name}-{seed}", "ft", "ft", "", seed, reference=name)
        for name in ("no-replay", "multitask")
        for seed in range(seeds)
    ]


def table(
    techniques: Sequence[str] = ("linear", "slerp", "ties"),
    seeds: int = 3,
    steps: int = 8,
    protocols: Sequence[str] = PROTOCOLS,
    *,
    with_references: bool = True,
) -> pd.DataFrame:
    """A tidy table as `tasks.report.tidy` makes it: the demo's data sets, and the effects that TIME reports."""
    timelines = [*cells(techniques, seeds, protocols), *(references(seeds) if with_references else ())]
    trained: set[tuple[str, str, int]] = set()
    rows = [row for cell in timelines for row in _timeline(cell, steps, techniques, trained)]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"value": np.float64})


def with_heads(table: pd.DataFrame) -> pd.DataFrame:
    """A table of timelines that also score heads: better at more shots, the same at every step."""
    scores = table[(table["metric"] == "score") & (table["reference"] == "")]
    rows = [scores.assign(metric="head:zeroshot@0")]
    for shots in (1, 4, 16):
        rows += [
            scores.assign(metric=f"head:{name}@{shots}", value=10.0 + shots + more) for name, more in HEADS.items()
        ]
    forgotten = scores.drop_duplicates(["timeline", "step"]).assign(dataset="", role="", value=1.0)
    rows += [forgotten.assign(metric=f"head_forgetting:{name}@16") for name in HEADS]
    return pd.concat([table, *rows], ignore_index=True)


def with_galleries(table: pd.DataFrame) -> pd.DataFrame:
    """A table of timelines that also search older galleries: a little less in each older one."""
    scores = table[(table["metric"] == "score") & (table["reference"] == "")]
    rows = []
    for k, more in ((1, 0.0), (5, 30.0)):
        for gallery in range(int(scores["step"].max()) + 1):
            later = scores[scores["step"] >= gallery]
            value = 60.0 + more - 2 * (later["step"] - gallery)
            rows.append(later.assign(metric=f"gallery_recall@{k}:{gallery}", value=value))
    pairs = scores.drop_duplicates(["timeline", "step"]).assign(
        dataset="", role="", metric="compatible_pairs", value=40.0
    )
    return pd.concat([table, *rows, pairs], ignore_index=True)


def with_routes(table: pd.DataFrame) -> pd.DataFrame:
    """A table of timelines whose images mostly go to their own experts."""
    scores = table[(table["metric"] == "score") & (table["reference"] == "") & (table["step"] > 0)]
    rows = [scores.assign(metric=f"routed_to:{name}", value=50.0) for name in ("base", "other")]
    steps = scores.drop_duplicates(["timeline", "step"]).assign(dataset="", role="")
    rows += [steps.assign(metric=name, value=60.0) for name in ("oracle_A_KA", "routing_accuracy")]
    return pd.concat([table, *rows], ignore_index=True)


HEADS = {"gda": 3.0, "tip": 1.0}


def with_fit(table: pd.DataFrame) -> pd.DataFrame:
    """A table of timelines whose weight was chosen on held-out samples: more gains, and forgets more."""
    each = table[(table["reference"] == "") & (table["step"] > 0)].drop_duplicates(["timeline", "step"])
    rows = [each.assign(metric="fit_value", dataset="weight", role="", value=0.5)]
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        gained, kept = 20 + 10 * value, 30 - 10 * value**2
        for name, score in (("A_KA", gained), ("A_ZS", kept), ("geometric_mean", math.sqrt(gained * kept))):
            rows.append(each.assign(metric=f"fit:{name}", dataset=f"{value:g}", role="", value=score))
    return pd.concat([table, *rows], ignore_index=True)


def _timeline(cell: Cell, steps: int, techniques: Sequence[str], trained: set[tuple[str, str, int]]) -> list[tuple]:
    random = np.random.default_rng([cell.seed, sum(map(ord, cell.timeline))])
    arrivals = ARRIVALS[:steps]
    shared = np.random.default_rng(cell.seed)
    base = np.linspace(8, 18, steps) + shared.normal(0, 0.8, steps)
    kept_base = np.linspace(24, 34, len(RETENTION)) + shared.normal(0, 0.8, len(RETENTION))
    better = 0.4 * (techniques.index(cell.technique) if cell.technique else 0)
    gain, kept = _GAIN[cell.init] * 28, _KEPT[cell.deploy]
    if cell.reference == "no-replay":
        gain, kept = 26.0, 0.5
    if cell.reference == "multitask":
        steps, gain, kept = 1, 30.0, 1.0
    accuracy, retained = [base], [kept_base]
    for step in range(1, steps + 1):
        loss = (1 - kept) * (1 - math.exp(-step / 3))
        if cell.reference == "multitask":
            now, zs = base + gain + random.normal(0, 0.6, len(base)), kept_base + 3
        else:
            now = np.array(
                [
                    base[i] + (gain + better) * (1 - loss * (1 - math.exp(-(step - i - 1))))
                    if i < step
                    else base[i] + 0.4 * step
                    for i in range(len(base))
                ]
            )
            now = now + random.normal(0, 0.8, len(base))
            zs = kept_base * (1 - 0.9 * loss) + better + random.normal(0, 0.5, len(kept_base))
        accuracy.append(now)
        retained.append(zs)
    matrix, arrived = np.array(accuracy), np.arange(1, len(base) + 1)
    streamed = {} if cell.reference == "multitask" else {
        "ACC": metrics.average_accuracy(matrix, arrived),
        "BWT": metrics.backward_transfer(matrix, arrived),
        "FWT": metrics.forward_transfer(matrix, arrived),
        "forgetting": metrics.forgetting(matrix, arrived),
    }  # fmt: skip
    named = tuple(getattr(cell, column) for column in CELL)
    rows = []
    for step in range(steps + 1):
        arrival = "everything" if cell.reference == "multitask" and step else ("base", *arrivals)[step]
        place = (*named, step, arrival, f"state/{cell.timeline}/{step:04d}")
        a, z = float(matrix[step].mean()), float(retained[step].mean())
        values = [
            *(("A_KA", "", "", a), ("A_ZS", "", "", z), ("geometric_mean", "", "", math.sqrt(a * z))),
            *(("score", name, "adaptation", value) for name, value in zip(arrivals, matrix[step], strict=False)),
            *(("score", name, "retention", value) for name, value in zip(RETENTION, retained[step], strict=True)),
            *((name, "", "", each[step]) for name, each in streamed.items() if math.isfinite(each[step])),
            ("budget_samples", "", "", 10240.0),
            ("bytes_new", "", "", 121e6),
            ("bytes_total", "", "", 260e6),
            ("bytes:inputs", "", "", 14e6 if cell.timeline == "grid-zs-ema-linear-0" else 0.0),
        ]
        total = 0.0
        for node, seconds in NODES.items():
            took = seconds * float(random.uniform(0.9, 1.1)) * (3 if step == 0 and node == "train" else 1)
            who = cell.technique if cell.init == "ema" and step else ""
            what = (f"{node}{step}{cell.init if step else ''}{who}", cell.reference, cell.seed)
            reused = node in ("prepare", "prepare-evaluation", "initialize", "train") and what in trained
            trained.add(what)
            values += [(f"seconds:{node}", "", "", took), (f"reused:{node}", "", "", float(reused))]
            values.append((f"bytes:{node}", "", "", 0.0 if reused else {"train": 30e6, "deploy": 60e6}.get(node, 1e6)))
            total += took
        values.append(("seconds", "", "", total))
        rows += [(*place, *value) for value in values]
    return rows


def vectors(steps: int = 8) -> Vectors:
    """Experts whose task vectors share a direction: few with zs, more the longer they are trained one on another."""
    random = np.random.default_rng(0)
    known = []
    for label, common in (("zs", 0.5), ("ft", 1.6), ("ema, linear", 1.0), ("ema, slerp", 1.05), ("ema, ties", 1.1)):
        shared = random.normal(size=200)
        each = random.normal(size=(steps, 200)) + common * shared * np.linspace(0.6, 1.4, steps)[:, None]
        each *= np.linspace(0.9, 1.3, steps)[:, None]
        name = label.replace(", ", "-")
        geometry = Geometry(tuple(range(1, steps + 1)), ARRIVALS[:steps], each @ each.T / 200)
        known.append(Experts(label, (f"grid-{name}-0",), geometry))
    return Vectors(tuple(known))
