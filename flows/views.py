"""What the command line shows of runs and states: tables for people, rows for programs."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from rich.table import Table

from flows.run import pending
from tasks.cache import Cache
from tasks.record import config, lock, store
from tasks.record import restore as restoring
from tasks.record import states as recorded
from tasks.record.restore import Restored
from tasks.record.states import State


def size(count: int) -> str:
    """Bytes for people: 1234567 → 1.2 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _row(state: State) -> dict[str, Any]:
    manifest, metrics = state.manifest, state.metrics
    return {
        "tag": state.tag,
        "step": state.step,
        "arrival": manifest["arrival"],
        "init": manifest["protocol"]["init"],
        "deploy": manifest["protocol"]["deploy"],
        "technique": manifest["technique"],
        "A_KA": metrics["A_KA"],
        "A_ZS": metrics["A_ZS"],
        "geometric_mean": metrics["geometric_mean"],
        "top1": metrics["top1"],
        "bytes": manifest["bytes"],
        "seconds": manifest["seconds"],
        "commit": state.commit,
        "code": manifest["code"],
        "recorded": manifest["recorded"],
        "data": {path: entry["md5"] for path, entry in manifest["inputs"].items()},
        "deployed": manifest["outputs"]["data/step/deployed.safetensors"]["md5"],
    }


def states_rows(project: Path, timeline: str) -> list[dict[str, Any]]:
    """The states of a timeline as plain data, step 0 first."""
    return [_row(state) for state in recorded.all_states(project, timeline)]


def states_table(project: Path, timeline: str) -> Table | str:
    """The states of a timeline as a table, or a sentence when there are none."""
    rows = states_rows(project, timeline)
    if not rows:
        others = [name for name in recorded.timelines(project) if name != timeline]
        return f"timeline {timeline!r} has no states yet" + (f"; others: {', '.join(others)}" if others else "")
    newest = rows[-1]
    title = f"timeline {timeline}: init {newest['init']}, deploy {newest['deploy']}, {newest['technique']['name']}"
    table = Table(title=title, title_justify="left")
    for column in ("step", "arrival", "A_KA", "A_ZS", "geo. mean", "new bytes", "bytes"):
        table.add_column(column, justify="left" if column == "arrival" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["step"]),
            row["arrival"] or "–",
            f"{row['A_KA']:.2f}",
            f"{row['A_ZS']:.2f}",
            f"{row['geometric_mean']:.2f}",
            size(row["bytes"]["new"]),
            size(row["bytes"]["total"]),
        )
    return table


def what_next(project: Path, timeline: str) -> str:
    """The commands worth trying after a run."""
    states = recorded.all_states(project, timeline)
    first, last = states[0], states[-1]
    middle = last.step // 2
    return "\n".join([
        "Try next (after `source .venv/bin/activate`):",
        f"  chronomerge restore {middle}            state {middle}, bit for bit, in a folder beside this one",
        f"  git show {last.tag}:manifest.json  what made the newest state",
        f"  git diff {first.tag} {last.tag} -- metrics.json",
        "  edit params.yaml (timeline, stream, time) and `chronomerge run`",
    ])  # fmt: skip


def status(project: Path) -> dict[str, Any]:
    """What runs, what is recorded last, what is pending."""
    todo = pending(project)
    name = todo.params.timeline
    names = ["base", *(arrival.name for arrival in todo.params.stream)]
    return {
        "timeline": name,
        "running": lock.holder(project, name),
        "last": todo.last.tag if todo.last else None,
        "pending": [{"step": step, "arrival": names[step]} for step in todo.steps],
    }


def status_text(found: dict[str, Any]) -> str:
    steps = ", ".join(f"{p['step']} ({p['arrival']})" for p in found["pending"])
    return "\n".join([
        f"timeline {found['timeline']}",
        f"  running   {found['running'] or 'nothing'}",
        f"  last      {found['last'] or 'no state yet'}",
        f"  pending   {steps or 'nothing'}",
    ])  # fmt: skip


def nothing_pending(project: Path, timeline: str) -> str:
    last = recorded.last(project, timeline)
    return f"nothing to do: timeline {timeline} is recorded up to {last.tag}" if last else "nothing to do"


def restore(project: Path, timeline: str, step: int, to: Path | None) -> Restored:
    """Restore a state; the store is opened only when the cache lacks something."""
    state = recorded.find(project, timeline, step)
    folder = to.absolute() if to else restoring.default_folder(project, state)
    with contextlib.ExitStack() as stack:
        remote = None
        if restoring.missing(state, Cache(config.cache_dir(project))):
            remote = stack.enter_context(store.open_store(project, state.params["store"]["remote"]))
        return restoring.restore(project, state, folder, remote)
