"""Prefect's API over plain HTTP, for who must not wait the seconds that importing Prefect takes."""

from __future__ import annotations

import base64
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from typing import Any

from tasks.text import redacted


class UnansweredError(Exception):
    """The server gave no answer, or refused; says why."""

    def __init__(self, message: str):
        super().__init__(redacted(message))


class RefusedError(UnansweredError):
    """The server does not accept the sign-in."""


_BUSY = (429, 502, 503)
"""What a server answers that is to be asked again; SQLite's "database is locked" is such a case."""
PATIENCE = 180
"""Seconds: on a busy machine a server may take more than 30, and whoever gives up then ends its run."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Api:
    """The API of a Prefect server.

    Signs in with ``sign_in`` (user:password), else as Prefect's own client does: with the key, or user and password, of
    the environment. Answers a server's CSRF protection. Asks this machine directly, whatever proxies are set.
    """

    def __init__(self, url: str, patience: float = PATIENCE, sign_in: str | None = None):
        """``patience``: seconds until an answer has to be there."""
        self.url, self.patience, self._sign_in = url, patience, sign_in
        self._csrf: dict[str, str] = {}
        proxies: dict[str, str] | None = {} if urllib.parse.urlsplit(url).hostname in _LOOPBACK else None
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))

    def get(self, path: str) -> Any:
        """The answer; None where there is no such thing.

        Raises:
            UnansweredError: no answer, or a refusal.
        """
        return self._ask("GET", path, None)

    def post(self, path: str, body: Any) -> Any:
        """As `get`."""
        return self._ask("POST", path, body)

    def _ask(self, method: str, path: str, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        deadline, pause, renewed = time.monotonic() + self.patience, 0.2, False
        while True:
            headers = {"Content-Type": "application/json", **self._credentials(), **self._csrf}
            request = urllib.request.Request(f"{self.url}/{path}", data, headers, method=method)
            try:
                with self._opener.open(request, timeout=max(0.1, deadline - time.monotonic())) as answer:
                    text = answer.read()
                return json.loads(text) if text else None
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                if error.code == 403 and not renewed and b"CSRF" in error.read():
                    renewed, self._csrf = True, self._csrf_token()
                    continue
                if error.code in (401, 403):
                    raise RefusedError(
                        f"the Prefect server at {self.url} refuses the sign-in ({error}); set PREFECT_API_AUTH_STRING "
                        "(user:password) or PREFECT_API_KEY to what it expects"
                    ) from None
                if error.code not in _BUSY or time.monotonic() + pause > deadline:
                    raise UnansweredError(f"the Prefect server at {self.url} refuses {path}: {error}") from None
            except (OSError, ValueError) as error:
                raise UnansweredError(f"the Prefect server at {self.url} does not answer: {error}") from None
            time.sleep(pause)
            pause *= 2

    def _csrf_token(self) -> dict[str, str]:
        client = str(uuid.uuid4())
        return {"Prefect-Csrf-Client": client, "Prefect-Csrf-Token": self.get(f"csrf-token?client={client}")["token"]}

    def _credentials(self) -> dict[str, str]:
        if not self._sign_in and (key := os.environ.get("PREFECT_API_KEY")):
            return {"Authorization": f"Bearer {key}"}
        if user := self._sign_in or os.environ.get("PREFECT_API_AUTH_STRING"):
            return {"Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}
        return {}
