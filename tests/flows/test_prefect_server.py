"""The Prefect server that we start ourselves: who gets in, and whose settings it has."""

import asyncio
import contextlib
import json
import os
import sqlite3
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from flows.prefect import server as prefect_server
from flows.prefect.api import Api, RefusedError
from flows.prefect.server import Server
from tasks.errors import UserError

USERS = {
    "PREFECT_SERVER_API_BASE_PATH": "/prefect/api",
    "PREFECT_SERVER_API_AUTH_STRING": "admin:secret",
    "PREFECT_API_KEY": "pnu_0000",
    "PREFECT_LOGGING_LEVEL": "DEBUG",
    "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "*",
    "http_proxy": "http://127.0.0.1:9",
}


class Started(NamedTuple):
    project: Path
    server: Server
    sign_in: str


def settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("PREFECT_")}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """A server as `serve` starts it, in an environment full of a user's own settings."""
    project = tmp_path_factory.mktemp("served")
    before = dict(os.environ)
    os.environ.pop("PREFECT_API_URL", None)
    os.environ.update(USERS)
    users = settings()
    try:
        with prefect_server.lasting(project, print) as server:
            server.wait()
            yield Started(project, server, os.environ["PREFECT_API_AUTH_STRING"])
        assert settings() == users
    finally:
        os.environ.clear()
        os.environ.update(before)


def ask(started: Started, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer, as a stranger or a browser gets it."""
    data = None if body is None else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"{started.server.url}/{path}", data, named, method=method)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}
    except urllib.error.HTTPError as error:
        return error.code, {name.lower(): value for name, value in error.headers.items()}


def deployed(started: Started) -> str:
    """The id of a deployment on the server."""
    api = Api(started.server.url, sign_in=started.sign_in)
    flow = api.post("flows/", {"name": "chronomerge"})["id"]
    return str(api.post("deployments/", {"name": "nightly", "flow_id": flow})["id"])


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "deployments/{}", None),
        ("PATCH", "deployments/{}", {"pull_steps": [{"prefect.deployments.steps.run_shell_script": {"script": "id"}}]}),
        ("POST", "deployments/{}/create_flow_run", {"parameters": {"project": "/tmp"}}),
        ("POST", "flow_runs/filter", {}),
        ("DELETE", "deployments/{}", None),
        ("GET", "admin/settings", None),
    ],
)
def test_nobody_gets_in_without_the_sign_in(started: Started, method: str, path: str, body: Any) -> None:
    path = path.format(deployed(started))
    assert ask(started, method, path, body, Content_Type="application/json")[0] in (401, 403)
    stale = "Basic YWRtaW46c2VjcmV0"  # the user's own admin:secret
    assert ask(started, method, path, body, Content_Type="application/json", Authorization=stale)[0] in (401, 403)


def test_a_change_takes_a_csrf_token_too(started: Started) -> None:
    import base64

    signed = f"Basic {base64.b64encode(started.sign_in.encode()).decode()}"
    assert ask(started, "POST", "flows/filter", {}, Content_Type="application/json", Authorization=signed)[0] == 403
    assert Api(started.server.url, sign_in=started.sign_in).post("flows/filter", {}) is not None


def test_no_other_origin_and_no_other_host_is_answered(started: Started) -> None:
    _, headers = ask(started, "GET", "health", Origin="https://evil.example")
    assert "access-control-allow-origin" not in headers
    assert ask(started, "GET", "health")[0] == 200
    assert ask(started, "GET", "health", Host="evil.example")[0] == 400


def test_the_sign_in_is_for_its_owner_alone(started: Started) -> None:
    path = prefect_server.sign_in_file(started.project)
    assert path.read_text() == started.sign_in == prefect_server.sign_in(started.project)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert started.server.process
    assert not any(started.sign_in in part for part in psutil.Process(started.server.process.pid).cmdline())
    assert started.sign_in not in (started.server.log or path).read_text()


def test_a_wrong_sign_in_is_one_clear_error(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RefusedError, match="PREFECT_API_AUTH_STRING"):
        Api(started.server.url, sign_in="me:wrong").get("admin/version")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:wrong")
    with pytest.raises(UserError, match="refuses the sign-in"):
        Server(started.server.url).wait()


def test_prefects_own_client_gets_in_by_the_environment(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    monkeypatch.delenv("http_proxy")
    signed = {PREFECT_API_URL: started.server.url, PREFECT_API_AUTH_STRING: started.sign_in}
    with temporary_settings(signed), get_client(sync_client=True) as client:
        assert client.read_flows() is not None
        assert client.create_flow_from_name("by-client")


def test_a_users_server_keeps_the_users_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = {"PREFECT_API_URL": "http://127.0.0.1:1/api", "PREFECT_API_AUTH_STRING": "me:mine", **USERS}
    for name, value in users.items():
        monkeypatch.setenv(name, value)
    with prefect_server.serving(tmp_path) as server:
        assert (server.url, server.process, server.private) == (users["PREFECT_API_URL"], None, False)
        assert {name: os.environ[name] for name in users} == users


def test_transactions_take_turns_in_the_order_in_which_they_asked(tmp_path: Path) -> None:
    from sqlalchemy import text

    from flows.prefect.turns import InTurn

    database, order, inside = InTurn(f"sqlite+aiosqlite:///{tmp_path / 'turns.db'}"), [], 0

    async def transaction(number: int) -> None:
        nonlocal inside
        engine = await database.engine()
        async with await database.session(engine) as session, database.begin_transaction(session):
            inside += 1
            assert inside == 1
            await session.execute(text("INSERT INTO done VALUES (:number)"), {"number": number})
            async with await database.session(engine) as other, database.begin_transaction(other):  # has its turn
                order.append((await other.execute(text("SELECT count(*) FROM done"))).scalar_one())
            inside -= 1

    async def all_of_them() -> list[int]:
        engine = await database.engine()
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE done (number INTEGER)"))
        await asyncio.gather(*(transaction(number) for number in range(20)))
        async with engine.connect() as connection:
            rows = (await connection.execute(text("SELECT number FROM done ORDER BY rowid"))).scalars().all()
        await engine.dispose()
        return list(rows)

    assert asyncio.run(all_of_them()) == order == list(range(20))


def test_a_transaction_that_has_read_may_write_whatever_others_write(tmp_path: Path) -> None:
    """SQLite refuses it at once ("database is locked") where somebody else wrote between the two."""
    from sqlalchemy import text

    from flows.prefect.turns import InTurn

    path = tmp_path / "turns.db"
    database = InTurn(f"sqlite+aiosqlite:///{path}")

    async def read_and_write() -> None:
        engine = await database.engine()
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE done (number INTEGER)"))
        async with await database.session(engine) as session, database.begin_transaction(session):
            await session.execute(text("SELECT count(*) FROM done"))
            with closing(sqlite3.connect(path, timeout=0)) as other, contextlib.suppress(sqlite3.OperationalError):
                other.execute("INSERT INTO done VALUES (1)")
                other.commit()
            await session.execute(text("INSERT INTO done VALUES (2)"))
        await engine.dispose()

    asyncio.run(read_and_write())
    with closing(sqlite3.connect(path)) as after:
        assert after.execute("SELECT number FROM done").fetchall() == [(2,)]
