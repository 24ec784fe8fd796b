"""The few numbers and words at the head of the page."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

import pandas as pd

from tasks.report.metrics import mean_and_interval
from tasks.report.summary import KEYS, REFERENCES, best_cell, final, last_step, on_the_clock, spent
from tasks.scores import ROLES
from tasks.units import counted, duration, size

_MEAN = "geometric_mean"


@dataclass(frozen=True)
class Fact:
    """A number with its name, and a note in small print."""

    name: str
    value: str
    note: str = ""


def title(table: pd.DataFrame) -> str:
    """The timeline's name; of several, what their names have in common and how many there are."""
    names = list(table["timeline"].unique())
    if len(names) == 1:
        return str(names[0])
    parts = takewhile(lambda part: len(set(part)) == 1, zip(*(name.split("-") for name in names), strict=False))
    common = "-".join(part[0] for part in parts)
    return f"{common}: {len(names)} timelines" if common else f"{len(names)} timelines"


def extent(table: pd.DataFrame) -> str:
    """One line: how many of what."""
    cells = table[table["reference"] == ""]
    sets = table[(table["metric"] == "score") & table["role"].isin(ROLES)]["dataset"].nunique()
    protocols = (cells["init"] + " + " + cells["deploy"]).unique()
    techniques = [name for name in cells["technique"].unique() if name]
    single = table["timeline"].nunique() == 1
    if single:
        parts = [f"initialize {cells['init'].iloc[0]}, deploy {cells['deploy'].iloc[0]}", *techniques]
    else:
        seeds = cells["seed"].nunique()
        parts = [counted(len(protocols), "protocol"), counted(len(techniques), "technique"), counted(seeds, "seed")]
        parts = [" × ".join(parts)]
    line = ", ".join([*parts, counted(last_step(table), "time step"), counted(sets, "data set")])
    return line if single else f"{line}. Geometric means of accumulation and retention after the last step, in percent:"


def headline(table: pd.DataFrame) -> list[Fact]:
    """What was reached, what it is compared with, and what it cost."""
    return [*(_of_one(table) if table["timeline"].nunique() == 1 else _of_many(table)), *_costs(table)]


def notes(table: pd.DataFrame) -> list[str]:
    """What a reader of the numbers must know, in sentences."""
    sentences = []
    shares = table[table["metric"] == "evaluated_share"]
    if len(shares):
        steps = ", ".join(f"{step:.0f}" for step in sorted(set(shares["step"])))
        percent = " or ".join(f"{value:.3g} %" for value in sorted(set(100 * shares["value"])))
        sentences.append(
            f"At step {steps} scores are those of a share of the samples of {_names(shares)}: {percent} of each class."
            " All other scores are those of all samples."
        )
    left = table[table["metric"] == "left_out_of_normalized"]
    for role, what, model in (("adaptation", "accuracy", "own expert"), ("retention", "retention", "base")):
        if len(of_role := left[left["role"] == role]):
            sentences.append(
                f"Normalized {what} leaves out {_names(of_role)}: the {model} is under twice chance there."
            )
    return sentences


def _names(rows: pd.DataFrame) -> str:
    return ", ".join(sorted(set(rows["dataset"])))


def _of_one(table: pd.DataFrame) -> list[Fact]:
    first, last = (table[table["step"] == step].set_index("metric")["value"] for step in (0, last_step(table)))
    names = {"A_KA": "accumulation, A_KA", "A_ZS": "retention, A_ZS", _MEAN: "geometric mean"}
    facts = [Fact(name, f"{last[key]:.1f} %", f"base {first[key]:.1f} %") for key, name in names.items()]
    if "BWT" in last:
        facts.append(Fact("backward transfer", f"{last['BWT']:+.1f}".replace("-", "−"), f"ACC {last['ACC']:.1f} %"))
    if "Transfer" in last:
        value = f"{last['Transfer']:.1f} %"
        facts.append(Fact("transfer", value, f"average {last['Average']:.1f} %, last {last['Last']:.1f} %"))
    if "normalized_accuracy" in last:
        value = f"{last['normalized_accuracy']:.1f} %"
        facts.append(Fact("normalized accuracy", value, "of each arrival's own expert's scores"))
    if "normalized_retention" in last:
        facts.append(Fact("normalized retention", f"{last['normalized_retention']:.1f} %", "of the base's scores"))
    return facts


def _of_many(table: pd.DataFrame) -> list[Fact]:
    best = best_cell(table)
    table = table[table["variant"] == best["variant"]]  # each variant has a base and references of its own
    last = final(table)
    start = table[(table["step"] == 0) & (table["reference"] == "")]
    facts = [_fact("best cell", _chosen(last, best), str(best["cell"]))]
    plain = last[(last["init"] == "ft") & (last["deploy"] == "ft")]
    if len(plain):
        facts.append(_fact("replay baseline", plain, "ft + ft"))
    facts.append(_fact("base", start.drop_duplicates(["seed", "metric", "dataset"]), "before any arrival"))
    for name, label in REFERENCES.items():
        each = table[table["reference"] == name]
        if len(each):
            facts.append(_fact(label, each[each["step"] == each["step"].max()], "reference"))
    return facts


def _chosen(rows: pd.DataFrame, cell: pd.Series) -> pd.DataFrame:
    return rows[(rows[KEYS[:4]] == cell[KEYS[:4]]).all(axis=1)]


def _fact(name: str, rows: pd.DataFrame, note: str) -> Fact:
    mean, half = mean_and_interval(rows[rows["metric"] == _MEAN]["value"])
    return Fact(name, f"{mean:.1f}" + (f" ± {half:.1f}" if half == half else ""), note)


def _costs(table: pd.DataFrame) -> list[Fact]:
    sums = spent(table).groupby("what")[["value", "saved"]].sum().to_dict("index")
    nodes, saved = (float(sums["seconds"][column]) for column in ("value", "saved"))
    sharing = f"{duration(saved)} saved by sharing" if saved else ""
    clock = on_the_clock(table)
    if clock is None:  # states of an older version
        time = Fact("time of all nodes", duration(nodes), ", ".join(filter(None, ["without recording", sharing])))
    else:
        time = Fact(
            "time on the clock", duration(clock), ", ".join(filter(None, [f"nodes {duration(nodes)}", sharing]))
        )
    return [
        time,
        Fact("written", size(sums["megabytes"]["value"] * 1e6), counted(table["tag"].nunique(), "state")),
    ]
