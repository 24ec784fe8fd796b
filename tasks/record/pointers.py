"""Pointers of other names than ``deployed``: ``candidate``, ``champion``, whatever a project calls them.

A pointer is the tag ``pointer/TIMELINE/NAME`` at a state. A gate moves it to a new state (``pointers`` in params.yaml,
the verdict is in the state's manifest), or a person moves it by hand, to any state, or takes it off one; then it goes
back to where it was before. What counts is the last of these in time. A rollback leaves what people said, and takes
back the moves to states that it left behind.

Moves by hand are in ``pointers.json`` on the ref of the decisions (`tasks.record.decisions`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tasks.errors import UserError, first_problem
from tasks.params import POINTER
from tasks.record import decisions, heads, timelines
from tasks.record.state import State

FILE = "pointers.json"


@dataclass(frozen=True)
class PointerMove:
    """A pointer that somebody moved to a state, or took off it."""

    pointer: str
    state: str
    """The tag of the state."""
    placed: bool
    after: str
    """The tag of the newest state at that time."""
    who: str
    host: str
    at: str
    """UTC, ISO 8601."""
    reason: str | None


_MOVES = TypeAdapter(list[PointerMove])


def checked(name: str) -> str:
    """The name of a pointer.

    Raises:
        UserError: it cannot be one.
    """
    try:
        return POINTER.validate_python(name)
    except ValidationError as error:
        raise UserError(f"{name!r:.80} cannot be the name of a pointer: {first_problem(error)}") from None


def read(project: Path, commit: str | None) -> list[PointerMove]:
    """All moves by hand up to a commit of the decisions, the first one first.

    Raises:
        UserError: they are damaged.
    """
    return decisions.read_rows(project, commit, FILE, _MOVES)


def add(project: Path, before: str | None, move: PointerMove) -> str:
    """Make the commit of one more move; no ref moves."""
    rows = [asdict(one) for one in (*read(project, before), move)]
    subject = f"{move.pointer} to {move.state}" if move.placed else f"{move.pointer} off {move.state}"
    return decisions.commit(project, before, FILE, rows, subject, move.reason)


def made_now(
    project: Path, pointer: str, state: State, newest: State, reason: str | None, *, placed: bool
) -> PointerMove:
    """A move by the current user, now."""
    return PointerMove(pointer, state.tag, placed, newest.tag, *decisions.signature(project), reason)


def places(
    project: Path, recorded: Sequence[State], lineage: Iterable[State], decided: str | None
) -> tuple[tuple[str, str], ...]:
    """Where the pointers belong, as `heads.Heads.named`.

    ``recorded`` are all states of a timeline, ``lineage`` the current ones, ``decided`` a commit of the decisions.
    """
    by_tag = {state.tag: state for state in recorded}
    events: list[tuple[tuple[int, int, int], str, State, bool]] = []
    for state in lineage:
        judged = _origin(state, by_tag)
        for name, verdict in judged.manifest.pointers.items():
            if verdict.promoted:
                events.append(((judged.line, judged.step, 0), name, state, True))
    for move in read(project, decided):
        after, target = by_tag.get(move.after), by_tag.get(move.state)
        if target is None or after is None:
            raise UserError(
                f"pointer {move.pointer!r} was moved to {move.state} after {move.after}, and one of them is missing "
                "here; `git fetch --tags` brings it"
            )
        events.append(((after.line, after.step, 1), move.pointer, target, move.placed))
    stacks: dict[str, list[State]] = {}
    for _, name, state, placed in sorted(events, key=lambda event: event[0]):
        before = [one for one in stacks.get(name, []) if one != state]
        stacks[name] = [*before, state] if placed else before
    return tuple(sorted((name, stack[-1].commit) for name, stack in stacks.items() if stack))


def _origin(state: State, by_tag: dict[str, State]) -> State:
    """The state that a state's bytes were recorded as first: a rollback repeats one, with the verdict it had."""
    while (back := state.manifest.rollback) and back.to in by_tag:
        state = by_tag[back.to]
    return state


def all_of(project: Path, timeline: str) -> dict[str, State]:
    """Every pointer of a timeline but the deployed one, and its state.

    Raises:
        UserError: one is at no state of the timeline, which only a hand can have done.
    """
    by_commit = {state.commit: state for state in timelines.states(project, timeline)}
    pointed = {}
    for name, commit in heads.local(project, timeline).named:
        if commit not in by_commit:
            raise UserError(
                f"tag pointer/{timeline}/{name} is at {commit[:10]}, which is no state of the timeline; `chronomerge "
                "doctor --repair` puts it back; in a clone, `git fetch --tags --force` may bring what it lacks"
            )
        pointed[name] = by_commit[commit]
    return pointed


def find(project: Path, timeline: str, name: str) -> State:
    """The state that a pointer is at.

    Raises:
        UserError: there is no such pointer; says which there are.
    """
    there = all_of(project, timeline)
    if name not in there:
        known = ", ".join(sorted(there)) or "none"
        raise UserError(
            f"timeline {timeline!r} has no pointer {name!r:.80} in this clone (there are: {known}); `chronomerge "
            "promote T --pointer NAME` makes one, `git fetch --tags --force` brings those of others"
        )
    return there[name]
