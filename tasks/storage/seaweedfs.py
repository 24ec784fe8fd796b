"""SeaweedFS (``weed mini``) as a process on this machine: its keys, its ports, how it starts and ends.

It is several servers in one process: S3, and behind it a master, a volume server, a filer and an administrator, which
talk to each other over ports of their own. S3 asks for keys; none of the others asks for anything by default. So their
ports want a certificate of the client (mutual TLS, by ``security.toml``), one that only this store has; the filer's
HTTP is off. A stranger on this machine can connect to any port, and do nothing there.

All ports are new and random at each start, and so are the names of the sockets that SeaweedFS makes in ``/tmp`` (it
takes no other folder for them): nobody can make them first. They are open to their owner alone, and want certificates
too. Everything else is in the store's own folder, which has mode 0700.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from tasks import certificates, environment
from tasks.errors import UserError
from tasks.storage import atomic, jsonfile

START_SECONDS = 60
END_SECONDS = 4
"""After which a server that was told to end is killed. It has written all after two; two times of three it then waits
half a minute for idle connections of its own."""
_TRIES = 3
_SERVERS = ("s3", "master", "volume", "filer", "admin")
_PORTS = range(10_000, 32_768)
"""Below what Linux gives to outgoing connections."""

_started: list[subprocess.Popen[bytes]] = []
"""Servers that this process has started. They may outlive it; those that have ended are reaped at the next start."""


@dataclass(frozen=True)
class StoreServer:
    """A started server: process id, its ports, whether it stays when nobody uses it, whether it was told to end."""

    pid: int
    ports: dict[str, int]
    stays: bool = False
    ending: bool = False

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3']}"

    def process(self, home: Path) -> psutil.Process | None:
        """Its process, if it still runs, on that store's folder; the note in a copy of a project is of the original's.

        A process works in its store's folder, wherever that has been moved to.
        """
        process = self.anywhere()
        return process if process and _works_in(process, home) else None

    def anywhere(self) -> psutil.Process | None:
        """Its process, if it still runs and is a ``weed`` (a process id may be given to another program)."""
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


def read_note(home: Path) -> StoreServer | None:
    """The server that was started last in a store's folder, running or not."""
    try:
        return jsonfile.read(home / "server.json", lambda note: StoreServer(**note), "end the server, and remove it")
    except FileNotFoundError:
        return None


def write_note(home: Path, server: StoreServer) -> None:
    """Store what is known of a server, for the next command; one process at a time."""
    _write_private(home / "server.json", json.dumps(asdict(server)))


def credentials(home: Path) -> dict[str, str]:
    """The server's access key and secret, made once, readable by their owner alone, never in git."""
    path = home / "s3.json"
    if not path.exists():
        made = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_urlsafe(30)}
        identity = {"name": "admin", "credentials": [made],
                    "actions": ["Admin", "Read", "Write", "List", "Tagging"]}  # fmt: skip
        _write_private(path, json.dumps({"identities": [identity]}))
    way_out = "remove it and run again: new keys are made, and the store's data stay"
    return jsonfile.read(path, lambda content: dict(content["identities"][0]["credentials"][0]), way_out)


def start(home: Path) -> StoreServer:
    """Start a server on a store's folder, once no other works there; one process at a time.

    Raises:
        UserError: no ``weed`` program, or it does not start; the message names its log.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    weed = shutil.which("weed", path=path)
    if weed is None:
        raise UserError(
            "store.remote: embedded needs SeaweedFS's `weed`, which `make install` brings; "
            "or name another remote (chronomerge remote setup)"
        )
    home = home.absolute()
    last = read_note(home)
    _end_all(home, last)
    if last and not last.anywhere():  # else they are of the project that this one is a copy of
        _remove_sockets(last.ports)
    credentials(home)
    _secure(home)
    (home / "data").mkdir(exist_ok=True)
    log = home / "server.log"
    for _ in range(_TRIES):  # a port may be taken between the look and the start
        ports = _free_ports()
        process = _spawn(_command(weed, home, ports), home, log)
        server = StoreServer(process.pid, ports)
        if _comes_up(server, process, log):
            return server
        _remove_sockets(ports)
    raise _no_start(log)


def end(home: Path, server: StoreServer) -> None:
    """Tell the server of a store's folder to end, for which only the next start waits."""
    if process := server.process(home):
        process.send_signal(signal.SIGTERM)


def _secure(home: Path) -> None:
    """Make the store's certificate, once, and tell SeaweedFS to ask for it at every port but that of S3."""
    tls = home / "tls"
    if not tls.exists():
        with atomic.made_folder(tls) as made:
            made.chmod(0o700)
            certificates.make(made)
    pair = f'cert = "tls/{certificates.CERTIFICATE}"\nkey = "tls/{certificates.KEY}"\n'  # relative to its own folder
    authority = f'ca = "tls/{certificates.AUTHORITY}"\n'
    sections = {
        "grpc": authority,
        **{f"grpc.{name}": pair for name in (*_SERVERS, "client", "worker")},
        **{f"https.{name}": pair + authority for name in ("master", "volume", "admin")},
        "https.client": f"enabled = true\n{pair}{authority}",
    }
    _write_private(home / "security.toml", "".join(f"[{name}]\n{lines}" for name, lines in sections.items()))


def _command(weed: str, home: Path, ports: Mapping[str, int]) -> list[str]:
    return [
        weed, "-logtostderr=true", "mini", f"-dir={home / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-s3.config=s3.json", "-s3.localSocket=s3.sock", "-filer.localSocket=filer.sock", "-disableHttp=true",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false", "-webdav=false", "-admin.ui=false",
        *(f"-{name.replace('.', '.port.') if '.' in name else f'{name}.port'}={port}" for name, port in ports.items()),
    ]  # fmt: skip


def _spawn(command: list[str], home: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a process that may outlive this one, in a session of its own, in the store's folder."""
    _started[:] = [process for process in _started if process.poll() is None]
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as file:
        process = subprocess.Popen(
            command, cwd=home, env=environment.for_server(home, GOMEMLIMIT="512MiB"), stdin=subprocess.DEVNULL,
            stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    _started.append(process)
    return process


def _comes_up(server: StoreServer, process: subprocess.Popen[bytes], log: Path) -> bool:
    """Wait for a server that this process has just started; false where it has ended instead.

    Raises:
        UserError: it does neither; names its log.
    """
    deadline = time.monotonic() + START_SECONDS
    while not server.answers():
        if process.poll() is not None:
            return False
        if time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise _no_start(log)
        time.sleep(0.05)
    return True


def _no_start(log: Path) -> UserError:
    return UserError(f"the embedded store did not start; its log is {log}")


def _end_all(home: Path, last: StoreServer | None) -> None:
    """Two servers must never share one folder: wait for those that do, and end any that does not answer any more.

    The kernel is asked, not our note: a run may be killed after it has started a server and before it has noted it.
    """
    for process in psutil.process_iter():
        try:
            if "weed" not in process.name() or not _works_in(process, home):
                continue
            now = time.time()
            if last and last.ending and last.pid == process.pid:  # the note is as old as the signal
                told = min(now, (home / "server.json").stat().st_mtime)
            else:
                process.send_signal(signal.SIGTERM)
                told = now
            if not _ended(process, told + END_SECONDS - now):
                process.kill()
                _ended(process, END_SECONDS)
        except psutil.NoSuchProcess:
            continue


def _works_in(process: psutil.Process, home: Path) -> bool:
    """Whether a process has a store's folder as its working directory; false of another user's, which is not ours."""
    try:
        return home.samefile(process.cwd())
    except (OSError, psutil.Error):
        return False


def _ended(process: psutil.Process, seconds: float) -> bool:
    """Wait for a process; one that only waits to be reaped, which nobody may do in a container, has ended."""
    deadline = time.monotonic() + seconds
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _free_ports() -> dict[str, int]:
    """A free port for each server, and one for its gRPC, whose number is in the name of a socket."""
    chosen: dict[str, int] = {}
    for name in (*_SERVERS, *(f"{server}.grpc" for server in _SERVERS)):
        while True:
            port = secrets.choice(_PORTS)
            if port not in chosen.values() and _is_free(port) and not os.path.lexists(_socket(name, port)):
                break
        chosen[name] = port
    return chosen


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _socket(name: str, port: int) -> Path:
    """Where SeaweedFS makes the socket of a server's gRPC port."""
    return Path(f"/tmp/seaweedfs-{name.replace('.', '-')}-{port}.sock")


def _remove_sockets(ports: Mapping[str, int]) -> None:
    """Remove the sockets that a server has left; it removes only some of them itself."""
    for name, port in ports.items():
        if name.endswith(".grpc"):
            with suppress(FileNotFoundError, PermissionError):  # another user's: not ours
                _socket(name, port).unlink()


def _write_private(path: Path, content: str) -> None:
    """Write a file that its owner alone can read."""
    with atomic.made(path) as part:  # in a folder that only its owner can enter
        part.write_text(content, encoding="utf-8")
        part.chmod(0o600)
