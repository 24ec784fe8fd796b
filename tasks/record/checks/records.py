"""What git holds of states: their files, the branches, and what a git remote should have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from tasks.errors import UserError
from tasks.params import load
from tasks.record import heads, names, retention, sharing, timelines
from tasks.record import pointers as named_pointers
from tasks.record.diagnosis import Finding, Visit
from tasks.storage.git import GitError, git, require_remote, resolve


def damaged(visit: Visit) -> Iterator[Finding]:
    """Record files of states that cannot be read."""
    for state in timelines.every(visit.project):
        for name, why in state.unreadable().items():
            yield Finding(
                f"a damaged {name}", f"{state.tag} ({state.commit[:10]})", f"the state cannot be read: {why}",
                f"git show {state.tag}:{name} shows the file, git fsck whether the repository is damaged; if another "
                "clone has an intact copy of the tag, fetch it from there",
            )  # fmt: skip


def branches(visit: Visit) -> Iterator[Finding]:
    """The branch of a timeline is at its newest state."""
    for timeline in timelines.timeline_names(visit.project):
        branch = names.branch(timeline)
        head = resolve(visit.project, branch)
        recorded = timelines.states(visit.project, timeline)
        if head is None or not recorded or head == recorded[-1].commit or not visit.free(timeline):
            continue  # a clone has no such branch, and needs none
        newest = recorded[-1]
        if head in {state.commit for state in recorded}:
            yield Finding(
                f"branch states/{timeline} is behind", f"{head[:10]} instead of {newest.tag}",
                "a fetch brought tags without the branch, or somebody moved it", "move it to the newest state",
                partial(_move, visit.project, branch, newest.commit, head), timeline=timeline,
            )  # fmt: skip
        else:
            yield Finding(
                f"branch states/{timeline} is at no state", f"{head[:10]}, the newest state being {newest.tag}",
                "somebody committed to it or moved it; no step can be recorded until that is undone",
                f"keep that commit if you want it (git branch mine {head[:10]}), then "
                f"git update-ref {branch} {newest.tag}",
            )  # fmt: skip


def _move(project: Path, branch: str, new: str, old: str) -> None:
    git(project, "update-ref", branch, new, old)


def pointers(visit: Visit) -> Iterator[Finding]:
    """The pointers of a timeline are at its states."""
    for timeline in timelines.timeline_names(visit.project):
        refs = heads.local(visit.project, timeline)
        recorded = {state.commit for state in timelines.states(visit.project, timeline)}
        if refs.pointer and refs.pointer not in recorded:
            yield Finding(
                f"tag deployed/{timeline} is at no state", refs.pointer[:10],
                "somebody moved it, or a fetch brought it without the state's own tag; who follows it finds nothing",
                "move it to the newest promoted state", partial(_point, visit.project, timeline), timeline=timeline,
            )  # fmt: skip
        for name, commit in refs.named:
            if commit not in recorded:
                yield Finding(
                    f"tag pointer/{timeline}/{name} is at no state", commit[:10],
                    "somebody moved it, or a fetch brought it without the state's tag; who follows it finds nothing",
                    "put it back to where gate and people moved it, or delete it where nobody did",
                    partial(_point, visit.project, timeline), timeline=timeline,
                )  # fmt: skip


def _point(project: Path, timeline: str) -> None:
    old = heads.local(project, timeline)
    target = timelines.promoted_state(project, timeline, old.decisions)
    named = named_pointers.places(
        project, timelines.states(project, timeline), timelines.lineage(project, timeline), old.decisions
    )
    heads.move(project, timeline, old, replace(old, pointer=target.commit if target else None, named=named))


def not_pushed(visit: Visit) -> Iterator[Finding]:
    """Where states are shared (store.git), the git remote has every tag, and the notes of weights let go."""
    params = load(visit.project / "params.yaml")
    remote = params.store.git
    if remote:
        try:
            require_remote(visit.project, remote)
            rows = git(
                visit.project, "ls-remote", "--", remote, "refs/tags/state/*", "refs/heads/states/*", retention.NOTES
            )
        except (GitError, UserError) as error:
            yield Finding(
                f"git remote {remote!r} cannot be reached", remote, str(error), "correct the remote (git remote -v)",
            )  # fmt: skip
            return
        there = {name: commit for commit, name in (row.split("\t") for row in rows.splitlines())}
        shared = {params.timeline, *(state.timeline for ref in there if (state := names.parse(ref)))}
        for timeline in sorted(shared & set(timelines.timeline_names(visit.project))):
            lacking = [
                state for state in visit.states if state.timeline == timeline and f"refs/tags/{state.tag}" not in there
            ]
            if lacking and visit.free(timeline):
                yield Finding(
                    f"states that git remote {remote!r} lacks", names.listed(state.tag for state in lacking),
                    "a run ended before its push; other machines cannot go on from them", "push them",
                    partial(_push, visit.project, timeline, remote), timeline=timeline,
                )  # fmt: skip
        notes = resolve(visit.project, retention.NOTES)
        if notes and there.get(retention.NOTES) != notes:
            yield Finding(
                f"notes of weights let go that git remote {remote!r} lacks", retention.NOTES,
                "a sweep ended before its push, or another machine has notes too", "bring both together",
                partial(retention.push_notes, visit.project, remote),
            )  # fmt: skip


def _push(project: Path, timeline: str, remote: str) -> None:
    sharing.synchronize(project, timeline, remote)
    refs = [f"refs/tags/{state.tag}" for state in timelines.states(project, timeline)]
    try:
        git(project, "push", "--quiet", "--atomic", "--", remote, *refs)
    except GitError as error:
        raise UserError(f"git remote {remote!r} did not take the tags of timeline {timeline!r}: {error}") from None
