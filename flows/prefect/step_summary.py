"""A recorded step on one page of Markdown: what it reached, what changed against the state before, what it cost."""

from __future__ import annotations

import re

from tasks.record import State, compare
from tasks.text import markdown, shortened
from tasks.units import duration, size

TOTALS = {"A_KA": "accumulation (A_KA)", "A_ZS": "retention (A_ZS)", "geometric_mean": "geometric mean"}


def key(timeline: str) -> str:
    """What Prefect calls the summaries of a timeline, newest first: lower case letters, digits and dashes."""
    return f"step-{re.sub('[^a-z0-9]+', '-', timeline.lower()).strip('-')}"


def text(state: State, previous: State | None) -> str:
    """The summary of a state; ``previous`` is the one that it went on from."""
    manifest = state.manifest
    spent, code = manifest.seconds, manifest.code
    lines = [
        f"# {state.tag}: {markdown(manifest.arrival or 'base')}",
        "",
        markdown(
            f"init {manifest.protocol.init}, deploy {manifest.protocol.deploy}, technique {manifest.technique.name}; "
        )
        + f"code {code.label}",
        "",
        f"| in percent | {previous.tag if previous else 'before'} | now | change |",
        "|---|---:|---:|---:|",
        *_metrics(state, previous),
        "",
        f"{size(manifest.bytes.new)} new of {size(manifest.bytes.total)}; "
        f"{_clock(manifest.elapsed)}nodes {duration(sum(spent.values()))}: "
        + ", ".join(f"{markdown(node)} {duration(one)}" for node, one in spent.items()),
    ]
    if previous and (changed := compare(previous, state).params):
        lines += ["", "| param | before | now |", "|---|---|---|"]
        lines += [f"| {markdown(name)} | {_cell(was)} | {_cell(now)} |" for name, (was, now) in changed.items()]
    return "\n".join(lines) + "\n"


def _metrics(state: State, previous: State | None) -> list[str]:
    now = _percent(state)
    before = _percent(previous) if previous else {}
    return [
        f"| {TOTALS.get(name) or markdown(name)} | {f'{before[name]:.2f}' if name in before else '–'} | {value:.2f} | "
        f"{f'{value - before[name]:+.2f}' if name in before else ''} |"
        for name, value in now.items()
    ]


def _percent(state: State) -> dict[str, float]:
    return {name: state.metrics[name] for name in TOTALS} | state.metrics["top1"]


def _clock(elapsed: float | None) -> str:
    return "" if elapsed is None else f"{duration(elapsed)} on the clock, "


def _cell(value: object) -> str:
    return "–" if value is None else markdown(shortened(str(value)))
