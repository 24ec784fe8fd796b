"""The project's side: connect to a Dask scheduler, and have nodes run on its workers."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from tasks import nodes
from tasks.cache import Cache, Entry
from tasks.errors import UserError
from tasks.nodes import Node, Reference
from tasks.params import Params
from tasks.progress import Progress
from tasks.record.dvc import Dvc, RemoteError
from tasks.record.fetching import bring
from tasks.workers import worker
from tasks.workers.job import Job, packed

CONNECT_SECONDS = 10


class Pool:
    """The workers of one scheduler; use `opened`."""

    def __init__(self, client: Any, scheduler: str):
        self._client, self._scheduler = client, scheduler
        self._machines: dict[int | None, dict[str, str | int]] = {}
        self._stored: set[str] = set()
        self._last: str | None = None
        """The worker that ran the last node: its cache has most of what the next one reads."""

    @property
    def slots(self) -> int:
        """Nodes that can run at the same time."""
        return sum(one["nthreads"] for one in self._client.scheduler_info(n_workers=-1)["workers"].values())

    def machine(self, threads: int | None) -> dict[str, str | int]:
        """The device and the thread count of a worker; a job refuses to run on any other kind."""
        if threads not in self._machines:
            self._machines[threads] = self._result(self._client.submit(worker.machine, threads, pure=False))
        return self._machines[threads]

    def run(
        self,
        node: Node,
        key: str,
        folder: Path,
        params: Params,
        cache: Cache,
        progress: Progress,
        *,
        inputs: Mapping[str, Entry],
        remote: str,
        dvc: Dvc,
    ) -> Reference:
        """Run a node on a worker; its outputs are in the store then, in the cache, and in ``folder``.

        ``folder`` is the step's worktree: its code and params go to the worker, its ``inputs`` (files: path → content)
        to the store. If the worker is lost, another begins the node anew, to the same bytes.

        Raises:
            UserError: the node's own, a worker that would make other bytes, or no worker left.
            RemoteError: store or scheduler cannot be reached; worth another try.
        """
        if absent := {entry.md5 for entry in inputs.values()} - self._stored:
            dvc("keep", folder, remote=remote, objects=sorted(absent))
        threads = params.threads
        code, settings = packed(folder, ["tasks"]), packed(folder, ["dvc.yaml", "params.yaml", *params.own_files])
        command = tuple(node.cmd.removeprefix("python -m ").split())
        job = Job(
            node.name, command, code, settings, inputs, node.outs, node.metrics, remote, threads, nodes.versions(),
            self.machine(threads), topic=f"progress-{uuid.uuid4()}",
        )  # fmt: skip
        self._client.subscribe_topic(job.topic, lambda event: progress(node.name, 0, 1, event[1]))
        try:
            future = self._client.submit(
                worker.run, job, key=f"{node.name}-{key}", pure=False,
                workers=self._last, allow_other_workers=self._last is not None,
            )  # fmt: skip
            done = self._result(future)
        finally:
            self._client.unsubscribe_topic(job.topic)
        self._last = done.worker
        bring(done.outs, cache, dvc, folder, f"what {node.name} made")
        self._stored |= absent | cache.md5s(done.outs.values())
        for path, content in done.metrics.items():
            (folder / path).write_bytes(content)
        outs = {**done.outs, **{path: cache.put(folder / path) for path in done.metrics}}
        made = Reference(node.name, key, outs, done.seconds, job.machine)
        nodes.place(made, folder, cache)
        progress(node.name, 1, 1)
        return made

    def _result(self, future: Any) -> Any:
        from distributed import CancelledError, KilledWorker
        from distributed.comm import CommClosedError

        try:
            return future.result()
        except KilledWorker as error:
            raise UserError(
                f"{self._scheduler}: {error.task} ended worker after worker, the last at {error.last_worker.address}; "
                "their logs say why (often too little memory)"
            ) from None
        except (TimeoutError, CancelledError, CommClosedError) as error:
            raise RemoteError(f"the Dask scheduler {self._scheduler} is gone ({error})") from None
        except OSError as error:  # the worker's own: a full disk, say
            raise UserError(f"a worker of {self._scheduler} cannot go on: {error}") from None


_at_hand: ContextVar[Pool | None] = ContextVar("at_hand", default=None)


def at_hand() -> Pool | None:
    """The pool that is open around this call, if any."""
    return _at_hand.get()


@contextmanager
def opened(scheduler: str | None) -> Iterator[Pool | None]:
    """Connect to a scheduler for the block, in which `at_hand` gives its workers; None: nodes run in this process.

    Raises:
        UserError: Dask is not installed, nothing answers at the address, or it has no worker.
    """
    if scheduler is None:
        yield None
        return
    try:
        from distributed import Client
    except ImportError:
        raise UserError("--scheduler needs Dask: install chronomerge[dask]") from None
    try:
        client = Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False, direct_to_workers=False)
    except (TimeoutError, OSError, ValueError) as error:
        raise UserError(
            f"--scheduler {scheduler}: no Dask scheduler answers there ({error}); `dask scheduler` starts one"
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except TimeoutError:
            raise UserError(
                f"--scheduler {scheduler}: it has no worker; start some with `dask worker {scheduler} --nthreads 1`, "
                "each in a clone of the project"
            ) from None
        before = _at_hand.set(Pool(client, scheduler))
        try:
            yield at_hand()
        finally:
            _at_hand.reset(before)
