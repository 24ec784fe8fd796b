"""Small JSON notes in an S3 store, beside the data, written on conditions: of several writers, one is the first.

They lie under ``.chronomerge/`` of a remote. S3's conditional writes (``If-None-Match``, ``If-Match``) are what makes
them safe between machines, so a store is tried for them first.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from tasks.errors import UserError
from tasks.storage import store
from tasks.storage.dvc import RemoteError
from tasks.storage.dvc_config import Remote

_REFUSED = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
_UNKNOWN = {"NotImplemented", "501"}


@dataclass(frozen=True)
class StoredNote:
    """A note in the store, its ETag, and its age in seconds by the store's own clock."""

    note: dict[str, Any]
    tag: str
    age: float


class NoteStore:
    """The notes of a remote on S3; every method raises `RemoteError` where the store cannot be reached."""

    def __init__(self, remote: Remote):
        self._remote, self._s3, self.where = remote, store.client(remote), store.described(remote)

    def address(self, name: str) -> str:
        """Where a note lies, for people."""
        return f"s3://{self._remote.bucket}/{self._key(name)}"

    def put(self, name: str, note: dict[str, Any], instead_of: str | None = None) -> str | None:
        """Write a note where there is none, or in the place of one known by its ETag; returns the new one's ETag, or
        None where the condition does not hold."""
        condition: Any = {"IfMatch": instead_of} if instead_of else {"IfNoneMatch": "*"}
        with self._requests():
            try:
                body = json.dumps(note).encode()
                made = self._s3.put_object(Bucket=self._remote.bucket, Key=self._key(name), Body=body, **condition)
            except self._s3.exceptions.ClientError as error:
                if _code(error) in _REFUSED or (instead_of and _code(error) in store.ABSENT):
                    return None
                raise
        return made["ETag"]

    def get(self, name: str) -> StoredNote | None:
        with self._requests():
            try:
                answer = self._s3.get_object(Bucket=self._remote.bucket, Key=self._key(name))
            except self._s3.exceptions.ClientError as error:
                if _code(error) in store.ABSENT:
                    return None
                raise
            note = json.loads(answer["Body"].read())
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return StoredNote(note, answer["ETag"], (now - answer["LastModified"]).total_seconds())

    def names(self) -> list[str]:
        folder = self._key("") + "/"
        with self._requests():
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._remote.bucket, Prefix=folder)
            return [row["Key"].removeprefix(folder) for page in pages for row in page.get("Contents", ())]

    def delete(self, name: str) -> None:
        with self._requests():
            self._s3.delete_object(Bucket=self._remote.bucket, Key=self._key(name))

    def require_conditional_writes(self) -> None:
        """Try whether the store honours the conditions: one that ignores them would let two machines be first.

        Raises:
            UserError: it does not.
        """
        probe = f"probe-{secrets.token_hex(8)}"
        try:
            self.put(probe, {"probe": 1})
            honoured = not self.put(probe, {"probe": 2}) and not self.put(probe, {"probe": 3}, f'"{"0" * 32}"')
        except _NotImplementedError:
            honoured = False
        finally:
            self.delete(probe)
        if not honoured:
            raise UserError(
                f"{self.where} ignores S3's conditional writes (If-None-Match), so two machines could record the same "
                "state in it; name a git remote in store.git (a bare repository in a folder will do), which then "
                "decides who is first, or use another store"
            )

    def _key(self, name: str) -> str:
        return self._remote.key(".chronomerge", name)

    @contextlib.contextmanager
    def _requests(self) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            if _code(error) in _UNKNOWN:
                raise _NotImplementedError from None
            raise RemoteError(f"{self.where} {store.reason(error)}") from None
        except (BotoCoreError, ValueError) as error:
            raise RemoteError(f"{self.where} cannot be reached: {store.reason(error)}") from None


class _NotImplementedError(Exception):
    """The store knows no conditional writes."""


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", "?"))
