"""The nodes of the time step: the `NODES` table, what ``dvc.yaml`` declares of each, and the key of its outputs.

The key is a hash of everything a node's outputs depend on: its command, the params it reads, the content of
its dependencies (its own code among them) and the versions of the libraries that compute. Equal keys, equal
bytes; so a finished node is never run twice, in whatever order and after whatever crash.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks import layout, yaml
from tasks.errors import UserError, first_problem
from tasks.params import Params, Train
from tasks.progress import Progress
from tasks.storage.cache import hash_of

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
OPTIONAL = ("pillow-heif",)
"""Extras that decode data: which samples a node has, and their pixels, depend on them."""
"""What computes the outputs; another version may give other bytes, and is a reason to run again."""

CODEC = "store.experts"
"""The key of the params that a node reads that stores its expert coded."""

UNFINISHED = ".chronomerge/unfinished"
"""Where nodes store what they have not finished; in a run's worktree a link to a folder that outlives it."""

Work = Callable[[Path, Params, Progress], None]
"""A node's plain function: (project folder, params, progress); reads and writes as ``dvc.yaml`` declares."""


@dataclass(frozen=True)
class Part:
    """A share of a node's work."""

    names: tuple[str, ...]
    """What the part is about, as `Split.run` takes it."""
    spared: tuple[str, ...]
    """Inputs that it does not read."""


@dataclass(frozen=True)
class Split:
    """How several workers share a node whose results are small, to the same bytes."""

    divide: Callable[[Path, Params, int], list[Part]]
    """(project folder, params, at most this many) → parts; none where the node is not worth dividing."""
    run: Callable[[Sequence[str], Path, Params, Progress], None]
    """(a part's names, project folder, params, progress): does a part."""
    result: str
    """The file that each part leaves behind."""
    join: Callable[[Path, Params, Sequence[bytes]], None]
    """(project folder, params, the parts' results): writes what the undivided node would."""


@dataclass(frozen=True)
class Implementation:
    """Where the code of a node is; imported when it is needed."""

    function: str
    """``module:name`` of its `Work`."""
    split: str = ""
    """``module:name`` of its `Split`, if several workers can share it."""
    resumes: bool = False
    """Whether it stores unfinished work (see `unfinished`)."""
    only_with: str = ""
    """The key of the params without which a step has no such node; see `without_unused`."""

    def load(self) -> Work:
        work: Work = _imported(self.function)
        return work

    def load_split(self) -> Split | None:
        split: Split | None = _imported(self.split) if self.split else None
        return split


NODES: Mapping[str, Implementation] = {
    "prepare": Implementation("tasks.prepare.node:prepare_arrival"),
    "prepare-evaluation": Implementation("tasks.prepare.node:prepare_evaluation"),
    "initialize": Implementation("tasks.train.node:initialize"),
    "train": Implementation("tasks.train.node:train", resumes=True),
    "measure": Implementation("tasks.measure.node:measure"),
    "fit": Implementation("tasks.fit.node:fit", only_with="fit"),
    "deploy": Implementation("tasks.deploy.node:deploy"),
    "evaluate": Implementation("tasks.evaluate.node:evaluate", split="tasks.evaluate.parts:SPLIT"),
    "heads": Implementation("tasks.evaluate.fewshot:run", only_with="evaluate.heads"),
    "compatibility": Implementation("tasks.evaluate.compatibility:run", only_with="evaluate.compatibility"),
}
"""Every node of the time step. The flow (`flows.timestep`), ``python -m tasks NODE``, which ``dvc.yaml`` calls, and the
workers of a Dask scheduler all run what stands here."""


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

    @property
    def data(self) -> tuple[str, ...]:
        """The dependencies that are data: inputs of the step, and outputs of other nodes."""
        return tuple(path for path in self.deps if path.startswith("data/"))


class _Stage(BaseModel):
    """What is read of a stage; DVC lets an output be its path alone, or the path as a key with settings below it."""

    model_config = ConfigDict(strict=True)

    cmd: str
    params: list[str] = []
    deps: list[str] = []
    outs: list[str | dict[str, Any]] = []
    metrics: list[str | dict[str, Any]] = []


class _Pipeline(BaseModel):
    stages: dict[str, _Stage]


def declared(project: Path) -> dict[str, Node]:
    """The nodes of a project's ``dvc.yaml``, by name.

    Raises:
        UserError: the file is missing, or not as a project's is; names the stage and the key.
    """
    path = project / "dvc.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `git checkout dvc.yaml` brings it back") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file: {error}; `git checkout dvc.yaml` brings it back") from None
    return parse(text, str(path))


def parse(text: str, name: str) -> dict[str, Node]:
    """As `declared`, of a text; ``name`` is what messages call it."""
    try:
        stages = _Pipeline.model_validate(yaml.load(text)).stages
    except yaml.YAMLError as error:
        raise UserError(f"{name}: not a YAML file: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        problem = first_problem(error, "the top level")
        raise UserError(
            f"{name}: not the pipeline of a chronomerge project ({problem}); compare it with the "
            "dvc.yaml of the repository of chronomerge"
        ) from None
    return {
        name: Node(
            name, stage.cmd, tuple(stage.params), tuple(stage.deps), tuple(_paths(stage.outs)),
            tuple(_paths(stage.metrics)),
        )
        for name, stage in stages.items()
    }  # fmt: skip


def _paths(outputs: list[str | dict[str, Any]]) -> Iterator[str]:
    for output in outputs:
        yield from [output] if isinstance(output, str) else output


def without_unused(pipeline: str, params: Mapping[str, Any]) -> str:
    """The text of a ``dvc.yaml`` without the stages that a step of these params does not have.

    Other stages do not read what these would have made.
    """
    for name, node in NODES.items():
        if node.only_with and not _value(params, node.only_with):
            stage = re.search(rf"^  {name}:\n(?:^(?:    .*)?\n)*", pipeline, flags=re.MULTILINE)
            if stage is None:
                continue
            pipeline = pipeline[: stage.start()] + pipeline[stage.end() :]
            for out in re.findall(r"^      - (data/\S+)$", stage[0].partition("    outs:\n")[2], flags=re.MULTILINE):
                pipeline = pipeline.replace(f"      - {out}\n", "")
    return pipeline


def with_codec(pipeline: str, params: Params) -> str:
    """The text of a ``dvc.yaml`` for a step whose expert, or whose initial weights, are stored coded.

    Coded files take the place of the others, and whatever stage reads or writes one has the base that they are coded
    against among its dependencies.
    """
    if params.codes_start:
        pipeline = pipeline.replace(layout.INIT, layout.CODED_INIT)
    if params.codes_expert:
        pipeline = pipeline.replace(layout.EXPERT, layout.CODED_EXPERT)
        pipeline = re.sub(r"(?m)(^  train:\n(?:    .*\n)*?    params: \[[^]]*)\]", rf"\1, {CODEC}]", pipeline)
    if params.codes_start or params.codes_expert:
        pipeline = _with_base(pipeline, ("  train:", layout.CODED_EXPERT, layout.CODED_INIT))
    return pipeline


def with_routes(pipeline: str, params: Params) -> str:
    """The text of a ``dvc.yaml`` for a step that deploys the base, deltas and a router.

    Their folder takes the place of the deployed model, and whatever stage reads it has the base among its dependencies.
    """
    if not params.routes:
        return pipeline
    pipeline = pipeline.replace(layout.DEPLOYED, layout.ROUTED)
    pipeline = re.sub(r"(?m)(^  deploy:\n(?:    .*\n)*?    params: \[[^]]*)\]", rf"\1, {CODEC}]", pipeline)
    return _with_base(pipeline, (layout.ROUTED,))


def _with_base(pipeline: str, named: Sequence[str]) -> str:
    """With the base among the dependencies of each stage whose text, up to its outputs, names one of some paths."""

    def with_base(stage: re.Match[str]) -> str:
        text = stage[0]
        has = re.search(rf"(?m)^      - {layout.HISTORY}(/weights(/base\.safetensors)?)?$", text)
        reads = any(path in text.partition("    outs:")[0] for path in named)
        return text if has or not reads else text.replace("    outs:\n", f"      - {layout.BASE}\n    outs:\n", 1)

    return re.sub(r"(?m)^  [\w-]+:\n(?:    .*\n)+", with_base, pipeline)


def versions() -> dict[str, str]:
    """Versions of Python, of `LIBRARIES`, and of those of `OPTIONAL` that are installed."""
    there = [name for name in OPTIONAL if importlib.util.find_spec(name.replace("-", "_"))]
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in (*LIBRARIES, *there)
    }


def key_of(node: Node, project: Path, content: Callable[[str], str], machine: Mapping[str, str | int]) -> str:
    """The node's key (sha256, hexadecimal).

    ``content`` gives the hash of a dependency's content by its path; ``machine`` is what results are bit-exact on:
    the device and the thread count.
    """
    params = _relevant(yaml.load((project / "params.yaml").read_text(encoding="utf-8")))
    facts = {
        "cmd": node.cmd,
        "params": {name: _value(params, name) for name in node.params},
        "deps": {path: content(path) for path in node.deps},
        "outs": node.outputs,
        "versions": versions(),
        "machine": dict(machine),
    }
    if CODEC in node.params:
        facts["zstandard"] = importlib.metadata.version("zstandard")
    technique = _value(params, "time.technique.name") or ""
    if "time" in node.params and ":" in technique:  # file.py:Class, a user's own
        facts["technique"] = content(technique.rpartition(":")[0])
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _relevant(params: dict[str, Any]) -> dict[str, Any]:
    """Without what the step does not read: so timelines whose experts are trained in another way share their base."""
    if params.get("step") == 0 and (params.get("base") or {}).get("train"):
        of_base = {key: value for key, value in params.get("train", {}).items() if key not in Train.OF_EXPERTS}
        return {**params, "train": of_base}
    return params


def _value(params: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        params = params.get(part) if isinstance(params, dict) else None
    return params


def unfinished(project: Path, name: str) -> Path:
    """The folder where the node ``name`` may store what it needs to go on after a kill.

    What is there was left by a run of the same key, so of the same result; it goes when the result is in the cache.
    """
    return project / UNFINISHED / name


def start(project: Path, name: str, key: str) -> None:
    """Make the node's folder for unfinished work, and remove what another key left there."""
    folder = unfinished(project, name)
    note = folder / "key"
    if not note.exists() or note.read_text(encoding="utf-8") != key:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        note.write_text(key, encoding="utf-8")


def in_place(name: str, machine: Callable[[Params], Mapping[str, str | int]]) -> Work:
    """The node as ``dvc repro`` runs it: where it resumes, a second call goes on where a killed one stopped."""
    work = NODES[name].load()
    if not NODES[name].resumes:
        return work

    def resuming(project: Path, params: Params, progress: Progress) -> None:
        node = declared(project)[name]
        start(project, name, key_of(node, project, lambda path: hash_of(project / path).md5, machine(params)))
        work(project, params, progress)
        shutil.rmtree(unfinished(project, name))

    return resuming


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
