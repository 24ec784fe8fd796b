"""Which states are promoted: what the gate compares a new one with, and what people decide by hand afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tasks import gate, layout
from tasks.errors import UserError
from tasks.params import Evaluate, Gate, load
from tasks.record import decisions, heads, names, pointers, retention, sharing, timelines, worktrees
from tasks.record.heads import Heads
from tasks.record.state import State
from tasks.scores import ROLES
from tasks.storage import locks
from tasks.storage.cache import Cache, Entry
from tasks.storage.git import GitError


def next_start(project: Path, timeline: str, settings: Gate | None) -> State | None:
    """The state that the next step starts from; None where nothing is recorded.

    The newest; or, where held states are skipped, the newest promoted one (the base, while there is none).
    """
    newest = timelines.last(project, timeline)
    if newest is None or settings is None or settings.held == "continue":
        return newest
    decided = heads.local(project, timeline).decisions
    return timelines.promoted_state(project, timeline, decided) or timelines.lineage(project, timeline)[0]


def reference(
    state: State | None, evaluate: Evaluate, sets: Entry, cache: Cache, bring: Callable[[str], None]
) -> gate.GateReference | None:
    """What a gate compares a new state with: the state that its pointer is at, and which of the test sets are the same.

    ``sets`` is the new state's ``data/step/evaluation``; ``bring`` puts an object of the store into the cache.
    """
    if state is None:
        return None
    theirs = state.entries[layout.EVALUATION]
    if not cache.path(theirs.md5).exists():
        bring(theirs.md5)
    before = _contents(state.settings.evaluate, cache.members(theirs))
    now = _contents(evaluate, cache.members(sets))
    partial = state.metrics.get("share", {}).keys()
    same = [role for role in ROLES if before[role] == now[role] and not before[role].keys() & partial]
    return gate.GateReference(state.tag, state.metrics, same)


def _contents(evaluate: Evaluate, files: Mapping[str, str]) -> dict[str, dict[str, dict[str, str]]]:
    """Role → set → relative path → md5; ``files`` are those of ``data/step/evaluation``."""
    contents: dict[str, dict[str, dict[str, str]]] = {}
    for role in ROLES:
        names = [one.name for one in getattr(evaluate, role)]
        contents[role] = {
            name: {path: md5 for path, md5 in files.items() if path.startswith(f"{name}/")} for name in sorted(names)
        }
    return contents


@dataclass(frozen=True)
class DecisionOutcome:
    """What became of a decision."""

    state: State
    changed: bool
    deployed: State | None
    """Where the pointer is that was decided about."""


def promote(
    project: Path, timeline: str, name: str, *, reason: str | None = None, pointer: str | None = None
) -> DecisionOutcome:
    """Promote a state by hand, or move a ``pointer`` to it, also while a run is under way.

    Raises:
        UserError: there is no such state, it cannot be promoted, or somebody else was first.
    """
    return _decide(project, timeline, name, promoted=True, reason=reason, pointer=pointer)


def hold(
    project: Path, timeline: str, name: str, *, reason: str | None = None, pointer: str | None = None
) -> DecisionOutcome:
    """Hold a state by hand, or take a ``pointer`` off it, also while a run is under way.

    Raises:
        UserError: there is no such state, it cannot be held, or somebody else was first.
    """
    return _decide(project, timeline, name, promoted=False, reason=reason, pointer=pointer)


def _decide(
    project: Path, timeline: str, name: str, *, promoted: bool, reason: str | None, pointer: str | None
) -> DecisionOutcome:
    place = names.parse(name)
    timeline = place.timeline if place else timeline
    with locks.using(project):
        shared = load(project / "params.yaml").store.git
        if shared:
            worktrees.require_not_checked_out(project, timeline)
            sharing.synchronize(project, timeline, shared)
        state = timelines.find(project, timeline, name)
        if pointer is not None:
            changed = point(state, pointer, placed=promoted, reason=reason, shared=shared)
            return DecisionOutcome(state, changed, pointers.all_of(project, timeline).get(pointer))
        moved = decide_on(state, promoted=promoted, reason=reason, shared=shared)
        return DecisionOutcome(state, moved is not None, moved or timelines.deployed(project, timeline))


def decide_on(state: State, *, promoted: bool, reason: str | None, shared: str | None) -> State | None:
    """Promote or hold a state by hand; decision and pointer move in one transaction.

    The caller keeps the sweep out (`lock.present`) and has brought the states of the ``shared`` git remote, if there is
    one. Whoever records meanwhile is not waited for: of the two, one is first, and the other is told.

    Returns the state that is deployed now, or None where the state was so already.

    Raises:
        UserError: the state is none of the current lineage, nothing would be left to deploy, its weights were let go,
            or somebody else was first.
    """
    project, timeline = state.project, state.timeline
    if state not in timelines.lineage(project, timeline):
        back = f"`chronomerge rollback {state.step}.{state.line}`"
        raise UserError(f"{state.tag} was left behind by a rollback; {back} goes back to it")
    old = heads.local(project, timeline)
    if timelines.is_promoted(state, decisions.latest(project, old.decisions)) == promoted:
        return None
    word = decisions.made_now(state.tag, reason, promoted=promoted, project=project)
    made = decisions.add(project, old.decisions, word)
    target = timelines.promoted_state(project, timeline, made)
    if target is None:
        raise UserError(
            f"{state.tag} is the only promoted state of its timeline; promote another one before holding it"
        )
    if target.commit in retention.let_go(project):
        raise UserError(
            f"{target.tag} would be deployed, but its weights were let go (chronomerge gc); promote another state first"
        )
    _move(project, timeline, old, replace(old, pointer=target.commit, decisions=made), shared)
    return target


def point(state: State, pointer: str, *, placed: bool, reason: str | None, shared: str | None) -> bool:
    """Move a pointer to a state by hand, or take it off; returns whether that changed anything. As `decide_on`.

    Taken off, it goes back to where it was before, or away.

    Raises:
        UserError: no pointer can be called so, it is not at the state, the weights of the state that it would be at
            were let go, or somebody else was first.
    """
    project, timeline = state.project, state.timeline
    pointers.checked(pointer)
    old = heads.local(project, timeline)
    at = pointers.all_of(project, timeline).get(pointer)
    if (at == state) == placed:
        if not placed:
            where = f"is at {at.tag}" if at else "is at no state"
            raise UserError(f"{pointer} {where}, not at {state.tag}; nothing changed")
        return False
    recorded, lineage = timelines.states(project, timeline), timelines.lineage(project, timeline)
    move = pointers.made_now(project, pointer, state, recorded[-1], reason, placed=placed)
    made = pointers.add(project, old.decisions, move)
    named = pointers.places(project, recorded, lineage, made)
    target = dict(named).get(pointer)
    if target in retention.let_go(project):
        tag = next(one.tag for one in recorded if one.commit == target)
        raise UserError(f"{pointer} would be at {tag}, whose weights were let go (chronomerge gc); choose another one")
    _move(project, timeline, old, replace(old, decisions=made, named=named), shared)
    return True


def _move(project: Path, timeline: str, old: Heads, new: Heads, shared: str | None) -> None:
    if shared:
        sharing.publish(timelines.lineage(project, timeline)[-1], new, old, shared)
    try:
        heads.move(project, timeline, old, new)
    except GitError as error:
        if heads.local(project, timeline) != old:
            raise UserError(f"timeline {timeline!r} moved on meanwhile; look again, and decide again") from None
        raise UserError(f"git cannot keep that decision: {error}") from None
