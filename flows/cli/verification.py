"""What verification has found, in words and as rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tasks.record import DamagedObject, Holding, Integrity, NodeCheck, Verification, start_of
from tasks.units import size

SHOWN = 10
"""Findings of a kind that people get to see; programs get all."""


def recomputed_row(found: Verification) -> dict[str, Any]:
    return {
        "tag": found.state.tag,
        "same": found.same,
        "nodes": [
            {
                "node": check.node,
                "same": not check.differing,
                "outputs": {path: {"recorded": was, "now": now} for path, (was, now) in check.outputs.items()},
            }
            for check in found.nodes
        ],
        "first_to_differ": found.first.node if found.first else None,
        "reasons": list(found.reasons),
        "not_from_previous": list(found.history),
        "contradictions": list(found.contradictions),
        "failure": found.failure,
        "damaged": list(found.damaged),
        "stored": {"intact": found.objects[0], "objects": found.objects[1]},
        "seconds": found.seconds,
    }


def recomputed_lines(found: Verification) -> Iterator[str]:
    """One line where all is as recorded, else what differs, node by node, and why it may."""
    if found.same:
        yield f"{found.state.tag}: all {len(found.nodes)} nodes make the same bytes again ({found.seconds:.0f} s)"
        yield f"  {_stored(found)}"
        return
    if found.first or found.history or found.contradictions:
        verdict = "NOT as recorded"
    else:
        verdict = "could not be run again" if found.failure else "the same bytes again, but the stored ones are wrong"
    yield f"{found.state.tag}: {verdict} ({found.seconds:.0f} s)"
    for check in found.nodes:
        yield f"  {check.node:<20} {'differs: ' + _differing(check) if check.differing else 'same'}"
    if found.failure:
        yield f"  {found.failure}"
    if found.first:
        yield f"  first to differ: {found.first.node}; the nodes after it read what it made. It may be because:"
        yield from (f"  - {reason}" for reason in found.reasons)
    if found.history:
        start = start_of(found.state)
        yield f"  data/history does not follow from {start.tag if start else 'nothing'}: {', '.join(found.history)}"
    if found.contradictions:
        yield f"  manifest.json and DVC's files name different content for {', '.join(found.contradictions)}"
    for path in found.damaged:
        yield f"  {path}: the bytes in the cache are damaged; `chronomerge doctor --repair` repairs that"


def _stored(found: Verification) -> str:
    intact, objects = found.objects
    rest = "" if intact == objects else f"; {objects - intact} are not in the cache"
    return f"{intact} of {objects} stored objects read in the cache, all intact{rest} (--quick reads the store too)"


def _differing(check: NodeCheck) -> str:
    return ", ".join(
        f"{path} ({(was or 'nothing')[:7]} recorded, {(now or 'nothing')[:7]} now)"
        for path, (was, now) in check.outputs.items()
        if was != now
    )


def stored_rows(found: Mapping[str, Integrity]) -> list[dict[str, Any]]:
    return [
        {
            "store": name,
            "same": one.same,
            "objects": one.objects,
            "cache": _place_row(one.cache),
            "remote": _place_row(one.remote),
        }
        for name, one in found.items()
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


def stored_lines(found: Mapping[str, Integrity]) -> Iterator[str]:
    """A line for each place, then one for each object that is damaged or missing; a cache may lack what a store has."""
    for name, one in found.items():
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
