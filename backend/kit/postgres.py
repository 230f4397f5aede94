"""The port to PostgreSQL: connections with deadlines, and pools that shed load. No business
words.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final, LiteralString

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from schemas.errors import Unavailable

Connection = AsyncConnection[TupleRow]
Pool = AsyncConnectionPool[Connection]

CONNECT_TIMEOUT_S: Final = 5
STATEMENT_TIMEOUT_MS: Final = 15_000
IDLE_IN_TRANSACTION_TIMEOUT_MS: Final = 30_000

DatabaseError = psycopg.Error
"""Any answer of the server that is an error."""
BadData = psycopg.DataError
"""A value that a column cannot hold."""
StillReferenced = psycopg.errors.ForeignKeyViolation
"""A row refers to one that is gone, or one that is to go is still referred to."""
TakesTooLong = psycopg.errors.QueryCanceled
"""A statement ran into its deadline. psycopg derives it from what is `ConnectionLost` here."""
RolledBack = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)
"""The server gave this transaction up for another's sake: nothing of it happened. psycopg derives
them from what is `ConnectionLost` here, so they are caught before it.
"""
ConnectionLost = psycopg.OperationalError
"""The server went away or refused: whether the last statement ran is not known."""


def conninfo(url: str, *, application: str) -> str:
    """`url` with our deadlines: connect 5 s, statements 15 s, dead peers noticed within about 15
    s.
    """
    options = (
        f"-c statement_timeout={STATEMENT_TIMEOUT_MS}"
        f" -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_TIMEOUT_MS}"
        " -c jit=off -c TimeZone=UTC"
    )
    given = conninfo_to_dict(url)
    return make_conninfo(
        url,
        application_name=application,
        connect_timeout=given.get("connect_timeout") or CONNECT_TIMEOUT_S,
        options=f"{given.get('options') or ''} {options}".strip(),
        keepalives=1,
        keepalives_idle=5,
        keepalives_interval=3,
        keepalives_count=3,
    )


async def connect(url: str, *, application: str, prepare_after: int | None = 0) -> Connection:
    """A connection in autocommit mode. Raises ConnectionLost when the server cannot be reached.

    Cancelled half-way it is still opened, and closed: a socket left in the middle of the handshake
    would hold a server process, and whoever waits for that, for a minute.
    """
    opening = asyncio.create_task(
        AsyncConnection.connect(
            conninfo(url, application=application),
            autocommit=True,
            prepare_threshold=prepare_after,
        )
    )
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        with contextlib.suppress(ConnectionLost):
            await (await opening).close()
        raise


def make_pool(url: str, *, application: str, size_max: int, waiting_max: int = 200) -> Pool:
    """A closed pool of autocommit connections; open it with `async with`.

    A checkout waits at most 5 s and at most `waiting_max` may wait (`psycopg_pool.PoolTimeout`,
    `TooManyRequests` otherwise).
    """
    return AsyncConnectionPool(
        conninfo(url, application=application),
        connection_class=AsyncConnection,
        kwargs={"autocommit": True, "prepare_threshold": 5},
        min_size=1,
        max_size=size_max,
        max_waiting=waiting_max,
        timeout=5.0,
        max_idle=120.0,
        # Each attempt waits twice as long as the one before: given up after so long, the next
        # checkout begins anew, and an outage is over two seconds after it is over.
        reconnect_timeout=4.0,
        open=False,
        check=AsyncConnectionPool.check_connection,
    )


async def fetch_all(
    connection: Connection, query: LiteralString, arguments: dict[str, Any] | None = None
) -> list[tuple[Any, ...]]:
    """All rows of one query, in PostgreSQL's binary format."""
    async with connection.cursor(binary=True) as cursor:
        await cursor.execute(query, arguments)
        return await cursor.fetchall()


async def fetch_one(
    connection: Connection, query: LiteralString, arguments: dict[str, Any] | None = None
) -> tuple[Any, ...] | None:
    """The first row of one query, or None."""
    async with connection.cursor(binary=True) as cursor:
        await cursor.execute(query, arguments)
        return await cursor.fetchone()


def unavailable() -> Unavailable:
    """What callers are told while Postgres does not answer."""
    return Unavailable(
        "The ledger's database does not answer; nothing was charged.", retry_after_s=2
    )
