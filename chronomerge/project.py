"""What one does with a project: run its timeline, find its states, bring them back, check them, report on them.

``project`` is a folder in the git repository of the project, by default the current one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flows.processes import messages
from tasks import layout, processes
from tasks.errors import UnavailableError
from tasks.progress import Progress, silent

if TYPE_CHECKING:
    from tasks.record import State
    from tasks.record.restoration import Restored
    from tasks.record.verification import Verification
    from tasks.report.report import Written

Folder = str | os.PathLike[str]


def run(
    project: Folder = ".", *, until: int | None = None, wait: bool = False, progress: Progress = silent
) -> list[State]:
    """Run every pending time step of the timeline in params.yaml; returns the states that they became.

    What `chronomerge run` does: after a failure or a kill, the same call goes on where it stopped. ``until`` is the
    last step to run, ``wait`` waits while another process writes to the timeline. The run is a process of its own, with
    the code in the project's folder, since a state records that code; it ends with this process. What it prints goes to
    ``.chronomerge/logs/run.log``.

    Raises:
        UserError: whatever the caller can mend, found as early as it can be.
        UnavailableError: a store or a network; the same call may work later.
    """
    options = [f"--until={until}"] if until is not None else []
    return _run(_top(project), options, wait=wait, progress=progress)


def advance(project: Folder = ".", *, wait: bool = False, progress: Progress = silent) -> State | None:
    """Run the next time step only; returns its state, or None where nothing is pending.

    Raises:
        UserError: as `run`.
    """
    from flows.run import pending

    folder = _top(project)
    steps = pending(folder).steps
    made = run(folder, until=steps[0], wait=wait, progress=progress) if steps else []
    return made[-1] if made else None


def states(project: Folder = ".", timeline: str | None = None, *, all_lines: bool = False) -> list[State]:
    """The states that the newest one goes back to, step 0 first; with ``all_lines`` those left by rollbacks too.

    Only git is read. ``timeline`` is by default the one in params.yaml.

    Raises:
        UserError: params.yaml or a state's record is damaged.
    """
    from tasks import record

    folder = _top(project)
    return (record.states if all_lines else record.lineage)(folder, timeline or _timeline(folder))


def find(name: str | int, project: Folder = ".", timeline: str | None = None) -> State:
    """A state by its step (``3``), step and line (``"3.2"``) or tag (``"state/demo/0003"``).

    Raises:
        UserError: it is not recorded; says which are.
    """
    from tasks import record

    folder = _top(project)
    return record.find(folder, timeline or _timeline(folder), name)


def restore(name: str | int, to: Folder | None = None, project: Folder = ".") -> Restored:
    """Bring a state back, bit for bit, into a new folder (by default beside the project), as `State.restore`.

    Raises:
        UserError: no such state, the folder is not empty, or the state's bytes cannot be had.
    """
    return find(name, project).restore(to)


def verify(name: str | int, project: Folder = ".", progress: Progress = silent) -> Verification:
    """Run a state's nodes again and compare every hash, as `State.verify`. This runs the state's own code.

    Raises:
        UserError: no such state.
    """
    return find(name, project).verify(progress)


def rollback(name: str | int, project: Folder = ".", *, wait: bool = False) -> State:
    """Go back to a state: the next step starts from it; what came after stays on a line of its own.

    Returns the newest state: a new one, or the given one where it is the newest already.

    Raises:
        UserError: no such state, the timeline is being written, or the state's bytes cannot be had.
    """
    from tasks import record

    folder = _top(project)
    to, made = record.rollback(folder, _timeline(folder), str(name), wait=wait)
    return made or to


def withdraw(
    arrival: str, project: Folder = ".", *, retrain: bool = False, wait: bool = False, progress: Progress = silent
) -> list[State]:
    """Take a recorded arrival out: a new line of states without its expert and its data; tags of old lines stay.

    What `chronomerge withdraw` does, in a process of its own as `run`. Returns the states of the new line, that which
    it starts with first. ``manifest.withdrawals`` of each says which arrivals' experts still descend from it;
    ``retrain`` trains those again.

    Raises:
        UserError: it is no recorded arrival, the only one, or taken out already; or as `run`.
        UnavailableError: as `run`; the same call goes on.
    """
    options = [f"--withdraw={arrival}", *(["--retrain"] if retrain else [])]
    return _run(_top(project), options, wait=wait, progress=progress)


def report(
    project: Folder = ".",
    timelines: Sequence[str] = (),
    to: Folder | None = None,
    progress: Progress = silent,
) -> Written:
    """Write the report on timelines (by default the one in params.yaml): a page, its figures, its table.

    ``to`` is the folder, by default ``report`` in the project. Equal states give equal bytes.

    Raises:
        UserError: a timeline has no states.
    """
    from tasks.report import plain
    from tasks.report.report import report as draw

    folder = _top(project)
    names = list(timelines) or [_timeline(folder)]
    target = Path(to).resolve() if to else folder / "report"
    drawn_by = " ".join(["chronomerge report", *(f"--timeline {name}" for name in timelines)])
    return draw(folder, plain.cells(folder, names), target, made_by="chronomerge run", drawn_by=drawn_by,
                progress=progress)  # fmt: skip


def _run(folder: Path, options: Sequence[str], *, wait: bool, progress: Progress) -> list[State]:
    path = layout.make_private(folder) / "logs" / "run.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as log:
        given = [*options, *([] if wait else ["--no-wait"])]
        process = processes.start("flows.processes.run_process", *given, folder=folder, log=log)
        try:
            assert process.stdout
            tags = messages.outcome(process.stdout, progress)
            if tags is None:
                raise UnavailableError(
                    f"the run was killed, perhaps out of memory (status {process.wait()}); its log is {path}"
                )
        except BaseException:
            process.terminate()
            raise
        finally:
            processes.see_end(process, within=30)
    return [find(tag, folder) for tag in tags]


def _top(project: Folder) -> Path:
    from tasks.storage.git import top_level

    return top_level(Path(project).resolve())


def _timeline(project: Path) -> str:
    from tasks.params import load

    return load(project / "params.yaml").timeline
