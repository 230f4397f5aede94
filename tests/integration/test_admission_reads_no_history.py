"""Letting a request in reads the account's state and nothing of how it came about."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from uuid import UUID

import psycopg

from backend.journal.reader import read_stream
from backend.journal.wake import LogWatch
from backend.journal.writer import Writer
from backend.kit.postgres import connect
from tests.conftest import Database
from tests.given import (
    CLOCK,
    FOLDS,
    POINT,
    RANDOMNESS,
    granting,
    hold_asked,
    holding,
    new_request,
    opening,
    settle_asked,
    settling,
)
from tests.integration.log_writing import until

PAST_CALLS = 150
SCANS = """
SELECT sum(seq_scan + coalesce(idx_scan, 0))::bigint FROM pg_stat_user_tables
WHERE relname LIKE 'event_log%'
"""
CONNECTED = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'suanpan%'"


@asynccontextmanager
async def writer_on(database: Database) -> AsyncGenerator[Writer]:
    """Knows nothing yet. Its watch is asleep: it would look at the log."""
    writer = Writer(database.app_url, FOLDS, CLOCK, RANDOMNESS, LogWatch(database.app_url))
    writer.start()
    try:
        yield writer
    finally:
        await writer.stop()


async def scans(database: Database) -> int:
    """How often the log was read so far; sessions say what they did when they end."""
    with psycopg.connect(database.superuser_url, autocommit=True) as connection:

        async def alone() -> bool:
            return connection.execute(CONNECTED).fetchone() == (0,)

        await until(alone, what="the writer's connections end")
        row = connection.execute(SCANS).fetchone()
    assert row is not None
    return row[0]


async def call(writer: Writer) -> None:
    request = new_request()
    await writer.submit(holding(1, hold_asked(request), UUID(request)))
    await writer.submit(settling(1, settle_asked(request)))


async def test_a_hold_and_its_settlement_read_no_event(database: Database) -> None:
    async with writer_on(database) as writer:
        await writer.submit(opening(1))
        await writer.submit(granting(1, 1_000 * POINT))
        for _ in range(PAST_CALLS):
            await call(writer)
    before = await scans(database)

    async with writer_on(database) as writer:
        await call(writer)
    assert await scans(database) == before

    # The counter counts: whoever does read the history is seen.
    async with await connect(database.app_url, application="suanpan test") as connection:
        rows = await read_stream(connection, "account:1", 1)
    assert len(rows) == 2 + 2 * (PAST_CALLS + 1)
    assert await scans(database) > before
