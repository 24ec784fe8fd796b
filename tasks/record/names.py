"""What git calls a timeline and its states: branch, tags and other refs."""

from __future__ import annotations

import re
from typing import NamedTuple


def branch(timeline: str) -> str:
    return f"refs/heads/states/{timeline}"


def pointer(timeline: str) -> str:
    """The tag at the deployed state, the newest that is promoted: what a server follows."""
    return f"refs/tags/deployed/{timeline}"


def decisions(timeline: str) -> str:
    """The ref that keeps what people have decided by hand: a commit for each, none ever taken away."""
    return f"refs/decisions/{timeline}"


def short_tag(timeline: str, step: int, line: int = 1) -> str:
    """The tag of a state: ``state/demo/0003``, and ``state/demo/0003.2`` on the timeline's second line."""
    return f"state/{timeline}/{step:04d}" + (f".{line}" if line > 1 else "")


def tag(timeline: str, step: int, line: int = 1) -> str:
    return f"refs/tags/{short_tag(timeline, step, line)}"


class StateName(NamedTuple):
    """What the tag of a state says; in the order of `line` and `step`, states were recorded."""

    timeline: str
    line: int
    step: int


def parse(tag_name: str) -> StateName | None:
    """Read a tag, short or full; None where it is no state's (a user may keep tags of their own beside ours)."""
    match = re.fullmatch(r"(?:refs/tags/)?state/([^/]+)/(\d{4,})(?:\.([1-9]\d*))?", tag_name)
    if not match or match[3] == "1":  # the first line is not written
        return None
    return StateName(match[1], int(match[3] or 1), int(match[2]))
