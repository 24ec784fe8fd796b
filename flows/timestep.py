"""One time step as a DAG: fetch → prepare → initialize → train → deploy → evaluate → record."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

import tasks.evaluate.task
import tasks.merge.task
import tasks.prepare.task
import tasks.record.task
import tasks.train.task
from flows.prefect import artifacts
from tasks import layout, merge, nodes, prepare, progress, record
from tasks.model import models
from tasks.nodes import Node, Reference
from tasks.orchestration import NodeTask, can_pass
from tasks.params import Arrival, Evaluate, Params
from tasks.record import Code, State, Worktree
from tasks.storage import dvc_config, pointers
from tasks.storage.cache import Cache, Entry, hash_of
from tasks.storage.dvc import Dvc, open_dvc
from tasks.workers import pool

RETRY_SECONDS = [2.0, 10.0, 30.0]
"""Waits before another try where a network or a store may recover."""


@flow(name="timestep", flow_run_name="step {step}", validate_parameters=False)
def timestep(project: str, step: int, code: dict[str, Any], remote: str, fresh: bool = False) -> str:
    """Run one time step of a project's timeline and record it; returns the state's tag.

    The caller holds the timeline's lock and has opened the store. ``code`` is a `Code` as a dictionary, ``remote``
    the name of the DVC remote, and ``fresh`` says that the previous state was made just now: what an earlier run left
    in the cache is hashed before it is trusted. Nodes that have finished before, in whatever run, are not run again.
    """
    return _Step(Path(project), step, Code(**code), remote, fresh).run()


@task(
    name="fetch", cache_policy=NO_CACHE, persist_result=False,
    retries=len(RETRY_SECONDS), retry_delay_seconds=RETRY_SECONDS, retry_condition_fn=can_pass,
)  # fmt: skip
def fetch(fetching: Any) -> None:
    """Bring raw files from outside: the only node that a network takes part in."""
    fetching()


class _Step:
    """One run of one step."""

    def __init__(self, project: Path, step: int, code: Code, remote: str, fresh: bool):
        self.project, self.step, self.code, self.fresh = project, step, code, fresh
        self.progress = progress.of_step(step)
        self.remote = dvc_config.remote(project, remote)
        self.cache = Cache(dvc_config.cache_dir(project))
        self.entries: dict[str, Entry] = {}
        """What lies in the worktree, by content: inputs, and outputs as nodes finish."""

    def run(self) -> str:
        params = record.params_of(self.project, self.code)
        previous = record.last(self.project, params.timeline)
        start = record.next_start(self.project, params.timeline, params.gate)
        arrival = _arrival(params, self.step)
        with (
            open_dvc(self.project) as dvc,
            record.worktree_for_step(self.project, self.code, self.remote, self.step, arrival) as tree,
        ):
            self._inputs(tree, previous, start, dvc)
            references = self._nodes(tree, dvc)
            recording = functools.partial(
                record.record, self.project, tree, self.code, start, self._input_entries(), references, self.cache,
                dvc,
            )  # fmt: skip
            tag = tasks.record.task.record.with_options(task_run_name=f"record-{self.step}")(lambda: recording().tag)
        state = record.find(self.project, params.timeline, tag)
        held = "" if state.manifest.promoted else ", held by the gate"
        scored = f"A_KA {state.metrics['A_KA']:.1f}, A_ZS {state.metrics['A_ZS']:.1f}"
        self.progress("recorded as", 1, 1, f"{tag}: {scored}{held}")
        artifacts.publish_step(state, previous)
        return tag

    def _inputs(self, tree: Worktree, previous: State | None, start: State | None, dvc: Dvc) -> None:
        """Place raw files and history in the worktree: the history of ``start``, else as ``previous`` has it."""
        params, folder = tree.params, tree.folder
        if previous:
            self._bring(previous, previous.entries, dvc, trusted=self.fresh)
        if start and start != previous:
            self._bring(start, record.HISTORY_READS, dvc, trusted=False)
        raw_arrival, raw_evaluation = folder / layout.RAW_ARRIVAL, folder / layout.RAW_EVALUATION
        downloads = layout.private(self.project) / "downloads"
        if params.arrival:
            for pointer in prepare.pointers(params.arrival, self.project):
                self._fetch(pointer, functools.partial(
                    pointers.bring, self.project, pointer, folder, self.cache, dvc
                ))  # fmt: skip
            self._fetch(raw_arrival, functools.partial(
                prepare.fetch_arrival, params, params.arrival, raw_arrival, downloads, self.progress, self.project
            ))  # fmt: skip
        else:
            raw_arrival.mkdir(parents=True)
            (raw_arrival / "nothing.json").write_text("{}\n")
        self._put(folder, layout.RAW_ARRIVAL)
        if previous and _same_evaluation(params, previous):
            # Test sets stay what they were, whatever has become of their sources: states can be compared.
            self._place(folder, layout.RAW_EVALUATION, previous.entries[layout.RAW_EVALUATION])
        else:
            self._fetch(raw_evaluation, functools.partial(
                prepare.fetch_evaluation, params, raw_evaluation, downloads, self.progress, self.project
            ))  # fmt: skip
            self._put(folder, layout.RAW_EVALUATION)
        self._place(folder, layout.HISTORY, self._history(tree, start))

    def _bring(self, state: State, paths: Collection[str], dvc: Dvc, *, trusted: bool) -> None:
        """Have paths of a state in the cache, and unless it can be trusted every byte of them hashed."""
        if not trusted:
            for path, entry in state.entries.items():
                if path in paths:
                    self.cache.drop_damaged(entry)  # comes from the remote again
        if record.missing(state, self.cache, paths):
            with record.worktree_of_state(self.project, state, self.remote) as there:
                record.fetch(state, self.cache, dvc, there, paths)

    def _history(self, tree: Worktree, start: State | None) -> Entry:
        params = tree.params
        if start:
            technique = params.time.technique
            batch = params.time.deploy == "all" and not merge.has_sequential_form(technique.name, technique.settings)
            return record.next_history(start, self.cache, tree.scratch, all_experts=batch)
        seed = tree.scratch / "seed"
        seed.mkdir()
        models.resolve(params.base, self.project, seed / "model")
        weights = None
        if params.base.pretrained != "train":
            self._fetch(seed, functools.partial(models.fetch_base, params.base, self.project, seed))
            weights = seed / "base.safetensors"
        return record.first_history(record.Seed(seed / "model", weights), self.cache, tree.scratch)

    def _fetch(self, into: Path, fetching: Any) -> None:
        fetch.with_options(task_run_name=f"fetch-{into.name}-{self.step}")(fetching)

    def _nodes(self, tree: Worktree, dvc: Dvc) -> list[Reference]:
        """The DAG. Preparing the arrival and the test sets are independent; the rest is a chain."""
        declared = nodes.declared(tree.folder)

        def finish(name: str, prefect_task: NodeTask) -> Reference:
            return self._finish(declared[name], prefect_task, tree, dvc)

        return [
            finish("prepare", tasks.prepare.task.prepare),
            finish("prepare-evaluation", tasks.prepare.task.prepare_evaluation_sets),
            finish("initialize", tasks.train.task.initialize),
            finish("train", tasks.train.task.train),
            finish("deploy", tasks.merge.task.deploy),
            finish("evaluate", tasks.evaluate.task.evaluate),
        ]

    def _finish(self, node: Node, prefect_task: NodeTask, tree: Worktree, dvc: Dvc) -> Reference:
        """Run a node, or take what an earlier run of equal key made, once its bytes have been checked."""
        threads, workers = tree.params.threads, pool.at_hand()
        machine = workers.machine(threads) if workers else models.device_facts(threads)
        key = nodes.key_of(node, tree.folder, functools.partial(self._content, tree.folder), machine)
        call: Mapping[str, Any] = {
            "worktree": str(tree.folder), "cache": str(self.cache.folder), "key": key, "step": self.step,
            "machine": machine, "elsewhere": None,
        }  # fmt: skip
        if workers:
            inputs = self._files_of(node)
            call = {
                **call,
                "elsewhere": functools.partial(workers.run, inputs=inputs, remote=self.remote.name, dvc=dvc),
            }
        with nodes.one_at_a_time(self.project, key):
            finished = Reference.from_dict(prefect_task(**call))
            if not (tree.folder / node.outputs[0]).exists():  # not run just now: a result of an earlier run
                if nodes.intact(finished, self.cache):
                    nodes.place(finished, tree.folder, self.cache)
                else:
                    finished = Reference.from_dict(prefect_task.with_options(refresh_cache=True)(**call))
        self.entries |= finished.outs
        return finished

    def _files_of(self, node: Node) -> dict[str, Entry]:
        """The files that a node reads of what lies in the worktree, code apart."""
        read = tuple(f"{path}/" for path in node.deps)
        found = {name: md5 for name, md5 in self.cache.files(self.entries).items() if f"{name}/".startswith(read)}
        return {name: Entry(md5, self.cache.path(md5).stat().st_size) for name, md5 in found.items()}

    def _content(self, folder: Path, path: str) -> str:
        """The hash of a path in the worktree, known for inputs and outputs, computed for code."""
        for parent, entry in self.entries.items():
            if path == parent:
                return entry.md5
            if path.startswith(parent + "/"):
                part = self.cache.part(entry, path.removeprefix(parent + "/"))
                if part:
                    return part.md5
        return hash_of(folder / path).md5

    def _put(self, folder: Path, path: str) -> None:
        self.entries[path] = self.cache.put(folder / path)

    def _place(self, folder: Path, path: str, entry: Entry) -> None:
        self.cache.link(entry, folder / path)
        self.entries[path] = entry

    def _input_entries(self) -> dict[str, Entry]:
        return {path: self.entries[path] for path in layout.INPUTS}


def _arrival(params: Params, step: int) -> Arrival | None:
    """What arrives at a step; at step 0 the pretraining pool, if there is one."""
    if step:
        return params.stream[step - 1]
    return Arrival(name="base", update=params.base.pretraining) if params.base.pretraining else None


def _same_evaluation(params: Params, previous: State) -> bool:
    before = Evaluate.model_validate(previous.params["evaluate"])
    now = params.evaluate
    return (before.adaptation, before.retention) == (now.adaptation, now.retention)
