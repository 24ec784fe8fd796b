"""The embedded store: a real S3 server (SeaweedFS, ``weed mini``) on loopback, started and stopped by us.

It lives in ``.chronomerge/store`` of a project. Every process that uses it holds a shared lock; the last to
leave stops it, unless ``chronomerge remote start`` asked it to stay. Locks die with their holders, so a killed
run leaves at most a server that the next command finds, uses and stops.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

import psutil

from tasks import environment
from tasks.errors import UserError
from tasks.storage import atomic, locks
from tasks.storage.dvc_config import EMBEDDED, Remote, write_remote

BUCKET = "chronomerge"
START_SECONDS = 60
_GRPC = 10_000
"""SeaweedFS opens a gRPC port this far above each of its ports."""
_LETS_GO_SECONDS = 3


@dataclass(frozen=True)
class Server:
    """A started server: process id, its ports, whether it stays when nobody uses it, whether it was told to end."""

    pid: int
    ports: dict[str, int]
    stays: bool = False
    ending: bool = False

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3']}"

    def process(self) -> psutil.Process | None:
        """Its process, if it still runs and is a ``weed`` (not a stranger with a recycled id)."""
        try:
            process = psutil.Process(self.pid)
            gone = process.status() == psutil.STATUS_ZOMBIE or "weed" not in process.name()
        except psutil.NoSuchProcess:
            return None
        return None if gone else process

    def answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["s3"], timeout=5)  # knows no proxies
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def folder(project: Path) -> Path:
    """Where the server keeps its data: in this project, or in the one that `share` named."""
    own = project / ".chronomerge" / "store"
    shared = own / "shared-from"
    if not shared.exists():
        return own
    there = Path(shared.read_text()) / ".chronomerge" / "store"
    if not there.exists():
        raise UserError(
            f"{there}: the clone whose store this one uses is gone; name another (chronomerge remote use), "
            f"or delete {shared} to have a store here"
        )
    return there


def share(project: Path, other: Path) -> None:
    """Use the embedded store of another clone on this machine from now on.

    Raises:
        UserError: the other folder has no embedded store.
    """
    if not (folder(other) / "s3.json").exists():
        raise UserError(f"{other} has no embedded store; name the clone whose runs you want to read")
    own = project / ".chronomerge" / "store"
    own.mkdir(parents=True, exist_ok=True)
    (own / "shared-from").write_text(str(other.resolve()))


@contextmanager
def serving(project: Path) -> Iterator[Remote]:
    """The embedded store of a project as a DVC remote, started if it does not run yet.

    Raises:
        UserError: no ``weed`` program, or it does not start; the message names its log.
    """
    environment.bypass_proxies_on_loopback()
    home = folder(project)
    home.mkdir(parents=True, exist_ok=True)
    with (home / "in-use").open("a+") as lease:
        with _exclusive(home):
            fcntl.flock(lease, fcntl.LOCK_SH)
            server = running(project) or _start(project)
        try:
            yield _remote(project, server)
        finally:
            _leave(project, lease)


def stop_unused(project: Path) -> None:
    """Stop a server that a killed run has left, unless somebody uses it or it is to stay."""
    home = folder(project)
    if (home / "in-use").exists():
        with (home / "in-use").open("a+") as lease:
            _leave(project, lease)


def _leave(project: Path, lease: TextIO) -> None:
    with _exclusive(folder(project)):
        try:
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # somebody else uses it and will stop it
        current = _last(project)  # whether it answers or, on a busy machine, not in time
        if current and not current.stays and not current.ending:
            _stop(project, current)


def running(project: Path) -> Server | None:
    """The server that runs now, if any."""
    server = _last(project)
    return server if server and not server.ending and server.process() and server.answers() else None


def in_use(project: Path) -> bool:
    """Whether any process uses the store now."""
    home = folder(project)
    home.mkdir(parents=True, exist_ok=True)
    with (home / "in-use").open("a+") as lease:
        try:
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _last(project: Path) -> Server | None:
    """The server that was started last, whatever has become of it."""
    try:
        return Server(**json.loads((folder(project) / "server.json").read_text()))
    except FileNotFoundError:
        return None


def keep(project: Path, stays: bool) -> Server | None:
    """Let the running server stay when nobody uses it, or let it go."""
    home = folder(project)
    home.mkdir(parents=True, exist_ok=True)
    with _exclusive(home):
        server = running(project)
        if server:
            server = replace(server, stays=stays)
            _note(project, server)
    return server


def _exclusive(home: Path) -> AbstractContextManager[None]:
    """Starting and stopping happen one at a time."""
    return locks.exclusive(home / "lock")


def _start(project: Path) -> Server:
    home = folder(project)
    weed = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if weed is None:
        raise UserError(
            "store.remote: embedded needs SeaweedFS's `weed`, which `make install` brings; "
            "or name another remote (chronomerge remote setup)"
        )
    last = _last(project)
    _await_end(home, last)
    _credentials(home)
    (home / "data").mkdir(exist_ok=True)
    for ports in (_ports(last), _ports(None), _ports(None)):  # one may be taken between the look and the start
        pid = _spawn(_command(weed, home, ports), home / "server.log")
        server = Server(pid, ports)
        if _comes_up(server, home / "server.log"):
            _note(project, server)
            return server
    raise _no_start(home / "server.log")


def _no_start(log: Path) -> UserError:
    return UserError(f"the embedded store did not start; its log is {log}")


def _command(weed: str, home: Path, ports: dict[str, int]) -> list[str]:
    return [
        weed, "-logtostderr=true", "mini", f"-dir={home / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-s3.port={ports['s3']}", f"-s3.config={home / 's3.json'}", "-master.telemetry=false", "-webdav=false",
        "-admin.ui=false", f"-admin.port={ports['admin']}",
        "-s3.port.iceberg=0", "-s3.port.lance=0", f"-master.port={ports['master']}", f"-volume.port={ports['volume']}",
        f"-filer.port={ports['filer']}",
    ]  # fmt: skip


def _comes_up(server: Server, log: Path) -> bool:
    """Wait for a server that this process has just started; false where it has ended instead.

    Raises:
        UserError: it does neither; names its log.
    """
    deadline = time.monotonic() + START_SECONDS
    while not server.answers():
        if os.waitpid(server.pid, os.WNOHANG)[0] == server.pid:
            return False
        if time.monotonic() > deadline:
            os.kill(server.pid, signal.SIGKILL)
            os.waitpid(server.pid, 0)
            raise _no_start(log)
        time.sleep(0.05)
    return True


def _spawn(command: list[str], log: Path) -> int:
    """Start a process that may outlive this one, in a session of its own; returns its id."""
    silent = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    logged = (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    errors_too = (os.POSIX_SPAWN_DUP2, 1, 2)
    variables = environment.for_server(log.parent, GOMEMLIMIT="512MiB")
    return os.posix_spawn(command[0], command, variables, file_actions=[silent, logged, errors_too], setsid=True)


def _note(project: Path, server: Server) -> None:
    """Keep what is known of a server; one at a time."""
    atomic.write(folder(project) / "server.json", json.dumps(asdict(server)))


def _stop(project: Path, server: Server) -> None:
    """Tell it to end; it takes two seconds for that, which only the next start has to wait for."""
    try:
        _note(project, replace(server, ending=True))
    except OSError:  # a full disk; a server that has met one must end all the more: it would refuse for good
        (folder(project) / "server.json").unlink(missing_ok=True)
    process = server.process()
    if process:
        process.send_signal(signal.SIGTERM)


def _await_end(home: Path, last: Server | None) -> None:
    """Two servers must never share one folder: wait for those that do, and end any that does not answer any more.

    The kernel is asked, not our note: a run may be killed after it has started a server and before it has noted it.
    """
    for process in psutil.process_iter():
        try:
            if "weed" not in process.name() or f"-dir={home / 'data'}" not in process.cmdline():
                continue
            if not (last and last.ending and last.pid == process.pid):
                process.send_signal(signal.SIGTERM)
            if not _ended(process, 15):
                process.kill()
                _ended(process, 15)
        except psutil.NoSuchProcess:
            continue


def _ended(process: psutil.Process, seconds: float) -> bool:
    """Wait for a process; one that only waits to be reaped, which nobody may do in a container, has ended."""
    deadline = time.monotonic() + seconds
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _credentials(home: Path) -> dict[str, str]:
    """The server's access key and secret, made once, readable by their owner alone, never in git."""
    path = home / "s3.json"
    if not path.exists():
        made = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_urlsafe(30)}
        identity = {"name": "admin", "credentials": [made],
                    "actions": ["Admin", "Read", "Write", "List", "Tagging"]}  # fmt: skip
        with atomic.made(path) as part:
            part.touch(0o600)
            part.write_text(json.dumps({"identities": [identity]}))
    credentials: dict[str, str] = json.loads(path.read_text())["identities"][0]["credentials"][0]
    return credentials


def _ports(last: Server | None) -> dict[str, int]:
    """Free ports, each with its gRPC port; those of the last start if they are free, so that clones configured
    then still find the server. All lie below what Linux gives to outgoing connections (from 32768)."""
    if last and _become_free(last.ports.values()):
        return last.ports
    chosen: dict[str, int] = {}
    for name in ("s3", "master", "volume", "filer", "admin"):
        port = next(p for p in iter(lambda: 20_000 + secrets.randbelow(2_700), None)
                    if p not in chosen.values() and _free(p) and _free(p + _GRPC))  # fmt: skip
        chosen[name] = port
    return chosen


def _become_free(ports: Iterable[int]) -> bool:
    """Whether ports are free, or are so in a moment: a server that ended just now counts as ended before all of its
    threads have let go of them."""
    deadline = time.monotonic() + _LETS_GO_SECONDS
    while not all(_free(port) and _free(port + _GRPC) for port in ports):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _remote(project: Path, server: Server) -> Remote:
    """The DVC remote of a running server, also kept in ``.dvc/config.local`` for plain ``dvc pull``."""
    keys = _credentials(folder(project))
    made = Remote(EMBEDDED, f"s3://{BUCKET}/states", {
        "endpointurl": server.endpoint, "region": "us-east-1",
        "access_key_id": keys["accessKey"], "secret_access_key": keys["secretKey"],
    })  # fmt: skip
    write_remote(project, made)
    return made
