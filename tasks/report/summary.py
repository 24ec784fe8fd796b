"""What the tidy table says: means over seeds with 95 % intervals, factors compared fairly, the best cell, the cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from tasks.report.metrics import mean_and_interval, t_quantile

KEYS = ["init", "deploy", "technique", "variant", "reference"]
"""What tells cells apart, seeds aside."""
INITS = ("zs", "ft", "ema")
DEPLOYS = ("ft", "ema", "all", "routed")
REFERENCES = {"multitask": "multitask", "no-replay": "no replay"}
"""What references are called."""
FACTORS = ("init", "deploy", "technique")
"""What a reader asks of a grid: which of each."""


def named(cells: pd.DataFrame) -> pd.DataFrame:
    """With ``protocol`` (``ema + ema``, or a reference's name), and ``cell`` for tooltips."""
    protocol = (cells["init"] + " + " + cells["deploy"]).where(cells["reference"] == "", cells["reference"])
    label = protocol + cells["technique"].map(lambda name: f", {name}" if name else "")
    label += cells["variant"].map(lambda name: f" ({name})" if name else "")
    return cells.assign(protocol=protocol, cell=label)


def over_seeds(table: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Means over seeds: `KEYS`, step, metric, dataset, role, and ``mean``, ``low``, ``high``, ``half``, ``seeds``.

    ``half`` is half the width of the 95 % interval (Student's t), NaN with one seed; ``low`` and ``high`` are its ends.
    ``arrival`` is that of the step, empty where seeds differ in it.
    """
    rows = table[table["metric"].isin(metrics)]
    groups = rows.groupby([*KEYS, "step", "metric", "dataset", "role"], sort=False, observed=True)
    summary = groups["value"].agg(mean="mean", deviation="std", seeds="count").reset_index()
    quantile = summary["seeds"].map(lambda n: t_quantile(n - 1) if n > 1 else np.nan)
    summary["half"] = quantile * summary["deviation"] / np.sqrt(summary["seeds"])
    summary["low"], summary["high"] = summary["mean"] - summary["half"], summary["mean"] + summary["half"]
    arrivals = groups["arrival"].agg(_one_or_none).reset_index(drop=True)
    return summary.assign(arrival=arrivals).drop(columns="deviation")


def _one_or_none(names: pd.Series[str]) -> str:
    unique = set(names)
    return unique.pop() if len(unique) == 1 else ""


def last_step(table: pd.DataFrame) -> int:
    """The last step of any cell that is no reference."""
    return int(table[table["reference"] == ""]["step"].max())


def final(table: pd.DataFrame) -> pd.DataFrame:
    """The cells at the last step of their variant; those that have not reached it are left out, as are references."""
    cells = table[table["reference"] == ""]
    return cells[cells["step"] == cells.groupby("variant")["step"].transform("max")]


def everywhere(cells: pd.DataFrame, techniques: Sequence[str]) -> pd.DataFrame:
    """What merges nothing (ft + ft) stands for itself under every technique, so that tables have no holes."""
    merging = cells[cells["technique"] != ""]
    plain = cells[cells["technique"] == ""]
    return pd.concat([merging, *(plain.assign(technique=name) for name in techniques)], ignore_index=True)


def techniques(table: pd.DataFrame) -> list[str]:
    """The techniques of a table's cells in their order, without the empty label of ft + ft."""
    return [name for name in table["technique"].unique() if name]


def best_cell(table: pd.DataFrame) -> pd.Series:
    """The cell of the highest mean of the final geometric mean: its init, deploy, technique, variant, protocol
    and ``cell`` (its name), ``mean``, and the first of its timelines."""
    last = final(table)
    last = named(last[last["metric"] == "geometric_mean"])
    groups = last.groupby(["init", "deploy", "technique", "variant", "protocol", "cell"], sort=False)
    means = groups.agg(mean=("value", "mean"), timeline=("timeline", "first")).reset_index()
    best: pd.Series = means.iloc[int(means["mean"].to_numpy().argmax())]
    return best


def effects(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The final value of a metric by initialization, by deployment and by technique.

    Columns: factor, level, ``mean``, ``difference`` from the mean of the factor's levels, ``half`` (of the difference's
    95 % interval) and seeds. Levels are compared over the same settings of everything else: a setting in which one
    of them is missing (TIME has no zs + ft) takes no part. Differences are taken within each seed, so that what
    seeds have in common (the base, say) does not blur them.
    """
    last = final(table)
    cells = everywhere(last[last["metric"] == metric], techniques(table))
    merging = cells[(cells["init"] != "ft") | (cells["deploy"] != "ft")]
    rows: list[dict[str, Any]] = []
    for factor in FACTORS:
        compared = merging if factor == "technique" else cells
        others = [name for name in (*FACTORS, "variant", "seed") if name != factor]
        levels = compared[factor].nunique()
        whole = compared[compared.groupby(others)[factor].transform("nunique") == levels]
        if levels < 2 or whole.empty:
            continue
        means = whole.pivot_table(index="seed", columns=factor, values="value", sort=False)
        differences = means.sub(means.mean(axis=1), axis=0)
        for level in means:
            difference, half = mean_and_interval(differences[level])
            rows.append({
                "factor": factor, "level": level, "mean": means[level].mean(), "difference": difference, "half": half,
                "seeds": len(means),
            })  # fmt: skip
    return pd.DataFrame(rows, columns=["factor", "level", "mean", "difference", "half", "seeds"])


def spent(table: pd.DataFrame) -> pd.DataFrame:
    """Step, node, what (seconds or megabytes), ``value`` of what ran, and ``saved`` of what was taken again."""
    rows = table[table["metric"].str.match("(seconds|bytes|reused):")]
    kind, node = rows["metric"].str.partition(":")[0], rows["metric"].str.partition(":")[2]
    wide = rows.assign(kind=kind, node=node).pivot(index=["timeline", "step", "node"], columns="kind", values="value")
    seconds = wide["seconds"].where(wide["reused"] == 0), wide["seconds"].where(wide["reused"] == 1)
    parts = {
        "seconds": pd.DataFrame({"value": seconds[0], "saved": seconds[1]}),
        "megabytes": pd.DataFrame({"value": wide["bytes"] / 1e6, "saved": 0.0}),
    }
    long = pd.concat(parts, names=["what"])
    return long.groupby(["step", "node", "what"], sort=False)[["value", "saved"]].sum().reset_index()


def on_the_clock(table: pd.DataFrame) -> float | None:
    """Seconds during which at least one step was under way; None if a state does not say when and how long.

    Side by side, steps count once; pauses between runs do not count.
    """
    wide = table[table["metric"].isin(("elapsed", "recorded_at"))].pivot(index="tag", columns="metric", values="value")
    if len(wide) < table["tag"].nunique():
        return None
    # Half a second of the commit, and of the time of recording, which has no fractions.
    steps = sorted(zip(wide["recorded_at"] - wide["elapsed"], wide["recorded_at"] + 1.0, strict=True))
    total, until = 0.0, -math.inf
    for start, end in steps:
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
