"""What the command line shows of states: tables for people, rows for programs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from tasks import layout, record
from tasks.gate import ConditionOutcome
from tasks.record import Decision, State
from tasks.units import size

DEPLOYED, HELD, POINTER = "▸", "×", "•"
"""The marks of states in the table."""
SHARE = "~"
"""The mark of scores that are those of a share of the test samples."""


def _row(
    state: State,
    current: bool,
    deployed: State | None,
    pointers: Mapping[str, State],
    decided: Mapping[str, Decision],
) -> dict[str, Any]:
    manifest, metrics = state.manifest, state.metrics
    decision = decided.get(state.tag)
    return {
        "tag": state.tag,
        "name": state.name,
        "step": state.step,
        "line": state.line,
        "current": current,
        "previous": manifest.previous,
        "starts_from": manifest.start,
        "promoted": record.is_promoted(state, decided),
        "pointer": state == deployed,
        "pointers": [name for name, at in pointers.items() if at == state],
        "gate": manifest.gate.as_dict() if manifest.gate else None,
        "decision": asdict(decision) if decision else None,
        "rollback": manifest.rollback.as_dict() if manifest.rollback else None,
        "arrival": manifest.arrival,
        "init": manifest.protocol.init,
        "deploy": manifest.protocol.deploy,
        "technique": manifest.technique.as_dict(),
        "A_KA": metrics["A_KA"],
        "A_ZS": metrics["A_ZS"],
        "geometric_mean": metrics["geometric_mean"],
        "top1": metrics["top1"],
        "recall": metrics.get("recall", {}),
        "share": metrics.get("share", {}),
        "routing": metrics.get("routing"),
        "budget": manifest.budget.as_dict(),
        "bytes": manifest.bytes.as_dict(),
        "seconds": manifest.seconds,
        "commit": state.commit,
        "code": manifest.code.as_dict(),
        "recorded": manifest.recorded.as_dict(),
        "data": {path: entry.md5 for path, entry in manifest.inputs.items()},
        "deployed": manifest.deployed.md5,
    }


def states_rows(project: Path, timeline: str, *, all_lines: bool = False) -> list[dict[str, Any]]:
    """The current lineage of a timeline as plain data, step 0 first; or every state of every line, as recorded."""
    lineage = record.lineage(project, timeline)
    shown = record.states(project, timeline) if all_lines else lineage
    deployed, decided = record.deployed(project, timeline), record.decided(project, timeline)
    pointers = record.pointers_of(project, timeline)
    return [_row(state, state in lineage, deployed, pointers, decided) for state in shown]


def states_table(project: Path, timeline: str, *, all_lines: bool = False) -> RenderableType:
    """The states of a timeline as a table for 80 columns, or a sentence when there are none."""
    rows = states_rows(project, timeline, all_lines=all_lines)
    if not rows:
        others = [name for name in record.timeline_names(project) if name != timeline]
        return f"timeline {timeline!r} has no states yet" + (f"; others: {', '.join(others)}" if others else "")
    newest = rows[-1]
    technique = ", ".join(
        str(value) if key == "name" else f"{key} {value}" for key, value in newest["technique"].items()
    )
    title = f"timeline {timeline}: init {newest['init']}, deploy {newest['deploy']}, {technique}"
    table = Table(title=title, title_justify="left", box=box.HORIZONTALS, padding=0)
    for column in ("step", "arrival", "A_KA", "A_ZS", "mean", "samples", "new", "bytes", "code", "data"):
        left = column in ("arrival", "code", "data")
        table.add_column(column, justify="left" if left else "right", no_wrap=column != "arrival")
    for row, before in zip(rows, [None, *rows], strict=False):
        if before and row["line"] != before["line"] and all_lines:
            table.add_section()
        table.add_row(*_cells(row), style=None if row["current"] else "dim")
    pointers = record.pointers_of(project, timeline)
    return Group(table, *_notes(rows, record.states(project, timeline), pointers))


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        (DEPLOYED if row["pointer"] else "" if row["promoted"] else HELD)
        + (POINTER if row["pointers"] else "")
        + row["name"],
        row["arrival"] or "–",
        *(f"{SHARE if row['share'] else ''}{row[name]:.2f}" for name in ("A_KA", "A_ZS", "geometric_mean")),
        f"{row['budget'].get('samples', 0):,}",
        size(row["bytes"]["new"]),
        size(row["bytes"]["total"]),
        row["code"]["commit"][:7] + ("*" if row["code"]["dirty"] else ""),
        row["data"][layout.RAW_ARRIVAL][:7],
    ]


def _notes(rows: list[dict[str, Any]], everything: list[State], pointers: Mapping[str, State]) -> Iterator[str]:
    """What the table's short cells mean, and where lines part."""
    for row in rows:
        if row["pointer"]:
            yield f"{DEPLOYED} deployed: tag deployed/{row['tag'].split('/')[1]}"
        elif not row["promoted"]:
            yield f"{HELD} {row['name']} is held: {_why_held(row)}"
    for name, state in pointers.items():
        yield f"{POINTER} {name}: {state.name}, tag pointer/{state.timeline}/{name}"
    if partial := [row for row in rows if row["share"]]:
        steps = ", ".join(row["name"] for row in partial)
        shares = sorted({value for row in partial for value in row["share"].values()})
        sets = ", ".join(sorted({name for row in partial for name in row["share"]}))
        percent = " or ".join(f"{100 * value:.3g} %" for value in shares)
        yield f"{SHARE} {steps}: evaluated on {percent} of each class of {sets}; all other scores are of all samples"
    if routing := rows[-1]["routing"]:
        right = routing["mean_accuracy"]
        said = "" if right is None else f"{right:.1f} % of the images of arrived sets go to their own expert; "
        yield f"routes of {rows[-1]['name']}: {said}A_KA with the oracle's routes is {routing['oracle_A_KA']:.2f}"
    if any(row["code"]["dirty"] for row in rows):
        yield "* with changes that were not committed; the state has them"
    for row in rows:
        if row["rollback"]:
            gone, since = row["rollback"], row["rollback"]["at"].partition("T")[0]
            yield f"line {row['line']}: rolled back from {gone['from']} to {gone['to']} on {since}"
    if hidden := len(everything) - len(rows):
        yield f"left behind by rollbacks: {hidden} more states (--all)"


def _why_held(row: Mapping[str, Any]) -> str:
    """Whose word it was, or the conditions that failed, with the values that they found."""
    if decision := row["decision"]:
        said = f"by {decision['who']} on {decision['at'].partition('T')[0]}"
        return said + (f", {decision['reason']}" if decision["reason"] else "")
    outcomes = [ConditionOutcome(**outcome) for outcome in row["gate"]["conditions"]]
    return ", ".join(str(outcome) for outcome in outcomes if outcome.holds is False)


def held_lines(project: Path, timeline: str, tags: Collection[str]) -> Iterator[str]:
    """A sentence for each of these states that is held."""
    deployed, decided = record.deployed(project, timeline), record.decided(project, timeline)
    at = f"stays at {deployed.tag}" if deployed else "is nowhere yet"
    for state in record.states(project, timeline):
        if state.tag in tags and not record.is_promoted(state, decided):
            why = _why_held(_row(state, True, deployed, {}, decided))
            yield f"{state.tag} is held: {why}; deployed/{timeline} {at}"


def withdrawn_lines(project: Path, timeline: str) -> Iterator[str]:
    """A sentence for each arrival that was taken out of the newest state: what still descends from it."""
    newest = record.last(project, timeline)
    for one in newest.manifest.withdrawals if newest else ():
        said = f"still descend from it: {', '.join(one.still_in)}" if one.still_in else "no expert descends from it"
        way_out = f" (chronomerge withdraw {one.arrival} --retrain trains these again)" if one.still_in else ""
        yield f"{one.arrival} was withdrawn; {said}{way_out}"


def what_next(project: Path, timeline: str) -> str:
    """The commands worth trying after a run."""
    states = record.lineage(project, timeline)
    first, last = states[0], states[-1]
    middle = last.step // 2
    return "\n".join([
        "Try next (after `source .venv/bin/activate`):",
        f"  chronomerge restore {middle}            state {middle}, bit for bit, in a folder beside this one",
        f"  git show {last.tag}:manifest.json  what made the newest state",
        f"  chronomerge states --diff {first.name} {last.name}    what changed between two states",
        f"  chronomerge verify {last.name}             makes it again, and compares every byte",
        f"  chronomerge rollback {middle}           goes on from there; what came after stays",
        "  edit params.yaml (timeline, stream, time) and `chronomerge run`",
    ])  # fmt: skip


def nothing_pending(project: Path, timeline: str) -> str:
    last = record.last(project, timeline)
    return f"nothing to do: timeline {timeline} is recorded up to {last.tag}" if last else "nothing to do"
