"""Recording: from finished nodes in a worktree to a temporal state that nothing can halve.

The order is the protocol's: the cache has every output already; then the remote has them and is asked whether it
does; then git gets tree and commit; then other machines agree, through a git remote or the store; then one transaction
moves branch and tag. A crash before that transaction leaves the previous state, a crash after it the new one, and the
same call again finishes or does nothing.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks import gate, layout, nodes
from tasks.errors import UserError
from tasks.gate import GateVerdict
from tasks.model import coded
from tasks.params import Params
from tasks.prepare import origins_of
from tasks.record import commits, heads, manifest, plots, pointers, promotion, timelines, withdrawals
from tasks.record.manifest import Manifest
from tasks.record.project_code import Code
from tasks.record.state import State
from tasks.record.worktrees import Worktree
from tasks.references import Reference
from tasks.storage import dvc_config, lease
from tasks.storage.cache import Cache, Entry
from tasks.storage.dvc import Dvc
from tasks.text import one_line, shortened


def record(
    project: Path,
    worktree: Worktree,
    code: Code,
    start: State | None,
    inputs: Mapping[str, Entry],
    references: Sequence[Reference],
    cache: Cache,
    dvc: Dvc,
    began: float,
    overlap: Mapping[str, Mapping[str, Any]] | None = None,
    notes: Mapping[str, Sequence[str]] | None = None,
    starting: float | None = None,
) -> State:
    """Record a step whose nodes have finished, and return its state; ``start`` is the one that it started from.

    ``began`` is when the step began, by `time.monotonic`, and ``starting`` how many seconds of it the run took to
    start, where it is its first step. ``overlap`` says which test sets have images
    among what was trained on, as `manifest.RecordedOverlap` has it; ``notes`` are those on the data, by the path of
    the input.

    Raises:
        RemoteError: the remote did not take everything; nothing is recorded, and the same call may be tried again.
        UserError: another writer was first.
    """
    params = worktree.params
    assert params.step is not None
    previous = timelines.last(project, params.timeline)
    training = json.loads((worktree.folder / layout.TRAINING / "training.json").read_text(encoding="utf-8"))
    outputs = {path: entry for reference in references for path, entry in reference.outs.items()}
    verdict, pointed = _judge(project, worktree, outputs, cache, dvc)
    plots.write(project, worktree.folder, previous, params.step, params.arrival.name if params.arrival else None)
    made = {**inputs, **outputs}
    dvc(
        "record",
        worktree.folder,
        tracked=list(layout.INPUTS),
        hashes=cache.files(made),
        objects=sorted(cache.md5s(made.values())),
        known=sorted(cache.md5s(previous.entries.values())) if previous else [],
    )
    remote = dvc_config.remote(project, params.store.remote)
    # After the push, so that the time it took is in it.
    content = _manifest(
        params,
        previous,
        start,
        code,
        inputs,
        references,
        training,
        verdict,
        pointed,
        cache,
        overlap or {},
        notes or {},
        began,
        starting,
        _came_from(worktree.folder),
        _measured(worktree.folder)
        | _fitted(worktree.folder)
        | _coded(worktree.folder)
        | withdrawals.noted(start, params),
    )
    (worktree.folder / manifest.FILE).write_text(manifest.text(content), encoding="utf-8")
    return commits.commit(
        worktree.folder,
        project,
        params.timeline,
        params.step,
        previous,
        code.commit,
        _message(params, worktree.folder),
        params.store.git,
        lease.agreement(params.store, remote),
        promoted=verdict.promoted,
        pointers=[name for name, pointer in pointed.items() if pointer.promoted],
    )


def _manifest(
    params: Params,
    previous: State | None,
    start: State | None,
    code: Code,
    inputs: Mapping[str, Entry],
    references: Iterable[Reference],
    training: Mapping[str, Any],
    verdict: GateVerdict,
    pointed: Mapping[str, GateVerdict],
    cache: Cache,
    overlap: Mapping[str, Mapping[str, Any]],
    notes: Mapping[str, Sequence[str]],
    began: float,
    starting: float | None,
    came_from: Mapping[str, Any],
    measured: Mapping[str, Any],
) -> Manifest:
    """``previous`` is the state recorded before, ``start`` the one whose history went on."""
    finished = list(references)
    outputs = {path: entry for reference in finished for path, entry in reference.outs.items()}
    sizes = cache.objects([*inputs.values(), *outputs.values()])
    known = cache.objects(previous.entries.values()) if previous else {}
    content = {
        "version": manifest.VERSION,
        "timeline": params.timeline,
        "step": params.step,
        "line": previous.line if previous else 1,
        "arrival": params.arrival.name if params.arrival else None,
        "previous": previous.tag if previous else None,
        "starts_from": start.tag if start else None,
        "protocol": {"init": params.time.init, "deploy": params.time.deploy, "ema_start": params.time.ema_start},
        "technique": {"name": params.time.technique.name, **params.time.technique.settings},
        "gate": verdict.as_dict(),
        "seed": params.seed,
        "budget": dict(training),
        "inputs": dict(inputs),
        "outputs": outputs,
        "code": {"commit": code.commit, "dirty": code.dirty, "tree": code.tree},
        "versions": nodes.versions(),
        "device": {reference.node: dict(reference.machine) for reference in finished},
        "recorded": {"at": datetime.now(UTC).isoformat(timespec="seconds"), "host": socket.gethostname()},
        "seconds": {reference.node: reference.seconds for reference in finished},
        "elapsed": round(time.monotonic() - began, 3),
        "bytes": {"total": sum(sizes.values()), "new": sum(s for m, s in sizes.items() if m not in known)},
    }
    content |= came_from
    if starting is not None:
        content["starting"] = round(starting, 3)
    if pointed:
        content["pointers"] = {name: one.as_dict() for name, one in pointed.items()}
    content |= measured
    if overlap:
        content["overlap"] = {name: dict(facts) for name, facts in overlap.items()}
    if notes:
        content["notes"] = {path: [shortened(one_line(note)) for note in said] for path, said in notes.items()}
    return Manifest.model_validate(content)


def _measured(folder: Path) -> dict[str, Any]:
    """What the notes of nodes say: of the expert's data, where the technique looked at it; of a rotation; of routes."""
    note = folder / layout.STATISTICS / "statistics.json"
    measured = json.loads(note.read_text(encoding="utf-8"))["measured"] if note.exists() else None
    notes = {"statistics": measured} if measured else {}
    for key in ("compatible", "routed"):
        if (note := folder / layout.RUNNING / f"{key}.json").exists():
            notes[key] = json.loads(note.read_text(encoding="utf-8"))
    return notes


def _fitted(folder: Path) -> dict[str, Any]:
    """How the fit node found the merge's coefficients, where it did."""
    note = folder / layout.FIT / "fit.json"
    content = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
    return {"fit": content["report"]} if content.get("fitted") else {}


def _coded(folder: Path) -> dict[str, Any]:
    """What the header of a coded expert says."""
    if not (folder / layout.CODED_EXPERT).exists():
        return {}
    about = coded.coding(folder / layout.CODED_EXPERT)
    decoded = Entry(about.decoded.md5, about.decoded.size)
    return {"coded": {"codec": about.codec, "decoded": decoded, "error": about.error}}


def _came_from(folder: Path) -> dict[str, Any]:
    """What the notes beside an expert, a base of a hub, and data of one say of where they came from."""
    about, origin = folder / layout.ARRIVAL / "expert.json", folder / layout.RAW_ARRIVAL / "origin.json"
    base = folder / layout.HISTORY / "source/origin.json"
    sources: dict[str, Any] = {}
    if about.exists():
        sources["expert"] = json.loads(about.read_text(encoding="utf-8"))
        if origin.exists():
            sources["expert"]["origin"] = json.loads(origin.read_text(encoding="utf-8"))
    if base.exists():
        sources["base"] = json.loads(base.read_text(encoding="utf-8"))
    if data := {path: origins for path in layout.RAW if (origins := origins_of(folder / path))}:
        sources["data"] = data
    return sources


def _judge(
    project: Path, worktree: Worktree, outputs: Mapping[str, Entry], cache: Cache, dvc: Dvc
) -> tuple[GateVerdict, dict[str, GateVerdict]]:
    """What the gate says of the metrics in the worktree, and what those of the pointers say, by pointer.

    Without a gate there is nothing that it could hold against.
    """
    params = worktree.params
    required = params.gate.require if params.gate else []
    if not required and not params.pointers:
        return gate.judge([], {}, None), {}
    metrics = json.loads((worktree.folder / "metrics.json").read_text(encoding="utf-8"))
    if layout.HEADS in outputs:
        metrics["heads"] = json.loads((worktree.folder / layout.HEADS_METRICS).read_text(encoding="utf-8"))
    if layout.COMPATIBILITY in outputs:
        metrics["compatibility"] = json.loads(
            (worktree.folder / layout.COMPATIBILITY_METRICS).read_text(encoding="utf-8")
        )

    def bring(md5: str) -> None:
        if dvc("fetch", worktree.folder, md5s=[md5])["absent"]:
            raise UserError(f"the store does not hold the list of test sets that the gate compares with (object {md5})")

    def judge(conditions: Sequence[str], at: State | None) -> GateVerdict:
        if not conditions:
            return gate.judge([], {}, None)
        sets = outputs[layout.EVALUATION]
        return gate.judge(conditions, metrics, promotion.reference(at, params.evaluate, sets, cache, bring))

    decided = heads.local(project, params.timeline).decisions
    promoted = timelines.promoted_state(project, params.timeline, decided)
    pointed = pointers.all_of(project, params.timeline) if params.pointers else {}
    return judge(required, promoted), {
        name: judge(one.require, pointed.get(name)) for name, one in params.pointers.items()
    }


def _message(params: Params, folder: Path) -> str:
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    arrived = params.arrival.name if params.arrival else "base"
    return (
        f"state {params.timeline} {params.step:04d}: {arrived}\n\n"
        f"init {params.time.init}, deploy {params.time.deploy}, technique {params.time.technique.name}\n"
        f"A_KA {metrics['A_KA']:.2f}, A_ZS {metrics['A_ZS']:.2f}, "
        f"geometric mean {metrics['geometric_mean']:.2f}\n"
    )
