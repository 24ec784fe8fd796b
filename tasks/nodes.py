"""A node of the time step: what ``dvc.yaml`` declares, turned into a key, a run and a reference to its outputs.

The key is a hash of everything a node's outputs depend on: its command, the params it reads, the content of
its dependencies (its own code among them) and the versions of the libraries that compute. Equal keys, equal
bytes; so a finished node is never run twice, in whatever order and after whatever crash.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tasks.params import Params, Train
from tasks.progress import Progress, silent
from tasks.storage import locks
from tasks.storage.cache import Cache, Entry, hash_of

LIBRARIES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "numpy",
    "safetensors",
    "pillow",
    "datasets",
    "resvg-py",
    "pyarrow",
)
"""What computes the outputs; another version may give other bytes, and is a reason to run again."""

UNFINISHED = ".chronomerge/unfinished"
"""Where nodes keep what they have not finished; in a run's worktree a link to a folder that outlives it."""

LOCKS = ".chronomerge/nodes"
"""Where processes of a project wait for each other's nodes."""

Work = Callable[[Path, Params, Progress], None]
"""A node's plain function: (project folder, params, progress); reads and writes as ``dvc.yaml`` declares."""


@dataclass(frozen=True)
class Node:
    """One stage of ``dvc.yaml``."""

    name: str
    cmd: str
    params: tuple[str, ...]
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    metrics: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """Everything it leaves behind, metrics too."""
        return (*self.outs, *self.metrics)


@dataclass(frozen=True)
class Reference:
    """What a finished node left behind: output path → entry in the cache. Small, and plain JSON."""

    node: str
    key: str
    outs: Mapping[str, Entry]
    seconds: float
    """Wall time of the run that made the outputs, in seconds."""
    machine: Mapping[str, str | int]
    """The device and the thread count that made them."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "node": self.node,
            "key": self.key,
            "outs": {path: entry.as_dict() for path, entry in self.outs.items()},
            "seconds": self.seconds,
            "machine": dict(self.machine),
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Reference:
        outs = {path: Entry(**entry) for path, entry in raw["outs"].items()}
        return cls(raw["node"], raw["key"], outs, raw["seconds"], raw["machine"])


@dataclass(frozen=True)
class Part:
    """A share of a node's work."""

    command: tuple[str, ...]
    """A module and its arguments, as ``python -m`` runs them."""
    spared: tuple[str, ...]
    """Inputs that it does not read."""


@dataclass(frozen=True)
class Split:
    """How several workers share a node that leaves nothing but metrics, to the same bytes."""

    divide: Callable[[Path, Params, int], list[Part]]
    """(project folder, params, at most so many) → parts; none where it stays whole."""
    result: str
    """The file that each part leaves behind."""
    join: Callable[[Path, Params, Sequence[bytes]], None]
    """(project folder, params, the parts' results): writes what the node as a whole would."""


def declared(project: Path) -> dict[str, Node]:
    """The nodes of a project's ``dvc.yaml``, by name."""
    stages = YAML(typ="safe").load((project / "dvc.yaml").read_text())["stages"]
    return {
        name: Node(
            name,
            stage["cmd"],
            tuple(stage.get("params", ())),
            tuple(stage["deps"]),
            tuple(stage.get("outs", ())),
            tuple(path for metric in stage.get("metrics", ()) for path in metric),
        )
        for name, stage in stages.items()
    }


def versions() -> dict[str, str]:
    """Versions of Python and of `LIBRARIES`."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in LIBRARIES}


def key_of(node: Node, project: Path, content: Callable[[str], str], machine: Mapping[str, str | int]) -> str:
    """The node's key (sha256, hexadecimal).

    ``content`` gives the hash of a dependency's content by its path; ``machine`` is what results are bit-exact on:
    the device and the thread count.
    """
    params = _that_matter(YAML(typ="safe").load((project / "params.yaml").read_text()))
    facts = {
        "cmd": node.cmd,
        "params": {name: _value(params, name) for name in node.params},
        "deps": {path: content(path) for path in node.deps},
        "outs": node.outputs,
        "versions": versions(),
        "machine": dict(machine),
    }
    technique = _value(params, "time.technique.name") or ""
    if "time" in node.params and ":" in technique:  # file.py:Class, a user's own
        facts["technique"] = content(technique.rpartition(":")[0])
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _that_matter(params: dict[str, Any]) -> dict[str, Any]:
    """Without what the step does not read: so timelines whose experts are trained in another way share their base."""
    if params.get("step") == 0 and (params.get("base") or {}).get("train"):
        kept = {key: value for key, value in params.get("train", {}).items() if key not in Train.OF_EXPERTS}
        return {**params, "train": kept}
    return params


def _value(params: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        params = params.get(part) if isinstance(params, dict) else None
    return params


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
    """Run a node from a clean start and put what it made into the cache."""
    for path in node.outputs:
        _remove(project / path)
    _claim(project, node.name, key)
    started = time.monotonic()
    work(project, params, progress)
    seconds = round(time.monotonic() - started, 3)
    made = Reference(node.name, key, {path: cache.put(project / path) for path in node.outputs}, seconds, machine)
    shutil.rmtree(unfinished(project, node.name))
    return made


def one_at_a_time(project: Path, key: str) -> AbstractContextManager[None]:
    """Of equal nodes that several processes come to, the first runs while the others wait, and then take its result.

    Keys share 4096 files, so that of a hundred lanes hardly two that have nothing in common wait for each other.
    """
    return locks.exclusive(project / LOCKS / key[:3])


def unfinished(project: Path, name: str) -> Path:
    """The folder where the node ``name`` may keep what it needs to go on after a kill.

    What is there was left by a run of the same key, so of the same result; it goes when the result is in the cache.
    """
    return project / UNFINISHED / name


def as_command(name: str, work: Work, machine: Callable[[Params], Mapping[str, str | int]]) -> Work:
    """The node as ``dvc repro`` runs it in place: a second call goes on where a killed one stopped."""

    def resuming(project: Path, params: Params, progress: Progress) -> None:
        node = declared(project)[name]
        _claim(project, name, key_of(node, project, lambda path: hash_of(project / path).md5, machine(params)))
        work(project, params, progress)
        shutil.rmtree(unfinished(project, name))

    return resuming


def _claim(project: Path, name: str, key: str) -> None:
    """Make the node's folder for unfinished work, and drop what another key left there."""
    folder = unfinished(project, name)
    note = folder / "key"
    if not note.exists() or note.read_text() != key:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        note.write_text(key)


def place(reference: Reference, project: Path, cache: Cache) -> None:
    """Put a finished node's outputs where ``dvc.yaml`` wants them."""
    for path, entry in reference.outs.items():
        _remove(project / path)
        cache.link(entry, project / path)


def intact(reference: Reference, cache: Cache) -> bool:
    """Whether all outputs are in the cache, every byte of them; damaged ones are dropped from it."""
    damaged = [md5 for entry in reference.outs.values() for md5 in cache.drop_damaged(entry)]
    return not damaged and not any(cache.missing(entry) for entry in reference.outs.values())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
