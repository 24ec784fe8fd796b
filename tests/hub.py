"""A model hub on loopback: the endpoints that huggingface_hub uses, over repositories made on the spot.

    with hub.serving() as server, server.used(tmp_path):
        commit = server.commit("org/name", {"config.json": "{}", "model.safetensors": content})

It speaks real HTTP: information by revision, trees, files with ETag and X-Repo-Commit, large files by a redirect to
another host, ranges, tokens, and what publishing needs (creating a repository, preupload, LFS and commits).
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

TOKEN = "hf_" + "Secret" * 6
"""A token that may read everything and write."""
OTHER_TOKEN = "hf_" + "Others" * 6
"""A valid token of somebody who has no access to gated or private repositories, and may not write."""
LARGE = (".safetensors", ".bin", ".pt", ".parquet", ".tar")
"""How the names of files end that lie in LFS."""


@dataclass
class Repository:
    """Commits, newest last, and the names of some."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Commit → path → content."""
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit_of(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)


@dataclass(frozen=True)
class Request:
    """One request that the server has had."""

    method: str
    path: str
    host: str
    token: str | None
    range: str | None = None


@dataclass
class Hub:
    """The state of a server, which tests read and change."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    """``models/org/name`` or ``datasets/org/name`` → repository."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """SHA-256 → content of large files."""
    requests: list[Request] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    """SHA-256 of a large file → bytes after which its next download breaks off."""
    stall: dict[str, int] = field(default_factory=dict)
    """SHA-256 of a large file → bytes after which its download stands still for as long as the file is here."""
    deaf: bool = False
    """Whether it sends all of a file where a part is asked for."""
    compressing: bool = False
    """Whether it compresses the part of a file that is asked for, whatever encodings the client takes."""
    taken: str | None = None
    """The encodings that the client took in its last question for a part of a file."""
    lose: int | None = None
    """Bytes after which uploads of large files break off; None for never."""
    etag: str | None = None
    """What it says of every small file, in place of the file's hash."""
    more: bytes = b""
    """What it sends after the content of every small file, which it does not list."""
    down: bool = False
    """Whether every request is answered with status 503."""

    def commit(
        self,
        repository: str,
        files: Mapping[str, bytes | str | Path] | Path,
        *,
        kind: str = "models",
        ref: str = "main",
    ) -> str:
        """Add or replace files (of a mapping, or of a folder); returns the new commit."""
        if isinstance(files, Path):
            root = files
            files = {p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*")) if p.is_file()}
        return self.apply(f"{kind}/{repository}", {name: _bytes(content) for name, content in files.items()}, ref)

    def apply(self, key: str, changes: Mapping[str, bytes | None], ref: str = "main") -> str:
        """A commit of changes: path → content, None to delete it."""
        one = self.repositories.setdefault(key, Repository())
        parent = one.refs.get(ref)
        files = dict(one.commits[parent]) if parent else {}
        for path, content in changes.items():
            files.pop(path, None)
            if content is not None:
                files[path] = content
                if path.endswith(LARGE):
                    self.objects[hashlib.sha256(content).hexdigest()] = content
        told = json.dumps([key, parent, sorted((p, hashlib.sha256(c).hexdigest()) for p, c in files.items())])
        commit = hashlib.sha1(told.encode()).hexdigest()
        one.commits[commit] = files
        one.refs[ref] = commit
        return commit

    def files(self, repository: str, revision: str = "main", *, kind: str = "models") -> dict[str, bytes]:
        """Path → content of a repository."""
        one = self.repositories[f"{kind}/{repository}"]
        commit = one.commit_of(revision)
        assert commit is not None
        return one.commits[commit]

    def environment(self, home: Path, token: str | None = None, *, offline: bool = False) -> dict[str, str]:
        """What makes a program use this hub, with a cache and a login of its own in a folder."""
        return {
            "HF_ENDPOINT": self.address, "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"), "HF_TOKEN": token or "", "HF_HUB_OFFLINE": "1" if offline else "",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }  # fmt: skip

    @contextmanager
    def used(self, home: Path, token: str | None = None, *, offline: bool = False) -> Iterator[None]:
        """This process and those that it starts use the hub."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment(home, token, offline=offline).items():
                patch.setenv(name, value)
            reread()
            yield
        reread()


def reread() -> None:
    """Have huggingface_hub read its settings anew: it does so when it is imported."""
    if (constants := sys.modules.get("huggingface_hub.constants")) is not None:
        importlib.reload(constants)


def _bytes(content: bytes | str | Path) -> bytes:
    if isinstance(content, Path):
        return content.read_bytes()
    return content.encode() if isinstance(content, str) else content


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers until the context ends."""
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, hub)) as server:
        server.daemon_threads = True
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _RefusedError(Exception):
    def __init__(self, status: int, code: str, message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


_REPOSITORY = r"(?P<repository>[^/]+/[^/]+?)"
_ROUTES = [
    (method, re.compile(pattern + "$"), name)
    for method, pattern, name in (
        ("GET", rf"/api/(?P<kind>models|datasets)/{_REPOSITORY}(?:/revision/(?P<revision>[^/]+))?", "info"),
        ("GET", rf"/api/(?P<kind>models|datasets)/{_REPOSITORY}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", "tree"),
        ("POST", rf"/api/(?P<kind>models|datasets)/{_REPOSITORY}/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("GET", rf"(?:/(?P<kind>datasets))?/{_REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
        ("GET", r"/objects/(?P<oid>[0-9a-f]{64})", "object"),
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", rf"/api/(?P<kind>models|datasets)/{_REPOSITORY}/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", rf"/api/(?P<kind>models|datasets)/{_REPOSITORY}/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", rf"(?:/(?P<kind>datasets))?/{_REPOSITORY}\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/objects/(?P<oid>[0-9a-f]{64})", "upload"),
    )
]


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *args: Any) -> None:
        self._hub = hub
        super().__init__(*args)

    def log_message(self, *_: object) -> None:
        """Nothing: tests read `Hub.requests`."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0) if self.command != "GET" else 0
        if self.command == "PUT" and self._hub.lose is not None and length > self._hub.lose:
            self._hub.requests.append(Request("PUT", parts.path, self.headers["Host"], None))
            self.rfile.read(self._hub.lose)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        body = self.rfile.read(length)
        self._token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self._hub.requests.append(
            Request(self.command, parts.path, self.headers["Host"], self._token, self.headers.get("Range"))
        )
        method = "GET" if self.command == "HEAD" else self.command
        try:
            if self._hub.down:
                raise _RefusedError(503, "", "down for a while")
            for wanted, pattern, name in _ROUTES:
                if wanted == method and (match := pattern.match(parts.path)):
                    given = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                    getattr(self, f"_{name}")(body, parse_qs(parts.query), **given)
                    return
            raise _RefusedError(404, "RepoNotFound", f"no such endpoint: {self.command} {parts.path}")
        except _RefusedError as refused:
            headers = {"X-Error-Message": refused.message or refused.code}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            self._send(refused.status, json.dumps({"error": refused.message or refused.code}).encode(), headers)

    def _send(
        self,
        status: int,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        cut: int | None = None,
        stalled: str | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body if cut is None else body[:cut])
        while stalled and stalled in self._hub.stall:
            self.wfile.flush()
            time.sleep(0.02)
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True

    def _json(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _found(self, kind: str, repository: str, *, content: bool = False) -> Repository:
        if self._token not in (None, TOKEN, OTHER_TOKEN):
            raise _RefusedError(401, "", "Invalid credentials in Authorization header")
        one = self._hub.repositories.get(f"{kind}/{repository}")
        if one is None or (one.private and self._token != TOKEN):
            raise _RefusedError(404 if self._token else 401, "RepoNotFound", "Repository not found")
        if content and one.gated and self._token != TOKEN:
            raise _RefusedError(
                403 if self._token else 401, "GatedRepo", f"Access to model {repository} is restricted."
            )
        return one

    def _files(
        self, kind: str, repository: str, revision: str, *, content: bool = False
    ) -> tuple[str, dict[str, bytes]]:
        one = self._found(kind, repository, content=content)
        commit = one.commit_of(revision)
        if commit is None:
            raise _RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, one.commits[commit]

    def _writable(self) -> None:
        if self._token != TOKEN:
            raise _RefusedError(403 if self._token else 401, "", "You need a token with write access")

    def _info(self, _body: bytes, _query: Any, kind: str, repository: str, revision: str = "main") -> None:
        commit, files = self._files(kind, repository, revision)
        one = self._hub.repositories[f"{kind}/{repository}"]
        self._json({
            "id": repository, "modelId": repository, "sha": commit, "private": one.private, "tags": [],
            "gated": "manual" if one.gated else False, "siblings": [{"rfilename": name} for name in files],
        })  # fmt: skip

    def _tree(self, _body: bytes, query: Any, kind: str, repository: str, revision: str, path: str = "") -> None:
        _, files = self._files(kind, repository, revision)
        rows = []
        for name, content in sorted(files.items()):
            if path and not name.startswith(f"{path}/"):
                continue
            if "/" in name.removeprefix(f"{path}/") and not query.get("recursive"):
                continue
            rows.append(_row(name, content))
        self._json(rows)

    def _paths_info(self, body: bytes, _query: Any, kind: str, repository: str, revision: str) -> None:
        _, files = self._files(kind, repository, revision)
        self._json([_row(name, files[name]) for name in parse_qs(body.decode())["paths"] if name in files])

    def _resolve(
        self, _body: bytes, _query: Any, repository: str, revision: str, path: str, kind: str = "models"
    ) -> None:
        commit, files = self._files(kind, repository, revision, content=True)
        headers = {"X-Repo-Commit": commit}
        if path not in files:
            self._send(404, b"", {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            return
        content = files[path]
        if path.endswith(LARGE):
            oid = hashlib.sha256(content).hexdigest()
            large = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content)), "ETag": f'"{oid[:32]}"'}
            self._send(302, b"", {**headers, **large, "Location": self._elsewhere(oid)})
            return
        etag = self._hub.etag or _git_hash(content)
        self._send(200, content + self._hub.more, {**headers, "ETag": f'"{etag}"'})

    def _elsewhere(self, oid: str) -> str:
        """Large files are on another host, which must never see a token."""
        return f"http://localhost:{self._hub.address.rpartition(':')[2]}/objects/{oid}"

    def _object(self, _body: bytes, _query: Any, oid: str) -> None:
        content = self._hub.objects[oid]
        headers = {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"}
        given = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        cut = self._hub.cut.pop(oid, self._hub.stall.get(oid)) if self.command == "GET" else None
        if given is None or self._hub.deaf:
            self._send(200, content, headers, cut=cut, stalled=oid)
            return
        start, stop = int(given[1]), int(given[2]) + 1 if given[2] else len(content)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self._hub.taken = self.headers.get("Accept-Encoding")
        if self._hub.compressing:
            self._send(206, gzip.compress(content[start:stop]), {**headers, "Content-Encoding": "gzip"})
            return
        self._send(206, content[start:stop], headers, cut=cut)

    def _whoami(self, _body: bytes, _query: Any) -> None:
        if self._token not in (TOKEN, OTHER_TOKEN):
            raise _RefusedError(401, "", "Invalid credentials in Authorization header")
        self._json({"type": "user", "name": "tester", "orgs": [{"name": "org"}], "auth": {"type": "access_token"}})

    def _validate_yaml(self, _body: bytes, _query: Any) -> None:
        self._json({"errors": [], "warnings": []})

    def _create(self, body: bytes, _query: Any) -> None:
        self._writable()
        given = json.loads(body)
        name = f"{given.get('organization') or 'tester'}/{given['name']}"
        key = f"{given.get('type') or 'model'}s/{name}"
        url = f"{self._hub.address}/{'datasets/' if key.startswith('datasets') else ''}{name}"
        if key in self._hub.repositories:
            self._json({"error": "You already created this repo", "url": url}, 409)
            return
        self._hub.repositories[key] = Repository(
            private=given.get("visibility") == "private" or bool(given.get("private"))
        )
        self._hub.apply(key, {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        self._json({"url": url, "name": name, "id": name})

    def _preupload(self, body: bytes, _query: Any, kind: str, repository: str, revision: str) -> None:
        self._writable()
        _, files = self._files(kind, repository, revision)
        rows = []
        for one in json.loads(body)["files"]:
            path = one["path"]
            large = path.endswith(LARGE)
            row = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if path in files:
                row["oid"] = hashlib.sha256(files[path]).hexdigest() if large else _git_hash(files[path])
            rows.append(row)
        self._json({"files": rows})

    def _batch(self, body: bytes, _query: Any, repository: str, kind: str = "models") -> None:
        self._writable()
        self._found(kind, repository)
        rows: list[dict[str, Any]] = []
        for one in json.loads(body)["objects"]:
            row = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self._hub.objects:
                row["actions"] = {"upload": {"href": self._elsewhere(one["oid"]), "header": {}}}
            rows.append(row)
        self._json({"transfer": "basic", "objects": rows})

    def _upload(self, body: bytes, _query: Any, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _RefusedError(400, "", "the content is not what its name says")
        self._hub.objects[oid] = body
        self._send(200, b"")

    def _commit(self, body: bytes, _query: Any, kind: str, repository: str, revision: str) -> None:
        self._writable()
        one = self._found(kind, repository)
        files = self._files(kind, repository, revision)[1]
        changes: dict[str, bytes | None] = {}
        for line in body.splitlines():
            operation, value = (row := json.loads(line))["key"], row["value"]
            if operation == "header" and value.get("parentCommit", one.refs["main"]) != one.refs["main"]:
                raise _RefusedError(412, "", "A commit has happened since. Please refresh and try again.")
            if operation == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif operation == "lfsFile":
                changes[value["path"]] = self._hub.objects[value["oid"]]
            elif operation == "deletedFile":
                changes[value["path"]] = None
            elif operation == "deletedFolder":
                changes |= {name: None for name in files if name.startswith(value["path"].rstrip("/") + "/")}
        commit = self._hub.apply(f"{kind}/{repository}", changes, revision)
        url = f"{self._hub.address}/{repository}/commit/{commit}"
        self._json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})


def _row(name: str, content: bytes) -> dict[str, Any]:
    """What a tree says of a file."""
    row: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": _git_hash(content)}
    if name.endswith(LARGE):
        oid = hashlib.sha256(content).hexdigest()
        row["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
    return row


def _git_hash(content: bytes) -> str:
    """The id that git gives a file."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
