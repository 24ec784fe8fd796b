"""One run of a timeline: checks, then the lock, the store and the Prefect server, then the pending steps."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from flows import hooks, notes
from flows.prefect import runs
from flows.prefect import server as prefect_server
from flows.prefect.server import Server
from tasks import gate, layout, progress, record
from tasks.errors import UnavailableError, UserError
from tasks.grid import estimate
from tasks.params import Params, load
from tasks.record import Code, State
from tasks.storage import dvc_config, embedded, lease, locks, store
from tasks.storage.dvc import RemoteError
from tasks.storage.dvc_config import Remote
from tasks.workers import pool


@dataclass(frozen=True)
class Pending:
    """The work of a run: the params, the newest state, and the steps that are not recorded yet."""

    params: Params
    last: State | None
    steps: range


def pending(project: Path, until: int | None = None, params: Params | None = None) -> Pending:
    """The pending steps of the project's params, or of the given ones. Starts no work and uses no server or network.

    Raises:
        UserError: the params are wrong, or differ from what the timeline was recorded with.
    """
    params = params or load(project / "params.yaml")
    length = len(params.stream)
    if until is not None and until > length:
        raise UserError(f"--until {until}: the stream has {length} arrivals, so the last step is {length}")
    last = record.last(project, params.timeline)
    if last:
        _continues(params, last, project)
    first = last.step + 1 if last else 0
    return Pending(params, last, range(first, (length if until is None else until) + 1))


def run(
    project: Path, until: int | None = None, *, wait: bool = False, scheduler: str | None = None, before: float = 0.0
) -> list[str]:
    """Run the pending steps and return the tags of the recorded states. Starts nothing if no step is pending.

    Nodes run in this process, or on the workers of a Dask ``scheduler``. The code and the params are read once, at the
    start: a change during the run counts for the next run. ``before`` is how many seconds the command took until this
    call: they are part of the start that the first step's manifest tells.

    Raises:
        UserError: an error that the user can correct, reported as early as possible.
    """
    params = load(project / "params.yaml")
    hooks.require_trusted(project, params.hooks)
    if not params.store.git and not pending(project, until, params).steps:
        _tidy(project, params.timeline)
        return []  # no network, so this is fast
    record.require_same_code(project, Path(__file__).parents[1])
    with locks.writing(project, params.timeline, wait=wait), contextlib.ExitStack() as stack:
        began = time.monotonic() - before
        record.require_not_checked_out(project, params.timeline)
        record.clean_up(project, params.timeline)
        own = params.own_files
        code = record.code_of(project, *own)
        locked, params = params.timeline, record.params_of(project, code)
        if params.timeline != locked:
            raise UserError(f"{project / 'params.yaml'} changed while the run was starting; run again")
        if params.store.git:
            record.synchronize(project, params.timeline, params.store.git)
        todo = pending(project, until, params)  # again: the last holder of the lock may have recorded steps
        if not todo.steps:
            embedded.stop_unused(project)
            return []
        for warning in check(params, project, base=todo.steps[0] == 0):
            progress.report("note:", 1, 1, warning)
        from tasks import prepare

        prepare.check_hub(params.stream[step - 1] for step in todo.steps if step)
        if demand := demanded(todo, project):
            states = record.states(project, params.timeline)
            seconds = estimate.time_of_steps(len(todo.steps), (state.manifest for state in states))
            progress.report("note:", 1, 1, f"{demand}; {seconds}")
        stack.enter_context(notes.recording(project, params, todo.steps))
        starting = "starting the store" + ("" if os.environ.get("PREFECT_API_URL") else " and the Prefect server")
        progress.report(starting, 0, 1)
        server = stack.enter_context(prefect_server.serving(project))  # starts during the imports
        remote = stack.enter_context(store.open_store(project, params.store.remote))
        workers = stack.enter_context(pool.opened(scheduler, project))
        with _leased(project, todo, remote, wait=wait):
            if not workers:
                from tasks.model import models

                models.preload()
            if record.code_of(project, *own).tree != code.tree:
                raise UserError("files of the project changed while the run was starting; run again")
            server.wait()
            runs.crash_dead(server, project, params.timeline)
            progress.report(starting, 1, 1)
            return _flow(project, todo, code, remote, began)


def run_cell(
    project: Path,
    code: Code,
    remote_name: str,
    parallel: int,
    *,
    began: float | None = None,
    wait: bool = False,
    scheduler: str | None = None,
) -> list[str]:
    """Run the pending steps of one cell of a grid, whose params are in ``code``; as `run` for the rest.

    The grid has started the store and the Prefect server, recorded the code and checked everything. ``parallel`` is how
    many cells run at the same time; ``began`` is when the grid began (`time.monotonic`), for the first cell of a cell
    worker.
    """
    params = record.params_of(project, code)
    with locks.writing(project, params.timeline, wait=wait):
        record.require_not_checked_out(project, params.timeline)
        record.clean_up(project, params.timeline)
        if params.store.git:
            record.synchronize(project, params.timeline, params.store.git)
        todo = pending(project, None, params)
        if not todo.steps:
            return []
        remote = dvc_config.remote(project, remote_name)
        with (
            notes.recording(project, params, todo.steps),
            _leased(project, todo, remote, wait=wait),
            pool.opened(scheduler, project, parallel),
        ):
            runs.crash_dead(Server(os.environ["PREFECT_API_URL"]), project, params.timeline)
            return _flow(project, todo, code, remote, began)


@contextlib.contextmanager
def _leased(project: Path, todo: Pending, remote: Remote, *, wait: bool) -> Iterator[None]:
    """Hold the lease of the timeline in its store, where the machines that write to it share no git remote."""
    if not lease.needed(todo.params.store, remote):
        yield
        return
    with lease.writing(project, remote, todo.params.timeline, wait=wait):
        if todo.last:
            lease.take(remote, todo.last)
        line = todo.last.line if todo.last else 1
        lease.require_free(project, remote, record.short_tag(todo.params.timeline, todo.steps[0], line))
        yield


def _flow(project: Path, todo: Pending, code: Code, remote: Remote, began: float | None) -> list[str]:
    """The Prefect flow of the pending steps."""
    from prefect import tags

    from flows.timeline import timeline

    named = timeline.with_options(flow_run_name=f"{todo.params.timeline} to step {todo.steps[-1]}")
    try:
        with tags(*runs.tags(project, todo.params.timeline)):
            return named(str(project), todo.steps[0], todo.steps[-1], asdict(code), remote.name, began)
    except RemoteError as error:
        raise UnavailableError(f"{error}; finished nodes are stored, so run again when the store answers") from error
    finally:
        prefect_server.flush_logs()


def _tidy(project: Path, timeline: str) -> None:
    """Remove what a run left that was killed after its last state, unless another run holds the timeline."""
    if locks.holder(project, timeline) is None:
        with locks.writing(project, timeline):
            record.clean_up(project, timeline)
        embedded.stop_unused(project)


def check(params: Params, project: Path, *, base: bool) -> list[str]:
    """Check what params.yaml and the file system show: sources, methods and techniques exist and fit together.

    ``base``: the base is not recorded yet, so its model, tag or file must exist too. Returns warnings.

    Raises:
        UserError: they do not.
    """
    from tasks import deploy, evaluate, fit, measure, merge, prepare, track, train
    from tasks.model import codec, models

    if base:
        models.check(params.base, project)
    prepare.check(params, project)
    measure.check(params)
    train.check(params.train)
    train.check_codec(params)
    deploy.check(params, project, base=base)
    scored = evaluate.check(
        params.evaluate, aligned=params.deploy is not None and params.deploy.compatible_with is not None
    )
    conditions = [
        *(params.gate.require if params.gate else []),
        *(one for p in params.pointers.values() for one in p.require),
    ]
    gate.require_heads(conditions, scored, [one.name for one in params.evaluate.sets])
    arrivals = [prepare.at_most(one.update, f"stream: arrival {one.name}", project) for one in params.stream]
    pretraining = prepare.at_most(params.base.pretraining, "base.pretraining", project)
    train.check_batches(params, pretraining, arrivals, base=base)
    return [
        *merge.check(params.time, len(params.stream)),
        *fit.check(params),
        *track.check(params),
        *codec.check(params),
    ]


def demanded(todo: Pending, project: Path) -> str | None:
    """What the published data sets of a run will cost: bytes to download, disk; None where there are none.

    Raises:
        UserError: one cannot be had, or the disk has too little room.
    """
    from tasks import prepare

    before = todo.last.settings.evaluate if todo.last else None
    now = todo.params.evaluate
    tests = before is None or (before.adaptation, before.retention) != (now.adaptation, now.retention)
    downloads = layout.private(project) / "downloads"
    return prepare.demanded(todo.params, todo.steps, project, downloads, progress.report, tests=tests)


def _continues(params: Params, last: State, project: Path) -> None:
    """A timeline is one stream under one set of params: those that made its states must not change.

    Raises:
        UserError: a key has changed (the message names it), or the newest state was edited.
    """
    if edited := last.contradictions:
        raise UserError(
            f"{last.tag} was edited: manifest.json and DVC's files name different content of {edited[0]}; no run "
            "can continue it until its tag and branch are back at the commit that was recorded"
        )
    before = last.settings
    for key in ("seed", "base", "time", "fit"):
        if getattr(before, key) != getattr(params, key):
            raise UserError(
                f"{project / 'params.yaml'}: {key} differs from what timeline {params.timeline!r} was recorded with "
                f"(up to {last.tag}); change it back, or give the new experiment a timeline of its own"
            )
    for index, (old, new) in enumerate(zip(before.stream[: last.step], params.stream, strict=False), start=1):
        if old != new:
            raise UserError(
                f"{project / 'params.yaml'}: arrival {new.name!r} of the stream differs from what step {index} was "
                f"recorded with ({old.name!r}); append new arrivals instead"
            )
    if len(params.stream) < last.step:
        raise UserError(
            f"{project / 'params.yaml'}: the stream has {len(params.stream)} arrivals, but {last.step} are "
            f"recorded in timeline {params.timeline!r}; put them back, or name another timeline"
        )
