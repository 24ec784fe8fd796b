"""What git calls a timeline and its states: branch, tags and other refs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from tasks.errors import UserError


def checked(timeline: str) -> str:
    """The name of a timeline, once it is known to be one: it becomes part of refs, patterns and paths.

    Raises:
        UserError: it cannot be the name of a timeline.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", timeline) or ".." in timeline:
        raise UserError(f"{timeline!r} cannot be the name of a timeline: letters, digits, '.', '_' and '-' only")
    return timeline


def branch(timeline: str) -> str:
    return f"refs/heads/states/{checked(timeline)}"


def pointer(timeline: str) -> str:
    """The tag at the deployed state, the newest that is promoted: what a server follows."""
    return f"refs/tags/deployed/{checked(timeline)}"


def named_pointers(timeline: str) -> str:
    """What the tags of a timeline's other pointers begin with: ``champion`` is ``pointer/demo/champion``."""
    return f"refs/tags/pointer/{checked(timeline)}/"


def decisions(timeline: str) -> str:
    """The ref that keeps what people have decided by hand: a commit for each, none ever taken away."""
    return f"refs/decisions/{checked(timeline)}"


def short_tag(timeline: str, step: int, line: int = 1) -> str:
    """The tag of a state: ``state/demo/0003``, and ``state/demo/0003.2`` on the timeline's second line."""
    return f"state/{checked(timeline)}/{step:04d}" + (f".{line}" if line > 1 else "")


def tags(timeline: str) -> str:
    """What the tags of a timeline's states begin with."""
    return f"refs/tags/state/{checked(timeline)}/"


def tag(timeline: str, step: int, line: int = 1) -> str:
    return f"refs/tags/{short_tag(timeline, step, line)}"


class StateName(NamedTuple):
    """What the tag of a state says; in the order of `line` and `step`, states were recorded."""

    timeline: str
    line: int
    step: int


def parse(tag_name: str) -> StateName | None:
    """Read a tag, short or full; None where it is no state's (a user may keep tags of their own beside ours)."""
    match = re.fullmatch(r"(?:refs/tags/)?state/([A-Za-z0-9][A-Za-z0-9._-]*)/(\d{4,})(?:\.([1-9]\d*))?", tag_name)
    if not match or match[3] == "1":  # the first line is not written
        return None
    return StateName(match[1], int(match[3] or 1), int(match[2]))


SHOWN = 4


def listed(tags: Iterable[str]) -> str:
    """Tags of states for people: steps that follow each other as one range, and no more than `SHOWN` of those."""
    states = sorted(state for one in set(tags) if (state := parse(one)))
    ranges: list[list[StateName]] = []
    for state in states:
        last = ranges[-1][-1] if ranges else None
        if last and (last.timeline, last.line, last.step + 1) == (state.timeline, state.line, state.step):
            ranges[-1].append(state)
        else:
            ranges.append([state])
    shown = [_range(short_tag(one[0].timeline, one[0].step, one[0].line), one) for one in ranges[:SHOWN]]
    rest = sum(map(len, ranges[SHOWN:]))
    return ", ".join(shown) + (f" and {rest} more states" if rest else "")


def _range(first: str, states: list[StateName]) -> str:
    if len(states) < 3:
        return ", ".join(short_tag(one.timeline, one.step, one.line) for one in states)
    last = short_tag(states[-1].timeline, states[-1].step, states[-1].line).rpartition("/")[2]
    return f"{first} to {last} ({len(states)} states)"
