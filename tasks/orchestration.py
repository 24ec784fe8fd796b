"""How Prefect sees a node: one task, its key our own, its result a small reference in JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import Task, task
from prefect.client.schemas.objects import TaskRun
from prefect.states import State as RunState

from tasks import nodes, params, progress
from tasks.errors import may_pass
from tasks.nodes import Node, Reference, Split, Work
from tasks.params import Params
from tasks.progress import Progress
from tasks.storage.cache import Cache

Elsewhere = Callable[[Node, str, Path, Params, Cache, Progress, Split | None], Reference]
"""Runs a node (its key, the worktree, its params) where it likes, in one piece or divided; its outputs end in the
worktree and in the cache."""

NodeTask = Task[[str, str, str, int, dict[str, str | int], Elsewhere | None], dict[str, Any]]


def node_task(name: str, work: Work, split: Split | None = None) -> NodeTask:
    """A Prefect task that runs the node ``name`` of ``dvc.yaml`` in a worktree; several workers may ``split`` it.

    Its cache key is the key given to it (`tasks.nodes.key_of`): Prefect's own policies see paths, not contents.
    """

    @task(
        name=name,
        task_run_name=f"{name}-{{step}}",
        cache_key_fn=lambda _, parameters: str(parameters["key"]),
        persist_result=True,
        result_serializer="json",
    )
    def run(
        worktree: str, cache: str, key: str, step: int, machine: dict[str, str | int], elsewhere: Elsewhere | None
    ) -> dict[str, Any]:
        folder = Path(worktree)
        node = nodes.declared(folder)[name]
        settings = params.load(folder / "params.yaml")
        assert settings.step == step, f"{folder} holds step {settings.step}, not {step}"
        kept, tell = Cache(Path(cache)), progress.of_step(step)
        if elsewhere:
            return elsewhere(node, key, folder, settings, kept, tell, split).as_dict()
        return nodes.run(node, key, work, folder, settings, kept, machine, tell).as_dict()

    return run


def can_pass(_task: Task[..., Any], _run: TaskRun, state: RunState) -> bool:
    """`tasks.errors.may_pass`, as Prefect asks it of a task that has failed."""
    return may_pass(state.result(raise_on_failure=False))
