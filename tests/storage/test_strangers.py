"""Other users of the machine can connect to the embedded store's ports, and do nothing there."""

import http.client
import os
import socket
import ssl
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tasks import certificates, layout
from tasks.storage import embedded, store
from tasks.storage.dvc_config import Remote
from tasks.storage.seaweedfs import StoreServer

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What every gRPC client sends first; a server that talks to it answers with a frame of settings."""
SETTINGS = 4
ATTACKS = [
    # S3
    ("GET", "/", ""), ("GET", "/chronomerge", ""), ("GET", "/chronomerge/states/secret", ""),
    ("PUT", "/chronomerge/states/evil", "evil"), ("DELETE", "/chronomerge/states/secret", ""),
    ("DELETE", "/chronomerge", ""), ("POST", "/?Action=CreateUser&UserName=evil", "Action=CreateUser&UserName=evil"),
    ("POST", "/chronomerge?delete", "<Delete><Object><Key>states/secret</Key></Object></Delete>"),
    # filer
    ("GET", "/buckets/chronomerge/states/secret", ""), ("PUT", "/buckets/chronomerge/states/evil", "evil"),
    ("DELETE", "/buckets?recursive=true", ""), ("GET", "/?pretty=y", ""), ("POST", "/etc/iam/identity.json", "{}"),
    # master
    ("GET", "/dir/status", ""), ("GET", "/dir/assign", ""), ("GET", "/dir/lookup?volumeId=1", ""),
    ("GET", "/vol/grow?count=1", ""), ("GET", "/col/delete?collection=chronomerge", ""),
    ("POST", "/col/delete?collection=chronomerge", ""), ("POST", "/submit", "evil"), ("GET", "/cluster/status", ""),
    ("GET", "/vol/vacuum", ""),
    # volume
    ("GET", "/status", ""), ("GET", "/1,01", ""), ("PUT", "/1,01", "evil"), ("DELETE", "/1,01", ""),
    ("GET", "/ui/index.html", ""),
    # administrator
    ("GET", "/api/cluster/topology", ""), ("GET", "/object-store/buckets", ""),
]  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Remote, StoreServer]]:
    """A store that holds a secret, once all of its servers listen."""
    project = tmp_path_factory.mktemp("project")
    (project / ".dvc").mkdir()
    with store.open_store(project, "embedded") as remote:
        server = embedded.running(project)
        assert server
        store.client(remote).put_object(Bucket=remote.bucket, Key="states/secret", Body=b"secret")
        deadline = time.monotonic() + 30
        while len(tcp_ports(server)) < len(server.ports):
            assert time.monotonic() < deadline, f"listens on {tcp_ports(server)} of {server.ports}"
            time.sleep(0.05)
        yield project, remote, server


def tcp_ports(server: StoreServer) -> set[int]:
    listening = [c for c in psutil.Process(server.pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert {c.laddr.ip for c in listening} == {"127.0.0.1"}
    return {c.laddr.port for c in listening}


def unix_sockets(project: Path, server: StoreServer) -> list[Path]:
    named = {Path(c.laddr) for c in psutil.Process(server.pid).net_connections("unix") if c.laddr}
    return sorted(embedded.folder(project) / path for path in named)


def stranger() -> ssl.SSLContext:
    """Trusts every server, and has no certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def with_certificate(folder: Path) -> ssl.SSLContext:
    context = stranger()
    context.load_cert_chain(folder / certificates.CERTIFICATE, folder / certificates.KEY)
    return context


def answer(port: int, context: ssl.SSLContext | None, method: str, path: str, body: str) -> tuple[int, bytes] | None:
    """Status and body of an HTTP answer, or None where there is none."""
    kinds: Callable[[], http.client.HTTPConnection] = (
        (lambda: http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context))
        if context
        else (lambda: http.client.HTTPConnection("127.0.0.1", port, timeout=5))
    )
    connection = kinds()
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def speaks_http2(connection: socket.socket) -> bool:
    """Whether a server answers a gRPC client."""
    connection.settimeout(5)
    try:
        connection.sendall(PREFACE)
        received = connection.recv(9)
    except OSError:
        return False
    return len(received) >= 4 and received[3] == SETTINGS


def test_no_port_lets_a_stranger_list_read_write_or_delete(served: tuple[Path, Remote, StoreServer]) -> None:
    _, remote, server = served
    for port in tcp_ports(server):
        for context in (None, stranger()):
            for attack in ATTACKS:
                given = answer(port, context, *attack)
                alive = port == server.ports["s3"] and attack[1] == "/status" and given == (200, b"")
                assert alive or given is None or 400 <= given[0] < 500, f"{attack} at {port}: {given}"
    s3 = store.client(remote)
    assert [one["Key"] for one in s3.list_objects_v2(Bucket=remote.bucket)["Contents"]] == ["states/secret"]
    assert s3.get_object(Bucket=remote.bucket, Key="states/secret")["Body"].read() == b"secret"


def test_no_port_speaks_grpc_with_a_stranger(served: tuple[Path, Remote, StoreServer], tmp_path: Path) -> None:
    project, _, server = served
    certificates.make(tmp_path)
    own = with_certificate(embedded.folder(project) / "tls")
    welcome = set()
    for port in tcp_ports(server) - {server.ports["s3"], server.ports["filer"]}:
        with socket.create_connection(("127.0.0.1", port)) as plain:
            assert not speaks_http2(plain)
        for context in (stranger(), with_certificate(tmp_path)):
            with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain) as secured:
                assert not speaks_http2(secured)
        with socket.create_connection(("127.0.0.1", port)) as plain, own.wrap_socket(plain) as secured:
            if speaks_http2(secured):
                welcome.add(port)
    grpc = {port for name, port in server.ports.items() if name.endswith(".grpc")}
    assert grpc <= welcome  # else the test has tried nothing


def test_sockets_in_the_file_system_are_for_their_owner(served: tuple[Path, Remote, StoreServer]) -> None:
    project, _, server = served
    paths = unix_sockets(project, server)
    assert len(paths) >= 5
    home = embedded.folder(project)
    for path in paths:
        if path.parent == home:  # in a folder that nobody else can enter
            continue
        mode = path.stat()
        assert not mode.st_mode & (stat.S_IWGRP | stat.S_IWOTH)  # who cannot write to a socket cannot connect
        assert mode.st_uid == os.getuid()
        with socket.socket(socket.AF_UNIX) as plain:
            plain.connect(str(path))
            assert not speaks_http2(plain)


def test_nobody_else_can_enter_the_folders(served: tuple[Path, Remote, StoreServer]) -> None:
    project, _, _ = served
    home = embedded.folder(project)
    for folder in (layout.private(project), home, home / "tls"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in [*(home / "tls").iterdir(), *(home / n for n in ("server.json", "s3.json", "security.toml"))]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_ports_are_new_at_each_start_and_sockets_go(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    servers, sockets = [], []
    for _ in range(2):
        with embedded.serving(tmp_path):
            server = embedded.running(tmp_path)
            assert server
            servers.append(server)
            sockets.append([path for path in unix_sockets(tmp_path, server) if path.parent == Path("/tmp")])
    assert not set(servers[0].ports.values()) & set(servers[1].ports.values())
    assert not [path for path in sockets[0] if path.exists()]


def test_a_port_whose_socket_another_user_made_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.storage import seaweedfs

    monkeypatch.setattr(seaweedfs, "_SERVERS", ("s3",))
    monkeypatch.setattr(seaweedfs, "_socket", lambda name, port: tmp_path / f"{name}-{port}")
    offered = iter([21_001, 21_002, 21_003])
    monkeypatch.setattr(seaweedfs.secrets, "choice", lambda _: next(offered))
    monkeypatch.setattr(seaweedfs, "_is_free", lambda _: True)
    (tmp_path / "s3.grpc-21002").symlink_to("nowhere")
    assert seaweedfs._free_ports() == {"s3": 21_001, "s3.grpc": 21_003}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_reads_nothing_of_a_project_whose_folder_is_open_to_all() -> None:
    """As user 65534 (nobody), in a folder that everybody may enter, while the store is up."""
    with tempfile.TemporaryDirectory() as name:
        project = Path(name)
        project.chmod(0o755)
        (project / ".dvc").mkdir()

        def reachable(condition: str) -> list[str]:
            """The paths below the project that nobody can read or write, as nobody's own ``find`` says."""
            found = subprocess.run(
                ["find", name, "-mindepth", "1", condition], user=65534, group=65534, extra_groups=[],
                capture_output=True, text=True, cwd="/",
            )  # fmt: skip
            return found.stdout.split()

        with store.open_store(project, "embedded") as remote:
            store.client(remote).put_object(Bucket=remote.bucket, Key="states/secret", Body=b"secret")
            assert (project / ".chronomerge" / "store" / "s3.json").exists()
            assert not [
                path for path in reachable("-readable") if ".chronomerge/" in path or path.endswith("config.local")
            ]
            assert reachable("-writable") == []
            assert str(project / ".chronomerge") not in reachable("-readable")
            server = embedded.running(project)
            process = server.anywhere() if server else None
        assert process
        process.wait(60)  # a store takes a while to end, and writes in its folder until then
