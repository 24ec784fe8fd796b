"""The states of a timeline, as git holds them: in order, by name, which one is the newest and which is deployed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tasks.errors import UserError
from tasks.params import Params
from tasks.record import decisions, heads, names
from tasks.record.decisions import Decision
from tasks.record.state import State
from tasks.storage.git import git, resolve


def states(project: Path, timeline: str) -> list[State]:
    """Every state of a timeline in the order they were recorded: line by line, each by step."""
    pattern = f"{names.tags(timeline)}*"
    rows = git(project, "for-each-ref", "--format=%(refname) %(objectname)", pattern).splitlines()
    tagged = ((names.parse(name), commit) for name, commit in (row.split() for row in rows))
    places = sorted((place, commit) for place, commit in tagged if place)
    return [State(project, timeline, place.step, commit, place.line) for place, commit in places]


def lineage(project: Path, timeline: str) -> list[State]:
    """What the newest state goes back to, step 0 first: all states, but for those that a rollback left behind.

    Raises:
        UserError: a state's predecessor has no tag here.
    """
    recorded = states(project, timeline)
    if not recorded or recorded[-1].line == 1:
        return recorded
    return leading_to(recorded[-1], recorded)


def lineage_of(state: State) -> list[State]:
    """A state and what it goes back to, step 0 first.

    Raises:
        UserError: a state's predecessor has no tag here.
    """
    return leading_to(state, states(state.project, state.timeline))


def leading_to(state: State, recorded: Sequence[State]) -> list[State]:
    """A state and what it goes back to, step 0 first; ``recorded`` are all states of its timeline.

    Raises:
        UserError: a state's predecessor has no tag here.
    """
    by_tag = {state.tag: state for state in recorded}
    line = [state]
    while previous := line[-1].manifest.previous:
        if previous not in by_tag:
            raise UserError(f"{line[-1].tag} goes back to {previous}, which is missing; `git fetch --tags` brings it")
        line.append(by_tag[previous])
    return line[::-1]


def timeline_names(project: Path) -> list[str]:
    """The timelines that have states."""
    rows = git(project, "for-each-ref", "--format=%(refname)", "refs/tags/state/**").splitlines()
    return sorted({state.timeline for row in rows if (state := names.parse(row))})


def every(project: Path) -> list[State]:
    """All states of all timelines."""
    return [state for timeline in timeline_names(project) for state in states(project, timeline)]


def find(project: Path, timeline: str, name: str | int) -> State:
    """A state as a person names it.

    ``3`` is step 3 of the current lineage, ``3.2`` that of the second line (``3.1`` of the first, whatever came after),
    and a full tag may be of any timeline.

    Raises:
        UserError: it is not recorded, or is no such name; says which are.
    """
    if place := names.parse(str(name)):
        timeline, step, line = place.timeline, place.step, place.line
    elif given := re.fullmatch(r"(\d+)(?:\.([1-9]\d*))?", str(name)):
        step, line = int(given[1]), int(given[2] or 0)
    else:
        raise UserError(
            f"{str(name)!r} names no state; say 3, 3.2 (step 3 on line 2) or {names.short_tag(timeline, 3)}"
        )
    recorded = states(project, timeline)
    current = lineage(project, timeline)
    for state in recorded if line else current:
        if state.step == step and line in (0, state.line):
            return state
    there = f"0 to {current[-1].step}" if current else "none; in a clone, `git fetch --tags` brings them"
    elsewhere = [state.name if state.line > 1 else f"{step}.1" for state in recorded if state.step == step]
    if elsewhere:
        there += f", and {', '.join(elsewhere)} on other lines"
    raise UserError(f"timeline {timeline!r} has no state {name} (recorded: {there})")


def reference(project: Path, params: Params) -> State | None:
    """The state that ``deploy.compatible_with`` names; None where it names none, or one that is still to be recorded.

    Raises:
        UserError: it is a state on another line that was never recorded.
    """
    if params.deploy is None or params.deploy.compatible_with is None:
        return None
    recorded = lineage(project, params.timeline)
    if not recorded or params.deploy.reference_step > recorded[-1].step:
        return None
    named = params.deploy.compatible_with
    return find(project, params.timeline, "0" if named == "first" else named)


def start_of(state: State) -> State | None:
    """The state that a state started from; None at step 0. Where held states are skipped, not the one before it."""
    tag = state.manifest.start
    return find(state.project, state.timeline, tag) if tag else None


def is_promoted(state: State, decided: Mapping[str, Decision]) -> bool:
    """Whether a state is promoted: as somebody decided (`decisions.latest`), else as the gate said when it was new."""
    if decision := decided.get(state.tag):
        return decision.promoted
    return state.manifest.promoted


def promoted_state(project: Path, timeline: str, decided: str | None) -> State | None:
    """The newest promoted state of the current lineage: where the pointer belongs, given a commit of the decisions."""
    by_hand = decisions.latest(project, decided)
    return next((state for state in reversed(lineage(project, timeline)) if is_promoted(state, by_hand)), None)


def deployed(project: Path, timeline: str) -> State | None:
    """The state that the pointer is at; where there is no pointer (states of before there were any), where it belongs.

    Raises:
        UserError: it is at no state of the timeline, which only a hand can have done.
    """
    refs = heads.local(project, timeline)
    if refs.pointer is None:
        return promoted_state(project, timeline, refs.decisions)
    at = [state for state in states(project, timeline) if state.commit == refs.pointer]
    if not at:
        raise UserError(
            f"tag deployed/{timeline} is at {refs.pointer[:10]}, which is no state of the timeline; "
            "`chronomerge doctor --repair` puts it back; in a clone, `git fetch --tags --force` may bring what it lacks"
        )
    return at[0]


def last(project: Path, timeline: str) -> State | None:
    """The newest state, checked against the branch.

    A clone or a fetch brings tags without the branch, or newer ones than it: then the tags tell.

    Raises:
        UserError: the branch is somewhere else, which only a hand can have done.
    """
    recorded = states(project, timeline)
    head = resolve(project, names.branch(timeline))
    newest = recorded[-1] if recorded else None
    if head and head not in {state.commit for state in recorded}:
        name = newest.tag if newest else "no tag"
        raise UserError(
            f"branch states/{timeline} is at {head[:10]}, but its newest state is {name}; "
            f"move the branch back (git update-ref) or delete what was made by hand"
        )
    return newest
