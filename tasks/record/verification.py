"""Verification: a state's nodes are run again, from its own code and inputs, and every hash is compared.

The recomputation is DVC's (``dvc repro --force``), in a process of its own and a worktree at the state's commit. The
inputs are copied there, never linked, and DVC gets an empty cache: whatever that code does, the project's cache and
the user's files are out of its reach.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from tasks import layout, nodes
from tasks.errors import UserError
from tasks.model import coded, models
from tasks.progress import Progress
from tasks.record import foreign, history, restoration, retention, stores, timelines
from tasks.record.repro import Repro
from tasks.record.state import State
from tasks.record.stores import Need
from tasks.record.worktrees import of_state, remove
from tasks.storage import dvc_config
from tasks.storage.cache import Cache, hash_of
from tasks.storage.dvc import Dvc
from tasks.storage.dvc_config import Remote
from tasks.storage.git import git


@dataclass(frozen=True)
class NodeCheck:
    """One node, run again: path of each output → (md5 as recorded, md5 now), None where there is none."""

    node: str
    outputs: Mapping[str, tuple[str | None, str | None]]

    coded_otherwise: tuple[str, ...] = ()
    """Coded files of other bytes, as another version of zstd writes them, that decode to the same weights."""

    @property
    def differing(self) -> list[str]:
        differ = [path for path, (recorded, now) in self.outputs.items() if recorded != now]
        return [path for path in differ if path not in self.coded_otherwise]


@dataclass(frozen=True)
class Verification:
    """What running a state again has shown."""

    state: State
    nodes: tuple[NodeCheck, ...] = ()
    """Those that ran to their end, in that order."""
    history: tuple[str, ...] = ()
    """Paths of ``data/history`` that do not follow from the state it started from."""
    contradictions: tuple[str, ...] = ()
    """Paths for which manifest.json and DVC's own files name different content."""
    failure: str | None = None
    """Why the nodes could not all be run."""
    damaged: tuple[str, ...] = ()
    """Paths whose stored bytes in the cache are not those recorded."""
    objects: tuple[int, int] = (0, 0)
    """How many of the state's objects the cache has intact, and how many there are; a store is not read."""
    reasons: tuple[str, ...] = ()
    """Why the first node that differs may differ, a sentence each."""
    seconds: float = 0.0

    @property
    def first(self) -> NodeCheck | None:
        """The first node whose outputs differ; those after it may differ only because they read them."""
        return next((check for check in self.nodes if check.differing), None)

    @property
    def same(self) -> bool:
        return not (self.first or self.history or self.contradictions or self.failure or self.damaged)


def chosen(project: Path, timeline: str, name: str | None, *, every: bool) -> list[State]:
    """The state that a command names, or every state of the timeline.

    Raises:
        UserError: neither or both; or there is none.
    """
    if every == (name is not None):
        raise UserError("say which state (3, say), or --all")
    if name is not None:
        return [timelines.find(project, timeline, name)]
    states = timelines.states(project, timeline)
    if not states:
        raise UserError(f"timeline {timeline!r} has no states yet")
    return states


def worth_running(states: Iterable[State]) -> tuple[list[State], dict[str, str]]:
    """The states to run again, and why the others are not: tag → reason. Each set of bytes is made once."""
    again: list[State] = []
    left: dict[str, str] = {}
    for state in states:
        twin = next((one for one in again if state.manifest.rollback and one.entries == state.entries), None)
        if state.commit in retention.let_go(state.project):
            left[state.tag] = "its weights were let go; --quick reads what is left"
        elif twin:
            left[state.tag] = f"it is {twin.tag} once more"
        else:
            again.append(state)
    return again, left


def verify(project: Path, states: Iterable[State], progress: Progress) -> list[Verification]:
    """Run the nodes of states again, one state after another, and read the bytes that the cache has of them.

    What the cache has damaged of the nodes' inputs is fetched again, and reported all the same.
    """
    home = layout.private(project) / "verify" / f"nodes-{os.getpid()}"
    try:
        with Repro(home, layout.private(project) / "logs") as repro:
            return [_verified(project, state, repro, progress) for state in states]
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _verified(project: Path, state: State, repro: Repro, progress: Progress) -> Verification:
    stored = Verification(state)
    try:
        cache = Cache(dvc_config.cache_dir(project))
        conditions = {path: cache.condition(entry) for path, entry in state.entries.items()}
        objects = {md5: intact for each in conditions.values() for md5, intact in each.items()}
        damaged = tuple(path for path, each in conditions.items() if False in each.values())
        stored = replace(stored, damaged=damaged, objects=(sum(map(bool, objects.values())), len(objects)))
        wanted = needs(state)
        for one, paths in wanted:
            for path in paths:
                cache.drop_damaged(one.entries[path])
        with stores.opened_for(project, wanted) as remote:
            checked = _recomputed(project, state, remote, repro, progress)
        return replace(checked, damaged=stored.damaged, objects=stored.objects)
    except UserError as error:  # of this state: others may do better
        return replace(stored, failure=str(error))


def needs(state: State) -> list[Need]:
    """What `verify` reads: the state's inputs, and what they should follow from."""
    previous = _predecessor(state)
    # Heads are not in every state.
    handed_on = [path for path in history.READS if previous and path in previous.entries]
    return [*([(previous, handed_on)] if previous else []), (state, layout.INPUTS)]


def _predecessor(state: State) -> State | None:
    """What a state's history is checked against: the state it started from, unless that has let its weights go."""
    start = timelines.start_of(state)
    return None if start is None or start.commit in retention.let_go(state.project) else start


def _recomputed(project: Path, state: State, remote: Remote | None, repro: Repro, progress: Progress) -> Verification:
    """Run a state's nodes again and compare what they make with what is recorded.

    ``remote`` may be None where the cache has all that it `needs`.

    Raises:
        UserError: an input cannot be had, or a path of the state leads outside its folder.
        RemoteError: the remote cannot be reached.
    """
    started = time.monotonic()
    foreign.check(project, state.commit, state.tag)
    cache = Cache(dvc_config.cache_dir(project))
    with _worktree(project, state) as (folder, scratch):
        if remote:
            with Dvc(project) as dvc, of_state(project, state, remote) as source:
                for one, wanted in needs(state):
                    restoration.fetch(one, cache, dvc, source, wanted)
        broken = unlike_history(state, cache, scratch)
        _place(state, cache, folder, scratch)
        ran, failure = repro.run(folder, scratch, _told(state, progress))
        declared, locked = nodes.declared(folder), state.locked
        if unknown := [name for name in ran if name not in declared]:
            raise UserError(f"{state.tag}: DVC runs a stage {unknown[0]!r} that dvc.yaml does not name")
        checks = [
            _checked(state, folder, name, {p: (locked.get(p), _md5(folder / p)) for p in declared[name].outputs})
            for name in (ran[:-1] if failure else ran)
        ]
    seconds = round(time.monotonic() - started, 1)
    verdict = Verification(state, tuple(checks), broken, state.contradictions, failure, seconds=seconds)
    return replace(verdict, reasons=_reasons(state, verdict.first.node)) if verdict.first else verdict


def _checked(state: State, folder: Path, name: str, outputs: Mapping[str, tuple[str | None, str | None]]) -> NodeCheck:
    """A node's check; a coded expert is compared by what it decodes to, which its header and the manifest name."""
    recorded, path = state.manifest.coded, layout.CODED_EXPERT
    was, now = outputs.get(path, (None, None))
    if recorded is None or was == now or not (folder / path).exists():
        return NodeCheck(name, outputs)
    about = coded.coding(folder / path).decoded
    same = (about.md5, about.size) == (recorded.decoded.md5, recorded.decoded.size)
    return NodeCheck(name, outputs, (path,) if same else ())


def unlike_history(state: State, cache: Cache, scratch: Path) -> tuple[str, ...]:
    """The paths in a state's history that are not what its predecessor hands on; both states' data are in the cache."""
    previous = _predecessor(state)
    if previous is None:
        return ()
    recorded = cache.members(state.entries[layout.HISTORY])
    batch = any(path.startswith("weights/experts/") for path in recorded)
    deployed, reference = history.DEPLOYED in recorded, _reference(state, recorded, cache)
    follows = cache.members(
        history.after(previous, cache, scratch, all_experts=batch, deployed=deployed, reference=reference)
    )
    return tuple(sorted(path for path in {*recorded, *follows} if recorded.get(path) != follows.get(path)))


def _reference(state: State, recorded: Mapping[str, str], cache: Cache) -> State | None:
    """The state that the recorded history says the deployed model is compatible with."""
    if history.REFERENCE not in recorded:
        return None
    named = json.loads(cache.path(recorded[history.REFERENCE]).read_text(encoding="utf-8"))["state"]
    return timelines.find(state.project, state.timeline, named)


@contextmanager
def _worktree(project: Path, state: State) -> Iterator[tuple[Path, Path]]:
    """A worktree at a state's commit, and a folder beside it; what dead processes left of theirs goes first."""
    place = layout.private(project) / "verify"
    for left in place.glob("*-*"):
        if not psutil.pid_exists(int(left.name.rpartition("-")[2])):
            _remove(project, left)
    home = place / f"{Path(state.tag).name}-{os.getpid()}"
    try:
        git(project, "worktree", "add", "--quiet", "--detach", "--no-checkout", "--", str(home / "tree"), state.commit)
        foreign.check_out(project, home / "tree", state.commit, state.tag)
        (home / "scratch").mkdir()
        yield home / "tree", home / "scratch"
    finally:
        _remove(project, home)


def _remove(project: Path, home: Path) -> None:
    remove(project, home / "tree")
    shutil.rmtree(home, ignore_errors=True)


def _place(state: State, cache: Cache, folder: Path, scratch: Path) -> None:
    """A worktree as it was before the nodes ran, with copies of the inputs and a cache of its own."""
    dvc_config.write_local(folder, {"cache": {"dir": str(scratch / "cache"), "type": "copy"}})
    for path, md5 in cache.files({path: state.entries[path] for path in layout.INPUTS}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(cache.path(md5), folder / path)
    (folder / "metrics.json").unlink()
    for name in layout.OPTIONAL:
        (folder / name).unlink(missing_ok=True)
    threads = {device.threads for device in state.manifest.device.values() if device.threads}
    if len(threads) == 1:  # results are bit-exact at equal counts, and this machine may have another number of cores
        params = folder / "params.yaml"
        params.write_text(
            re.sub(
                r"^threads:.*$", f"threads: {threads.pop()}", params.read_text(encoding="utf-8"), flags=re.MULTILINE
            ),
            encoding="utf-8",
        )


def _told(state: State, progress: Progress) -> Progress:
    def tell(what: str, done: int, total: int, note: str = "") -> None:
        progress(f"verify {state.tag}", done, total, f"{what} {note}".rstrip())

    return tell


def _md5(path: Path) -> str | None:
    return hash_of(path).md5 if path.exists() else None


def _reasons(state: State, node: str) -> tuple[str, ...]:
    """What is not as it was when a node was recorded, as far as its manifest tells."""
    then, recorded = state.manifest.versions, state.manifest.recorded
    here = nodes.versions()
    reasons = [
        f"{name} was {then.get(name, 'not there')}, here it is {here.get(name, 'not there')}"
        for name in sorted({*then, *here})
        if then.get(name) != here.get(name)
    ]
    device = state.manifest.device.get(node)
    now = models.device_facts(device.threads if device else None)
    if device and device.name not in (None, now["name"]):
        reasons.append(f"it ran on {device.name}, here on {now['name']}")
    if recorded.host != socket.gethostname():
        reasons.append(f"it was recorded on {recorded.host}: another processor may round otherwise")
    return tuple(reasons) or (
        f"versions, device, threads and host are those recorded: {node} depends on something else than its params and "
        "inputs (an unseeded choice, the time, a file elsewhere), or the recorded bytes never came from this code",
    )
