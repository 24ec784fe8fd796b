"""A step while it runs: its worktree, the states that it continues, and the store and cache that it uses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks import nodes, progress, record
from tasks.errors import ReadableError
from tasks.params import Arrival, Params
from tasks.record import Code, State, Worktree
from tasks.storage import dvc, dvc_config
from tasks.storage.cache import Cache
from tasks.storage.dvc import Dvc
from tasks.storage.dvc_config import Remote


class StoppedError(ReadableError):
    """The step is ending: another node has failed, or the run was asked to end."""


class Step:
    """One run of one step. Its nodes may run in several threads. (Not a dataclass: Prefect looks into those.)"""

    def __init__(
        self,
        project: Path,
        number: int,
        code: Code,
        tree: Worktree,
        states_before: tuple[State | None, State | None],
        remote: Remote,
        dvc: Dvc,
        *,
        fresh: bool,
        began: float,
        starting: float | None = None,
    ):
        self.project, self.number, self.code, self.tree = project, number, code, tree
        self.remote, self.dvc = remote, dvc
        self.previous, self.start = states_before
        """The newest state, and the newest that passed the gate, where the step starts; usually the same one."""
        self.fresh = fresh
        """Whether this process made the previous state: then its bytes in the cache need no check."""
        self.began, self.starting = began, starting
        """When the step began, by `time.monotonic`; and at a run's first step, how many seconds it took to start."""
        self.nodes = nodes.declared(tree.folder)
        self.cache = Cache(dvc_config.cache_dir(project))
        self._report = progress.of_step(number)
        self._changed = threading.Condition()
        self._working = 0
        self._stopped = False

    @property
    def params(self) -> Params:
        return self.tree.params

    @property
    def folder(self) -> Path:
        return self.tree.folder

    def progress(self, what: str, done: int, total: int, note: str = "") -> None:
        """Report progress, with the step in front.

        Raises:
            StoppedError: the step is ending; the caller must end too.
        """
        if self._stopped:
            raise StoppedError(f"step {self.number} was stopped")
        self._report(what, done, total, note)

    @contextmanager
    def working(self) -> Iterator[None]:
        """During the block, this thread works in the folder of the step; see `stop`."""
        with self._changed:
            if self._stopped:
                raise StoppedError(f"step {self.number} was stopped")
            self._working += 1
        try:
            yield
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    def stop(self) -> None:
        """Make all threads that work in the folder of the step end, and wait for them."""
        with self._changed:
            self._stopped = True
            self._changed.wait_for(lambda: not self._working)


@contextmanager
def opened(
    project: Path, number: int, code: Code, remote: str, *, fresh: bool, began: float, starting: float | None
) -> Iterator[Step]:
    """Open a step: a new worktree with its code and params, which is removed at the end of the block.

    By then, the outputs of its nodes are in the cache. The caller holds the lock of the timeline. ``began`` and
    ``starting`` as in `Step`.
    """
    params = record.params_of(project, code)
    before = record.last(project, params.timeline), record.next_start(project, params.timeline, params.gate)
    store = dvc_config.remote(project, remote)
    with (
        dvc.open_dvc(project) as process,
        record.worktree_for_step(project, code, store, number, _arrival(params, number)) as tree,
    ):
        step = Step(
            project, number, code, tree, before, store, process, fresh=fresh, began=began, starting=starting
        )  # fmt: skip
        try:
            yield step
        finally:
            step.stop()


def _arrival(params: Params, step: int) -> Arrival | None:
    """The arrival of a step; at step 0 the pretraining pool, if there is one."""
    if step:
        return params.stream[step - 1]
    return Arrival(name="base", update=params.base.pretraining) if params.base.pretraining else None
