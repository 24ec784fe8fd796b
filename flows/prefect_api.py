"""Prefect's API over plain HTTP, for who must not wait the seconds that importing Prefect takes."""

from __future__ import annotations

import base64
import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any


class UnansweredError(Exception):
    """The server gave no answer, or refused; says why."""


@dataclass(frozen=True)
class Api:
    """The API of a Prefect server; signs in as Prefect's own client does (key, or user and password)."""

    url: str
    timeout: float = 10

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
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise UnansweredError(f"the Prefect server at {self.url} refuses {path}: {error}") from None
        except OSError as error:
            raise UnansweredError(f"the Prefect server at {self.url} does not answer: {error}") from None
        return json.loads(text) if text else None


def _credentials() -> dict[str, str]:
    if key := os.environ.get("PREFECT_API_KEY"):
        return {"Authorization": f"Bearer {key}"}
    if user := os.environ.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}
    return {}
