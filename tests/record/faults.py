"""A small HTTP proxy in front of a real S3 server, that breaks what it is told to break; signatures stay valid.

It hands on the ``Host`` header as it came, which is what a client has signed.
"""

from __future__ import annotations

import http.client
import io
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from boto3.s3.transfer import TransferConfig

from tasks.storage import store
from tasks.storage.dvc_config import Remote

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

ERRORS = {
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "503": (503, "SlowDown", "Please reduce your request rate."),
}
BEFORE = ("drop", *ERRORS, "slow", "hang")
"""What happens before the server hears of a request: the connection ends, an error, a wait, a longer wait."""
AFTER = ("lost", "truncate", "short", "flip", "rot", "deaf")
"""What becomes of the answer: it is lost, breaks off, is shorter but looks whole, has a wrong byte; or the server
answers well but keeps other bytes than it was sent, or has not heard of conditions."""


@dataclass
class Fault:
    """Something that goes wrong with the first ``times`` requests of a method whose path matches a pattern."""

    kind: str
    method: str = "GET|PUT|POST|HEAD|DELETE"
    path: str = ""
    times: int = 1_000_000
    seconds: float = 0.3

    def fits(self, method: str, path: str) -> bool:
        return self.times > 0 and bool(re.fullmatch(self.method, method) and re.search(self.path, path))


@dataclass
class FaultPlan:
    """Faults in order of precedence, then random ones: of each 1, ``rate`` requests, of the given kinds."""

    faults: list[Fault] = field(default_factory=list)
    rate: float = 0.0
    kinds: tuple[str, ...] = ()
    seed: int = 0
    happened: list[str] = field(default_factory=list)
    """What went wrong so far: kind, method and path."""
    asked: list[str] = field(default_factory=list)
    """All requests so far: method and path."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()

    def next(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.asked.append(f"{method} {path}")
            for fault in self.faults:
                if fault.fits(method, path):
                    fault.times -= 1
                    break
            else:
                fault = Fault(self._random.choice(self.kinds)) if self._random.random() < self.rate else None
            if fault:
                self.happened.append(f"{fault.kind} {method} {path}")
            return fault


@contextmanager
def proxied(remote: Remote, plan: FaultPlan, prefix: str = "", host: str = "127.0.0.1") -> Iterator[Remote]:
    """A remote whose requests go through the plan; ``prefix`` names a part of the bucket of its own, ``host`` where
    it can be reached."""
    server = ThreadingHTTPServer((host, 0), _handler(remote, plan))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    endpoint = f"http://{host}:{server.server_port}"
    try:
        url = f"{remote.url}-{prefix}" if prefix else remote.url
        yield replace(remote, name="proxied", url=url, options={**remote.options, "endpointurl": endpoint})
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(remote: Remote, plan: FaultPlan) -> type[BaseHTTPRequestHandler]:
    upstream = urlsplit(remote.options["endpointurl"]).netloc
    direct = store.client(remote)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:  # the client has gone
                self.close_connection = True

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = plan.next(self.command, self.path)
            kind = fault.kind if fault else ""
            if fault and kind in ("slow", "hang"):
                time.sleep(fault.seconds)
            if kind in ("drop", "hang"):
                return self._end()
            if kind in ERRORS:
                return self._refuse(*ERRORS[kind])
            status, headers, answer = self._ask(body)
            if kind == "deaf" and status == 412:
                bucket, key = urlsplit(self.path).path.lstrip("/").split("/", 1)
                made = direct.put_object(Bucket=bucket, Key=key, Body=body)
                status, headers, answer = 200, {"ETag": made["ETag"], "Content-Length": "0"}, b""
            if kind == "rot" and status == 200:
                _rot(direct, *urlsplit(self.path).path.lstrip("/").split("/", 1))
            if kind == "lost":
                return self._end()
            if kind == "flip" and status in (200, 206):
                answer = _flipped(answer)
            if kind == "short" and status in (200, 206):
                answer = answer[: len(answer) // 2]
                headers["Content-Length"] = str(len(answer))
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if kind == "truncate" and len(answer) > 1:
                self.wfile.write(answer[: len(answer) // 2])
                return self._end()
            self.wfile.write(answer)
            return None

        do_PUT = do_POST = do_HEAD = do_DELETE = do_GET  # noqa: N815

        def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection(upstream, timeout=60)
            try:
                headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
                connection.request(self.command, self.path, body=body or None, headers=headers)
                answer = connection.getresponse()
                content = answer.read()
                skipped = {"transfer-encoding", "connection"}
                kept = {name: value for name, value in answer.getheaders() if name.lower() not in skipped}
                if self.command != "HEAD" and answer.status != 204:
                    kept["Content-Length"] = str(len(content))
                return answer.status, kept, content
            finally:
                connection.close()

        def _refuse(self, status: int, code: str, message: str) -> None:
            content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
            self.send_response_only(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", "0" if self.command == "HEAD" else str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _end(self) -> None:
            """Reset the connection, as a broken network does."""
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    return Handler


def _rot(direct: S3Client, bucket: str, key: str) -> None:
    """Put other bytes in an object's place, in as many parts."""
    held = direct.get_object(Bucket=bucket, Key=key)
    parts = TransferConfig(multipart_threshold=100 << 20, multipart_chunksize=50 << 20)
    direct.upload_fileobj(io.BytesIO(_flipped(held["Body"].read())), bucket, key, Config=parts)


def _flipped(content: bytes) -> bytes:
    """The content with one bit of its middle byte flipped."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :] if content else content
