"""Prefect's API over plain HTTP, for who must not wait the seconds that importing Prefect takes."""

from __future__ import annotations

import base64
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any


class UnansweredError(Exception):
    """The server gave no answer, or refused; says why."""


_BUSY = (429, 502, 503)
"""What a server answers that is to be asked again; SQLite's "database is locked" is such a case."""


@dataclass(frozen=True)
class Api:
    """The API of a Prefect server; signs in as Prefect's own client does (key, or user and password)."""

    url: str
    patience: float = 30
    """Seconds until an answer has to be there."""

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
        headers = {"Content-Type": "application/json", **_credentials()}
        request = urllib.request.Request(f"{self.url}/{path}", data, headers, method=method)
        deadline, pause = time.monotonic() + self.patience, 0.2
        while True:
            try:
                with urllib.request.urlopen(request, timeout=max(0.1, deadline - time.monotonic())) as answer:
                    text = answer.read()
                return json.loads(text) if text else None
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                if error.code not in _BUSY or time.monotonic() + pause > deadline:
                    raise UnansweredError(f"the Prefect server at {self.url} refuses {path}: {error}") from None
            except OSError as error:
                raise UnansweredError(f"the Prefect server at {self.url} does not answer: {error}") from None
            time.sleep(pause)
            pause *= 2


def _credentials() -> dict[str, str]:
    if key := os.environ.get("PREFECT_API_KEY"):
        return {"Authorization": f"Bearer {key}"}
    if user := os.environ.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}
    return {}
