"""The side of the project: connect to a Dask scheduler, and run nodes on its workers."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

from tasks import nodes
from tasks.errors import UserError
from tasks.nodes import Node, Part, Split
from tasks.params import Params
from tasks.progress import Progress, report
from tasks.references import Reference
from tasks.storage.cache import Cache, Entry
from tasks.storage.dvc import Dvc, RemoteError
from tasks.storage.fetching import bring
from tasks.workers import keys, worker
from tasks.workers.job import Done, Job, packed

CONNECT_SECONDS = 10


class WorkerPool:
    """The workers of one scheduler; use `opened`."""

    def __init__(self, client: Any, scheduler: str, sharing: int):
        self._client, self._scheduler, self._sharing = client, scheduler, sharing
        self._machines: dict[int | None, dict[str, str | int]] = {}
        self._stored: set[str] = set()
        self._last: dict[int, str] = {}
        """Number of a part → the worker that ran it last: its cache has most of what the next step reads."""

    @property
    def slots(self) -> int:
        """Nodes that can run at the same time."""
        return sum(one["nthreads"] for one in self._client.scheduler_info(n_workers=-1)["workers"].values())

    def machine(self, threads: int | None) -> dict[str, str | int]:
        """The device and the thread count of a worker; a job runs only on workers with the same ones."""
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
        split: Split | None,
        *,
        inputs: Mapping[str, Entry],
        remote: str,
        dvc: Dvc,
    ) -> Reference:
        """Run a node on one worker, or its parts on several; afterwards its outputs are in the store and in the cache.

        ``folder`` is the step's worktree: its code and params go to the worker, its ``inputs`` (files: path → content)
        to the store. If a worker is lost, another one starts the node again and makes the same bytes.

        Raises:
            UserError: the error of the node, a worker that would make other bytes, or no worker is left.
            RemoteError: store or scheduler cannot be reached; another try can help.
        """
        if absent := {entry.md5 for entry in inputs.values()} - self._stored:
            dvc("keep", folder, remote=remote, objects=sorted(absent))
            self._stored |= absent
        job = Job(
            node.name, tuple(node.cmd.removeprefix("python -m ").split()), packed(folder, ["tasks"]),
            packed(folder, ["dvc.yaml", "params.yaml", *params.own_files]), inputs, node.outs, node.metrics, remote,
            params.threads, nodes.versions(), self.machine(params.threads), topic=f"progress-{uuid.uuid4()}",
        )  # fmt: skip
        parts = split.divide(folder, params, self.slots // self._sharing) if split else []
        self._client.subscribe_topic(job.topic, lambda event: progress(node.name, 0, 1, event[1]))
        try:
            if split and parts:
                done = self._divided(job, key, parts, split.result)
                split.join(folder, params, [one.metrics[split.result] for one in done])
                made = {path: cache.put(folder / path) for path in node.outs}
            else:
                done = [self._undivided(job, key, folder)]
                made = dict(done[0].outs)
                bring(made, cache, dvc, folder, f"the outputs of {node.name}")
                self._stored |= cache.md5s(made.values())
        finally:
            self._client.unsubscribe_topic(job.topic)
        outs = {**made, **{path: cache.put(folder / path) for path in node.metrics}}
        progress(node.name, 1, 1)
        return Reference(node.name, key, outs, round(sum(one.seconds for one in done), 3), job.machine)

    def _undivided(self, job: Job, key: str, folder: Path) -> Done:
        done = self._done(self._submit(job, key, 0), 0)
        for path, content in done.metrics.items():
            (folder / path).write_bytes(content)
        return done

    def _divided(self, job: Job, key: str, parts: Sequence[Part], result: str) -> list[Done]:
        futures = [
            self._submit(_of_part(job, part, result), f"{number}-{key}", number) for number, part in enumerate(parts)
        ]
        try:
            return [self._done(future, number) for number, future in enumerate(futures)]
        except BaseException:
            self._client.cancel(futures)
            raise

    def _submit(self, job: Job, key: str, number: int) -> Any:
        last = self._last.get(number)
        return self._client.submit(
            worker.run, job, key=f"{job.node}-{key}", pure=False, workers=last, allow_other_workers=last is not None
        )

    def _done(self, future: Any, number: int) -> Done:
        done: Done = self._result(future)
        self._last[number] = done.worker
        return done

    def _result(self, future: Any) -> Any:
        from distributed import CancelledError, KilledWorker
        from distributed.comm import CommClosedError

        try:
            return future.result()
        except KilledWorker as error:
            raise UserError(
                f"{self._scheduler}: {error.task} ended several workers, the last at {error.last_worker.address}; "
                "see their logs (often too little memory)"
            ) from None
        except (TimeoutError, CancelledError, CommClosedError) as error:
            raise RemoteError(f"the Dask scheduler {self._scheduler} has ended ({error})") from None
        except OSError as error:  # of the worker: a full disk, say
            raise UserError(f"a worker of {self._scheduler} failed: {error}") from None


def _of_part(job: Job, part: Part, result: str) -> Job:
    spared = tuple(f"{path}/" for path in part.spared)
    inputs = {path: entry for path, entry in job.inputs.items() if not path.startswith(spared)}
    return replace(job, command=(*job.command, "part", *part.names), inputs=inputs, outs=(), metrics=(result,))


_current: ContextVar[WorkerPool | None] = ContextVar("current_pool", default=None)


def current() -> WorkerPool | None:
    """The pool that is open around this call, if any."""
    return _current.get()


@contextmanager
def opened(scheduler: str | None, project: Path, sharing: int = 1) -> Iterator[WorkerPool | None]:
    """Connect to a scheduler for the block, in which `current` gives its workers; None: nodes run in this process.

    ``sharing`` is how many processes share the workers: a divisible node is divided among ``1 / sharing`` of them. The
    keys for tls:// are those of ``project``.

    Raises:
        UserError: Dask is not installed, nothing answers at the address, it has no worker, or the keys are missing.
    """
    if scheduler is None:
        yield None
        return
    try:
        from distributed import Client
    except ImportError:
        raise UserError("--scheduler needs Dask: pip install -e '.[dask]' in the clone") from None
    security = keys.security(scheduler, project)
    try:
        client = Client(
            scheduler, timeout=CONNECT_SECONDS, set_as_default=False, direct_to_workers=False, security=security
        )
    except (TimeoutError, OSError, ValueError) as error:
        raise UserError(
            f"--scheduler {scheduler}: no Dask scheduler answers there ({error}); `dask scheduler` starts one"
            + (", and its keys must be those of this project" if security else "")
        ) from None
    if security is None:
        report("note:", 1, 1, keys.OPEN.format(scheduler=scheduler))
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except TimeoutError:
            raise UserError(
                f"--scheduler {scheduler}: it has no worker; start some, each in a clone of the project: "
                f"{keys.SCRATCH} dask worker {scheduler} --nthreads 1"
            ) from None
        before = _current.set(WorkerPool(client, scheduler, sharing))
        try:
            yield current()
        finally:
            _current.reset(before)
