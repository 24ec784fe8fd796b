"""Proxies are for other machines, and the embedded store knows nothing of the user's AWS settings."""

import asyncio
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import aiohttp
import httpx
import psutil
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from tasks import environment, processes
from tasks.errors import UserError
from tasks.storage import dvc_config, embedded, pointers, store
from tasks.storage.cache import Cache
from tasks.storage.dvc_config import Remote
from tests.project import git

DEAD = "http://127.0.0.1:9"
PROXY_VARIABLES = [
    name for one in ("http_proxy", "https_proxy", "all_proxy", "no_proxy") for name in (one, one.upper())
]


class Listening(ThreadingHTTPServer):
    """A server that answers everything with 404, and notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Listening)
        self.server.asked.append(self.path)
        self.send_error(404)

    do_HEAD = do_PUT = do_CONNECT = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Listening]:
    with Listening() as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield listening
        listening.shutdown()
        thread.join()


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No proxy variables; those that the test or the code sets are gone afterwards."""
    for name in PROXY_VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def dead_proxies(clean: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        clean.setenv(name, DEAD)
    clean.setenv("ALL_PROXY", "socks5://127.0.0.1:9")


def with_urllib(address: str) -> None:
    urllib.request.build_opener().open(f"{address}/x", timeout=5).close()  # `urlopen` remembers the first proxy


def with_httpx(address: str) -> None:
    with httpx.Client() as client:
        client.get(f"{address}/x")


def with_aiohttp(address: str) -> None:
    async def ask() -> None:
        async with aiohttp.ClientSession(trust_env=True) as session, session.get(f"{address}/x"):
            pass

    with ThreadPoolExecutor(1) as pool:  # this thread may have an event loop already, another test's
        pool.submit(asyncio.run, ask()).result()


def with_botocore(address: str) -> None:
    options = {"endpointurl": address, "access_key_id": "a", "secret_access_key": "b", "region": "us-east-1"}
    store.client(Remote("one", "s3://bucket", options), attempts=1).head_object(Bucket="bucket", Key="x")


CLIENTS = [with_urllib, with_httpx, with_aiohttp, with_botocore]


def ask(client: Callable[[str], None], address: str) -> None:
    """What the answer is matters not here; whom the client asks does."""
    try:
        client(address)
    except (urllib.error.HTTPError, ClientError):
        pass
    except (OSError, BotoCoreError, httpx.HTTPError, aiohttp.ClientError) as error:
        raise AssertionError(f"asked somebody else: {error}") from error


@pytest.mark.usefixtures("dead_proxies")
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_client_asks_a_proxy_for_this_machine(client: Callable[[str], None], host: str, server: Listening) -> None:
    environment.bypass_proxies_on_loopback()
    ask(client, f"http://{host}:{server.port}")
    assert server.asked


@pytest.mark.parametrize("client", CLIENTS)
def test_every_client_asks_the_proxy_for_other_machines(
    client: Callable[[str], None], server: Listening, clean: pytest.MonkeyPatch
) -> None:
    clean.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
    environment.bypass_proxies_on_loopback()
    ask(client, "http://s3.example.invalid")
    assert server.asked[0].startswith("http://s3.example.invalid/")


def test_git_asks_the_proxy_for_other_machines_alone(
    server: Listening, clean: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clean.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
    environment.bypass_proxies_on_loopback()
    for address in ("http://git.example.invalid/r", f"http://127.0.0.1:{server.port}/r"):
        with pytest.raises(subprocess.CalledProcessError):
            git(tmp_path, "ls-remote", address)
    remote, local = server.asked
    assert remote.startswith("http://git.example.invalid/r")
    assert local.startswith("/r")


def test_the_hosts_of_the_user_stay_listed() -> None:
    for users, expected in (
        ({}, "localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "intra, .corp"}, "intra,.corp,localhost,127.0.0.1,::1"),
        ({"no_proxy": "localhost,intra"}, "localhost,intra,127.0.0.1,::1"),
        ({"NO_PROXY": "*"}, "*"),
    ):
        variables = {"https_proxy": DEAD, **users}
        environment.bypass_proxies_on_loopback(variables)
        environment.bypass_proxies_on_loopback(variables)  # a second time changes nothing
        assert (variables["no_proxy"], variables["NO_PROXY"]) == (expected, expected)


@pytest.mark.parametrize("value", ["http://user:secret@host:port", "http://:3128", "http://[::1", "http://h:99999"])
def test_a_proxy_that_is_no_address_is_named_and_not_shown(value: str) -> None:
    with pytest.raises(
        UserError, match=r"^https_proxy: holds no address of a proxy, such as http://HOST:PORT; correct"
    ) as e:
        environment.bypass_proxies_on_loopback({"HTTP_PROXY": "proxy.corp:3128", "https_proxy": value})
    assert "secret" not in str(e.value)


def test_certificates_that_lead_nowhere_are_known(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clean.setenv("SSL_CERT_DIR", str(tmp_path))
    clean.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    assert environment.absent_certificates() == ["SSL_CERT_FILE"]


def test_without_a_proxy_nothing_is_set() -> None:
    variables = {"HOME": "/", "no_proxy": "intra", "HTTP_PROXY": ""}
    environment.bypass_proxies_on_loopback(variables)
    assert variables == {"HOME": "/", "no_proxy": "intra", "HTTP_PROXY": ""}


def test_a_child_gets_our_code_first_and_no_proxy_for_this_machine(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("HTTP_PROXY", DEAD)
    clean.setenv("PYTHONPATH", "elsewhere")
    clean.setenv("AWS_MAX_ATTEMPTS", "1")
    made = environment.for_child(MORE="1")
    assert made["PYTHONPATH"] == f"{environment.CODE}{os.pathsep}elsewhere"
    assert (made["MORE"], made["AWS_MAX_ATTEMPTS"], made["HTTP_PROXY"]) == ("1", "1", DEAD)
    assert "127.0.0.1" in made["NO_PROXY"]
    assert "NO_PROXY" not in os.environ


@pytest.fixture
def foreign_aws_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings for somewhere else, each of which fails a request that heeds it."""
    (tmp_path / "aws").write_text(
        "[default]\ns3 =\n    addressing_style = virtual\nendpoint_url = http://127.0.0.1:9\n"
    )
    settings = {
        "AWS_PROFILE": "nosuch", "AWS_CA_BUNDLE": "/nonexistent.pem", "AWS_ENDPOINT_URL": DEAD,
        "AWS_ENDPOINT_URL_S3": DEAD, "AWS_CONFIG_FILE": str(tmp_path / "aws"), "AWS_ACCESS_KEY_ID": "users",
        "AWS_SECRET_ACCESS_KEY": "users-secret", "AWS_SESSION_TOKEN": "users-token", "AWS_USE_FIPS_ENDPOINT": "true",
        "AWS_USE_DUALSTACK_ENDPOINT": "true", "AWS_MAX_ATTEMPTS": "none", "AWS_DEFAULT_REGION": "nowhere-1",
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("foreign_aws_settings", "dead_proxies")
def test_the_embedded_store_works_whatever_the_environment(tmp_path: Path) -> None:
    """Our own client, DVC's, and the server: it takes the AWS keys in its environment for its administrator's."""
    project = tmp_path / "project"
    (project / "new").mkdir(parents=True)
    git(project, "init", "--quiet")
    subprocess.run(["dvc", "init", "--quiet"], cwd=project, check=True, env=with_programs())
    (project / "new" / "file").write_bytes(b"bytes")
    with store.open_store(project, "embedded") as remote:
        dvc_config.write_local(project, {"core": {"remote": remote.name}})
        entry = pointers.keep(project, project / "new", remote)
        s3 = store.client(remote)
        listed = s3.list_objects_v2(Bucket=remote.bucket, Prefix=remote.prefix)["Contents"]
        assert {Path(one["Key"]).name for one in listed} == {
            md5[2:] for md5 in Cache(dvc_config.cache_dir(project)).md5s([entry])
        }
        server = embedded.running(project)
        assert server
        variables = psutil.Process(server.pid).environ()
        assert not [name for name in variables if name.startswith("AWS_") or name.lower().endswith("_proxy")]


def with_programs() -> dict[str, str]:
    return {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}


@pytest.mark.usefixtures("foreign_aws_settings")
def test_the_settings_of_the_user_come_back() -> None:
    before = dict(os.environ)
    with environment.without_user_aws_settings():
        assert os.environ["AWS_CONFIG_FILE"] == environment.NO_FILE
        assert "AWS_PROFILE" not in os.environ
    assert dict(os.environ) == before


def test_a_remote_store_uses_the_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "users")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "users-secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    remote = store.client(Remote("one", "s3://bucket", {"region": "us-east-1"}))
    assert remote.meta.endpoint_url == "http://127.0.0.1:9"


def test_warnings_that_a_user_makes_errors_stop_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    done = subprocess.run(
        [sys.executable, "-c", "import warnings; warnings.warn('old', DeprecationWarning)"],
        env=environment.for_child(), check=False,
    )  # fmt: skip
    assert done.returncode == 0


def test_our_processes_import_nothing_of_the_folder_that_they_work_in(
    clean: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It may be a clone of somebody else's repository, with modules named as ours, as a library's or as Python's."""
    clean.setenv("PYTHONPATH", f"{os.pathsep}{os.pathsep}/nowhere{os.pathsep}")
    assert environment.for_child()["PYTHONPATH"] == f"{environment.CODE}{os.pathsep}/nowhere"
    for name in ("tasks", "json", "dvc", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    with processes.start("tasks.track", folder=tmp_path, log=None) as process:
        process.wait()
    assert not (tmp_path / "ran").exists()


def test_pythons_are_started_in_one_way() -> None:
    """All but recorded code, installation and a program that takes what it is given."""
    files = [
        path for package in ("tasks", "flows", "chronomerge") for path in (environment.CODE / package).rglob("*.py")
    ]
    own = {path.relative_to(environment.CODE).as_posix() for path in files if "[sys.executable, " in path.read_text()}
    assert own == {"tasks/record/repro.py", "tasks/record/node_server.py", "tasks/model/torchvision_shim.py"}
