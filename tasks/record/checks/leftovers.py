"""What dead processes leave behind: locks, worktrees, temporary files, servers."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil

from tasks import layout
from tasks.record.diagnosis import Finding, Visit
from tasks.record.worktrees import folders, forget, remove
from tasks.storage import dvc_config, embedded, git, locks, seaweedfs


def embedded_store(visit: Visit) -> Iterator[Finding]:
    """The embedded store still runs though nobody uses it, or its note names a server that is gone."""
    home = layout.private(visit.project) / "store"
    if visit.remote != dvc_config.EMBEDDED or not (home / "server.json").exists() or (home / "shared-from").exists():
        return
    server = seaweedfs.read_note(home)
    if server is None or server.stays or server.ending or embedded.in_use(visit.project):
        return
    alive = server.process(home) is not None
    yield Finding(
        "the embedded store was never stopped" if alive else "the embedded store died",
        f"process {server.pid}",
        "a killed run left it running" if alive else "the machine went down, or somebody killed it; its data is safe",
        "use it once more and stop it, which every command that uses the store does by itself",
        partial(_use, visit.project),
    )


def _use(project: Path) -> None:
    with embedded.serving(project):
        pass


def lock_notes(visit: Visit) -> Iterator[Finding]:
    """A lock dies with its holder, its note does not."""
    for timeline in locks.timelines(visit.project):
        path = git.common_dir(visit.project) / "chronomerge" / f"{timeline}.lock"
        if path.stat().st_size and visit.free(timeline):
            yield Finding(
                f"a dead writer's note in the lock of timeline {timeline!r}", str(path),
                "a run was killed; the lock itself is free", "clear the note",
                lambda: None,  # holding the lock does it
                timeline=timeline,
            )  # fmt: skip


def worktrees(visit: Visit) -> Iterator[Finding]:
    """Worktrees and scratch folders of dead runs."""
    for timeline in visit.timelines():
        home = layout.private(visit.project) / "work" / timeline
        if home.exists() and any(home.iterdir()) and visit.free(timeline):
            for folder in sorted(home.iterdir()):
                if _alive(folder.name.rpartition("-")[2]):
                    continue  # a restore or a check, which need no lock
                yield Finding(
                    "the working folder of a dead run", str(folder),
                    "a run was killed; what it finished is in the cache",
                    "remove it", partial(remove, visit.project, folder), timeline=timeline,
                )  # fmt: skip


def half_restored(visit: Visit) -> Iterator[Finding]:
    """What a restore that was killed had put together so far, beside the folder that it was for."""
    for tree in folders(visit.project):
        made_by = re.fullmatch(r"\..*\.part-(\d+)", tree.name)
        if made_by and not _alive(made_by[1]):
            yield Finding(
                "a folder that a killed restore left", str(tree), "it is not complete, and keeps its state in use",
                "remove it", partial(remove, visit.project, tree),
            )  # fmt: skip


def notes_of_deleted_folders(visit: Visit) -> Iterator[Finding]:
    """Git still notes a worktree with a state in it, though its folder was deleted (and not only unmounted)."""
    commits = {state.commit: state.tag for state in visit.states}
    for path in sorted((git.common_dir(visit.project) / "worktrees").glob("*/gitdir")):
        folder = Path(path.read_text(encoding="utf-8").strip()).parent
        tag = commits.get((path.parent / "HEAD").read_text(encoding="utf-8").strip())
        gone = not folder.exists() and folder.parent.exists() and not (path.parent / "locked").exists()
        if tag and gone:
            yield Finding(
                "git's note of a restored folder that was deleted", f"{folder} ({tag})",
                "git believes that the state is checked out there", "drop the note",
                partial(forget, visit.project, folder),
            )  # fmt: skip


def temporary_files(visit: Visit) -> Iterator[Finding]:
    """Files that an interrupted write left in the cache or in our private folder."""
    since = writers_since(visit)
    private = layout.private(visit.project)
    indexes = [
        path
        for path in (private / "tmp").glob("index-*")
        if not _alive(path.name.removesuffix(".lock").rpartition("-")[2])
    ]
    for path in [*(path for path in visit.strays if path.is_file() and path.stat().st_mtime < since), *indexes]:
        yield Finding(
            "a temporary file of a dead process", str(path), "a write was interrupted; nothing refers to it",
            "delete it", partial(path.unlink, missing_ok=True),
        )  # fmt: skip
    for home in private.glob("prefect-*"):
        if home.is_dir() and not _alive(home.name.removeprefix("prefect-")):
            yield Finding(
                "the Prefect home of a dead run", str(home), "a second run at a time was killed; it holds views only",
                "delete it", partial(shutil.rmtree, home),
            )  # fmt: skip


def dvc_locks(visit: Visit) -> Iterator[Finding]:
    """DVC's ``rwlock`` is rewritten in place: a kill leaves it empty or cut off, and DVC then refuses everything."""
    for tree in folders(visit.project):
        path = tree / ".dvc" / "tmp" / "rwlock"
        if path.exists() and not _is_json(path):
            yield Finding(
                "a damaged DVC lock", str(path),
                "DVC was killed; it says 'JSON structure is corrupted' until this is gone",
                "delete it", partial(_drop_rwlock, path),
            )  # fmt: skip


def _drop_rwlock(path: Path) -> None:
    """Under the lock that DVC itself takes to edit the file."""
    with locks.exclusive(path.with_name("rwlock.lock")):
        if not _is_json(path):
            path.unlink(missing_ok=True)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    return True


def writers_since(visit: Visit) -> float:
    """When the oldest of the running writers began; now, if there is none (seconds since 1970)."""
    busy = [timeline for timeline in locks.timelines(visit.project) if not visit.free(timeline)]
    folder = git.common_dir(visit.project) / "chronomerge"
    return min((path.stat().st_mtime for path in (folder / f"{name}.lock" for name in busy)), default=time.time())


def _alive(pid: str) -> bool:
    """Whether the process lives that a name ends with; a name may end with something else."""
    return pid.isdecimal() and psutil.pid_exists(int(pid))
