"""Transactions of our own Prefect server take turns: each gets SQLite's one lock in the order in which it asked.

Prefect has each of them ask SQLite again and again for up to a minute. Whoever asks at the wrong moments waits that
minute, with its request and its run, and is then refused ("database is locked"): seen with eight runs on two cores.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, nullcontext
from contextvars import ContextVar

from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.database.dependencies import set_database_config
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

_HAS_TURN: ContextVar[bool] = ContextVar("has_turn", default=False)


class InTurn(AioSqliteConfiguration):
    """SQLite, one transaction after another. One inside another, by the same task, has its turn already."""

    def __init__(self, connection_url: str):
        super().__init__(connection_url)
        self._turn = asyncio.Lock()  # first come, first served

    @asynccontextmanager
    async def begin_transaction(
        self, session: AsyncSession, with_for_update: bool = False
    ) -> AsyncGenerator[AsyncSessionTransaction, None]:
        inside = _HAS_TURN.get()
        async with nullcontext() if inside else self._turn:
            token = _HAS_TURN.set(True)
            try:
                # SQLite's lock from the start: who has read first is refused it where others wrote meanwhile, without
                # waiting. Requests such as that for a task run read first, and log records are written out of turn.
                async with super().begin_transaction(session, with_for_update or not inside) as transaction:
                    yield transaction
            finally:
                _HAS_TURN.reset(token)


def take() -> None:
    """Have the server of this process use `InTurn`; to be called before it serves."""
    set_database_config(InTurn(PREFECT_API_DATABASE_CONNECTION_URL.value()))
