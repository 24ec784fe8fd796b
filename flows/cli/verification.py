"""What verification has found, in words and as rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tasks.record import DamagedObject, Holding, Integrity, NodeCheck, Verification, start_of
from tasks.units import size

SHOWN = 10
"""Findings of a kind that people get to see; programs get all."""


def recomputed_row(result: Verification) -> dict[str, Any]:
    return {
        "tag": result.state.tag,
        "same": result.same,
        "nodes": [
            {
                "node": check.node,
                "same": not check.differing,
                "outputs": {path: {"recorded": was, "now": now} for path, (was, now) in check.outputs.items()},
            }
            for check in result.nodes
        ],
        "first_to_differ": result.first.node if result.first else None,
        "reasons": list(result.reasons),
        "not_from_previous": list(result.history),
        "contradictions": list(result.contradictions),
        "failure": result.failure,
        "damaged": list(result.damaged),
        "stored": {"intact": result.objects[0], "objects": result.objects[1]},
        "seconds": result.seconds,
    }


def recomputed_lines(result: Verification) -> Iterator[str]:
    """One line where all is as recorded, else what differs, node by node, and why it may."""
    if result.same:
        yield f"{result.state.tag}: all {len(result.nodes)} nodes make the same bytes again ({result.seconds:.0f} s)"
        yield f"  {_stored(result)}"
        return
    if result.first or result.history or result.contradictions:
        verdict = "NOT as recorded"
    else:
        verdict = "could not be run again" if result.failure else "the same bytes again, but the stored ones are wrong"
    yield f"{result.state.tag}: {verdict} ({result.seconds:.0f} s)"
    for check in result.nodes:
        yield f"  {check.node:<20} {'differs: ' + _differing(check) if check.differing else 'same'}"
    if result.failure:
        yield f"  {result.failure}"
    if result.first:
        yield f"  first to differ: {result.first.node}; the nodes after it read what it made. It may be because:"
        yield from (f"  - {reason}" for reason in result.reasons)
    if result.history:
        start = start_of(result.state)
        yield f"  data/history does not follow from {start.tag if start else 'nothing'}: {', '.join(result.history)}"
    if result.contradictions:
        yield f"  manifest.json and DVC's files name different content for {', '.join(result.contradictions)}"
    for path in result.damaged:
        yield f"  {path}: the bytes in the cache are damaged; `chronomerge doctor --repair` repairs that"


def _stored(result: Verification) -> str:
    intact, objects = result.objects
    rest = "" if intact == objects else f"; {objects - intact} are not in the cache"
    return f"{intact} of {objects} stored objects read in the cache, all intact{rest} (--quick reads the store too)"


def _differing(check: NodeCheck) -> str:
    return ", ".join(
        f"{path} ({(was or 'nothing')[:7]} recorded, {(now or 'nothing')[:7]} now)"
        for path, (was, now) in check.outputs.items()
        if was != now
    )


def stored_rows(checked: Mapping[str, Integrity]) -> list[dict[str, Any]]:
    return [
        {
            "store": name,
            "same": one.same,
            "objects": one.objects,
            "cache": _place_row(one.cache),
            "remote": _place_row(one.remote),
        }
        for name, one in checked.items()
    ]


def _place_row(place: Holding) -> dict[str, Any]:
    def rows(findings: Sequence[DamagedObject]) -> list[dict[str, Any]]:
        return [
            {"object": one.md5, "needed_by": [{"tag": tag, "path": path} for tag, path in one.needed_by]}
            for one in findings
        ]

    return {
        "intact": place.intact,
        "bytes": place.bytes,
        "damaged": rows(place.damaged),
        "missing": rows(place.missing),
    }


def stored_lines(checked: Mapping[str, Integrity]) -> Iterator[str]:
    """A line for each place, then one for each object that is damaged or missing; a cache may lack what a store has."""
    for name, one in checked.items():
        lost = {finding.md5 for finding in (*one.remote.damaged, *one.remote.missing)}
        nowhere = [finding for finding in one.cache.missing if finding.md5 in lost]
        yield f"the cache: {one.cache.intact} of {one.objects} objects are intact ({size(one.cache.bytes)} read)"
        yield from _findings("damaged", one.cache.damaged)
        yield from _findings("missing", nowhere)
        if absent := len(one.cache.missing) - len(nowhere):
            yield f"  not in the cache: {absent} objects that the store has; they are fetched when they are needed"
        yield f"store {name}: {one.remote.intact} of {one.objects} objects are intact ({size(one.remote.bytes)} read)"
        yield from _findings("damaged", one.remote.damaged)
        yield from _findings("missing", one.remote.missing)
        if not one.same:
            yield "`chronomerge doctor --repair` repairs what either of the two still has."


def _findings(what: str, findings: Sequence[DamagedObject]) -> Iterator[str]:
    for one in findings[:SHOWN]:
        (tag, path), others = one.needed_by[0], len(one.needed_by) - 1
        yield f"  {what}: {path} of {tag}" + (f" and {others} more" if others else "") + f" (object {one.md5})"
    if len(findings) > SHOWN:
        yield f"  {what}: {len(findings) - SHOWN} more objects (--json lists them)"
