"""Run a node of the step, or reuse the outputs of an earlier run with the same key after a check of every byte."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tasks import nodes, references
from tasks.errors import UserError
from tasks.model import models
from tasks.nodes import Node, Work
from tasks.params import Params
from tasks.progress import Progress, silent
from tasks.references import Reference
from tasks.step.inputs import Inputs
from tasks.step.workspace import Step
from tasks.storage import locks
from tasks.storage.cache import Cache, Entry, hash_of
from tasks.workers import pool

LOCKS = ".chronomerge/nodes"
"""Lock files: processes of a project wait here for each other's nodes."""


@dataclass(frozen=True)
class Executed:
    """A node's outputs, in the worktree and in the cache, and whether an earlier run made them."""

    reference: Reference
    reused: bool


def execute(step: Step, name: str, given: Iterable[Inputs | Reference]) -> Executed:
    """Run the node ``name``, or reuse its outputs; ``given`` are the outputs of other nodes and the inputs of the step.

    If several processes need the same node, one runs it, and the others wait and reuse its outputs.

    Raises:
        UserError: the error of the node; or, on workers, why no worker can run it.
        StoppedError: the step is ending.
    """
    if name not in step.nodes:
        raise UserError(f"dvc.yaml has no stage {name!r}; `git checkout dvc.yaml` brings back what was there")
    node, folder, threads = step.nodes[name], step.folder, step.params.threads
    entries = {path: entry for one in given for path, entry in one.outs.items()}
    if lacking := [path for path in node.data if not f"{path}/".startswith(tuple(f"{parent}/" for parent in entries))]:
        raise ValueError(f"dvc.yaml says that {name} reads {lacking[0]}, and flows/timestep.py does not pass it on")
    workers = pool.current()
    machine = workers.machine(threads) if workers else models.device_facts(threads)
    key = nodes.key_of(node, folder, functools.partial(_content, step, entries), machine)
    with step.working(), one_at_a_time(step.project, key):
        earlier = references.find(step.project, key)
        if earlier and intact(earlier, step.cache):
            place(earlier, folder, step.cache)
            return Executed(earlier, reused=True)
        if workers:
            made = workers.run(
                node, key, folder, step.params, step.cache, step.progress, nodes.NODES[name].load_split(),
                inputs=_files(node, entries, step.cache), remote=step.remote.name, dvc=step.dvc,
            )  # fmt: skip
            place(made, folder, step.cache)
        else:
            made = run(node, key, nodes.NODES[name].load(), folder, step.params, step.cache, machine, step.progress)
        references.store(step.project, made)
        return Executed(made, reused=False)


def run(
    node: Node,
    key: str,
    work: Work,
    project: Path,
    params: Params,
    cache: Cache,
    machine: Mapping[str, str | int],
    progress: Progress = silent,
) -> Reference:
    """Remove old outputs of a node, run it, and put its outputs into the cache."""
    for path in node.outputs:
        _remove(project / path)
    nodes.start(project, node.name, key)
    started = time.monotonic()
    work(project, params, progress)
    seconds = round(time.monotonic() - started, 3)
    made = Reference(node.name, key, {path: cache.put(project / path) for path in node.outputs}, seconds, machine)
    shutil.rmtree(nodes.unfinished(project, node.name))
    return made


def one_at_a_time(project: Path, key: str) -> AbstractContextManager[None]:
    """The lock of a key, between processes.

    Keys share 4096 files: among a hundred cells it is rare that two unrelated nodes wait for each other.
    """
    return locks.exclusive(project / LOCKS / key[:3])


def intact(reference: Reference, cache: Cache) -> bool:
    """Whether all outputs are in the cache with the right bytes; damaged ones are removed from it."""
    damaged = [md5 for entry in reference.outs.values() for md5 in cache.drop_damaged(entry)]
    return not damaged and not any(cache.missing(entry) for entry in reference.outs.values())


def place(reference: Reference, project: Path, cache: Cache) -> None:
    """Link the outputs of a finished node to their paths in ``dvc.yaml``."""
    for path, entry in reference.outs.items():
        _remove(project / path)
        cache.link(entry, project / path)


def _content(step: Step, entries: Mapping[str, Entry], path: str) -> str:
    """The hash of a dependency: known for given inputs, computed for code."""
    for parent, entry in entries.items():
        if path == parent:
            return entry.md5
        if path.startswith(parent + "/"):
            part = step.cache.part(entry, path.removeprefix(parent + "/"))
            if part:
                return part.md5
    return hash_of(step.folder / path).md5


def _files(node: Node, entries: Mapping[str, Entry], cache: Cache) -> dict[str, Entry]:
    """The files that a node reads among its given inputs: path → content."""
    read = tuple(f"{path}/" for path in node.deps)
    listed = {name: md5 for name, md5 in cache.files(entries).items() if f"{name}/".startswith(read)}
    return {name: Entry(md5, cache.path(md5).stat().st_size) for name, md5 in listed.items()}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
