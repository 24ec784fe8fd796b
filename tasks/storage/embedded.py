"""The embedded store: a real S3 server on loopback, started and stopped by us; see `tasks.storage.seaweedfs`.

It lives in ``.chronomerge/store`` of a project. Every process that uses it holds a shared lock; the last to
leave stops it, unless ``chronomerge remote start`` asked it to stay. Locks die with their holders, so a killed
run leaves at most a server that the next command finds, uses and stops.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from tasks import environment, layout
from tasks.errors import UserError
from tasks.storage import locks, seaweedfs
from tasks.storage.dvc_config import EMBEDDED, Remote, write_remote
from tasks.storage.seaweedfs import StoreServer

BUCKET = "chronomerge"


def folder(project: Path) -> Path:
    """Where the server stores its data: in this project, or in the one that `share` named."""
    own = layout.private(project) / "store"
    shared = own / "shared-from"
    if not shared.exists():
        return own
    other = layout.private(Path(shared.read_text(encoding="utf-8"))) / "store"
    if not other.exists():
        raise UserError(
            f"{other}: the clone whose store this one uses is gone; name another (chronomerge remote use), "
            f"or delete {shared} to have a store of your own"
        )
    return other


def share(project: Path, other: Path) -> None:
    """Use the embedded store of another clone on this machine from now on.

    Raises:
        UserError: the other folder has no embedded store.
    """
    if not (folder(other) / "s3.json").exists():
        raise UserError(f"{other} has no embedded store; name the clone whose runs you want to read")
    (_made(layout.make_private(project) / "store") / "shared-from").write_text(str(other.resolve()), encoding="utf-8")


@contextmanager
def serving(project: Path) -> Iterator[Remote]:
    """The embedded store of a project as a DVC remote, started if it does not run yet.

    Raises:
        UserError: no ``weed`` program, or it does not start; the message names its log.
    """
    environment.bypass_proxies_on_loopback()
    layout.make_private(project)
    home = _made(folder(project))
    with (home / "in-use").open("a+", encoding="utf-8") as use:
        with _exclusive(home):
            locks.acquire(use, shared=True)
            server = running(project) or _start(home)
        try:
            remote = _as_remote(home, server)
            write_remote(project, remote)  # for plain `dvc pull`
            yield remote
        finally:
            _leave(home, use)


def stop_unused(project: Path) -> None:
    """Stop a server that a killed run has left, unless somebody uses it or it is to stay."""
    home = folder(project)
    if (home / "in-use").exists():
        with (home / "in-use").open("a+", encoding="utf-8") as use:
            _leave(home, use)


def running(project: Path) -> StoreServer | None:
    """The server that runs now, if any."""
    home = folder(project)
    server = seaweedfs.read_note(home)
    return server if server and not server.ending and server.process(home) and server.answers() else None


def address(project: Path) -> Remote:
    """The embedded store of a project as a DVC remote, where another process has started it.

    Raises:
        UserError: it does not run; names the project.
    """
    if not (server := running(project)):
        raise UserError(
            f"the embedded store of {project} does not run; if another clone on this machine records the states, run "
            f"`chronomerge remote use CLONE` in {project}, with that clone's folder; on another machine, use a store "
            "that both reach"
        )
    return _as_remote(folder(project), server)


def in_use(project: Path) -> bool:
    """Whether any process uses the store now."""
    return locks.is_held(_made(folder(project)) / "in-use", shared=True)


def keep(project: Path, stays: bool) -> StoreServer | None:
    """Let the running server stay when nobody uses it, or let it go."""
    home = _made(folder(project))
    with _exclusive(home):
        server = running(project)
        if server:
            server = replace(server, stays=stays)
            seaweedfs.write_note(home, server)
    return server


def _start(home: Path) -> StoreServer:
    server = seaweedfs.start(home)
    seaweedfs.write_note(home, server)
    return server


def _leave(home: Path, use: TextIO) -> None:
    with _exclusive(home):
        if not locks.acquire(use, wait=False):
            return  # somebody else uses it and will stop it
        server = seaweedfs.read_note(home)  # whether it answers or, on a busy machine, not in time
        if server and not server.stays and not server.ending:
            _stop(home, server)


def _stop(home: Path, server: StoreServer) -> None:
    try:
        seaweedfs.write_note(home, replace(server, ending=True))
    except OSError:  # a full disk; a server that has met one must end all the more: it would refuse for good
        (home / "server.json").unlink(missing_ok=True)
    seaweedfs.end(home, server)


def _exclusive(home: Path) -> AbstractContextManager[None]:
    """Starting and stopping happen one at a time."""
    return locks.exclusive(home / "lock")


def _made(home: Path) -> Path:
    """A store's folder, made if need be: for its owner alone, whatever older versions have made."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.chmod(0o700)
    return home


def _as_remote(home: Path, server: StoreServer) -> Remote:
    keys = seaweedfs.credentials(home)
    return Remote(EMBEDDED, f"s3://{BUCKET}/states", {
        "endpointurl": server.endpoint, "region": "us-east-1",
        "access_key_id": keys["accessKey"], "secret_access_key": keys["secretKey"],
    })  # fmt: skip
