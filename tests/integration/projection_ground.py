"""What the projection tests share: a pool, feeding batches, and dumping what the tables say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from psycopg import sql

from backend.journal.consumer import Arrived, Consumer, consume, place_in_table
from backend.journal.reader import read_all
from backend.kit.clock import SystemClock
from backend.kit.postgres import Connection, Pool, fetch_all, make_pool
from projections.declared import PROJECTIONS, live_consumers
from projections.rebuild import Progress, places_in_table, rebuild
from projections.tables import ensure_tables
from schemas.event import START, Recorded

CLOCK: Final = SystemClock()
Rows = list[tuple[Any, ...]]


def open_pool(url: str) -> Pool:
    return make_pool(url, application="projection tests", size_max=6)


def ignored(progress: Progress) -> None:
    """For rebuilds that nobody watches."""


async def feed(pool: Pool, rows: Sequence[Recorded], batch_rows: int = 100) -> None:
    """Gives rows to every projection, a batch at a time."""
    for first in range(0, len(rows), batch_rows):
        for consumer in live_consumers():
            await consume(pool, consumer, rows[first : first + batch_rows], place_in_table)


async def tail_to_the_end(pool: Pool, *consumers: Consumer) -> None:
    """Gives consumers the whole log from the beginning; what they have is dropped."""
    async with pool.connection() as connection:
        async for page in read_all(connection, START):
            for consumer in consumers or live_consumers():
                await consume(pool, consumer, page, place_in_table)


async def rebuild_all(pool: Pool) -> None:
    for projection in PROJECTIONS:
        await rebuild(pool, projection, places_in_table(), CLOCK, ignored)


async def dump(pool: Pool, schema: str = "read") -> dict[str, Rows]:
    """Every row of every projection's tables, in one order."""
    found: dict[str, Rows] = {}
    async with pool.connection() as connection:
        for projection in PROJECTIONS:
            for table in projection.tables:
                query = sql.SQL("SELECT * FROM {}").format(sql.Identifier(schema, table))
                rows = await (await connection.execute(query)).fetchall()
                found[table] = sorted(rows, key=repr)
    return found


async def drop_tables(pool: Pool) -> None:
    async with pool.connection() as connection:
        for projection in PROJECTIONS:
            for table in projection.tables:
                name = sql.Identifier("read", table)
                await connection.execute(sql.SQL("DROP TABLE {}").format(name))


async def forget_everything(pool: Pool) -> None:
    """Drops every table: all projections start over from an empty place."""
    await drop_tables(pool)
    assert len(await ensure_tables(pool)) == len(PROJECTIONS)


async def query(pool: Pool, text: Any, **arguments: Any) -> Rows:
    async with pool.connection() as connection:
        return await fetch_all(connection, text, arguments)


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 30.0) -> None:
    """Awaits a condition of the database or of another task."""
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110 - what is awaited has no event
            await asyncio.sleep(0.02)


class Wrapped:
    """A real consumer whose `handle` meets what a test wants, before or after its effect."""

    def __init__(self, inner: Consumer, meet: Callable[[Sequence[Arrived], bool], None]) -> None:
        self._inner: Final = inner
        self._meet: Final = meet
        self.name: Final = inner.name
        self.topics: Final = inner.topics

    async def handle(self, connection: Connection, batch: Sequence[Arrived]) -> None:
        self._meet(batch, False)
        await self._inner.handle(connection, batch)
        self._meet(batch, True)
