"""Where an entry lies in Kafka: exact or not said, whatever was sent twice."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import psycopg
from msgspec import UNSET

from backend.journal.kafka_place import LogPlace, LogPlaces, find_place
from backend.journal.publisher import Publisher
from backend.journal.publisher_place import find_lag
from backend.kit.kafka import read_topics, recorded_of
from backend.kit.postgres import connect, make_pool
from schemas.event import LEDGER, shard_of
from scripts.kafka import Broker
from tests.conftest import Database
from tests.integration.log_writing import CLOCK, RANDOMNESS, Log, open_log, until

pytest_plugins = ("tests.integration.kafka_broker",)

Lies = dict[tuple[str, int], set[int]]


async def published(log: Log, broker: Broker) -> None:
    """Everything that is written is in Kafka; then the publisher ends."""
    publisher = Publisher(log.url, broker.bootstrap, log.watch, CLOCK, RANDOMNESS)
    publisher.start()
    try:
        await until(lambda: _drained(log.url), timeout_s=60, what="the publisher caught up")
    finally:
        await publisher.stop()


async def _drained(url: str) -> bool:
    async with await connect(url, application="test") as connection:
        return (await find_lag(connection)).rows == 0


async def lies(broker: Broker) -> Lies:
    """Every offset at which Kafka really has an event."""
    found: Lies = {}
    async with aclosing(read_topics(broker.bootstrap, (LEDGER,))) as batches:
        async for batch in batches:
            for record in batch:
                row = recorded_of(record)
                found.setdefault((row.stream, row.version), set()).add(record.offset)
    return found


async def places(log: Log) -> dict[tuple[str, int], LogPlace]:
    async with await connect(log.url, application="test") as connection:
        return {
            (row.stream, row.version): await find_place(connection, row.stream, row.version)
            for row in await log.rows()
        }


def said(found: dict[tuple[str, int], LogPlace], real: Lies) -> int:
    """How many offsets are said; each of them is right."""
    count = 0
    for key, place in found.items():
        assert not place.pending
        assert place.topic == LEDGER
        if isinstance(place.offset, int):
            assert place.offset in real[key], (place, real[key])
            count += 1
    return count


async def test_every_offset_that_is_said_is_where_the_event_lies(
    database: Database, own_broker: Broker
) -> None:
    async with open_log(database.app_url) as log:
        await log.grant_many(range(1, 25), 4)
        before = await places(log)
        assert all(place.pending for place in before.values())

        await published(log, own_broker)
        with psycopg.connect(log.url, autocommit=True) as connection:
            for table in (b"publisher", b"publisher_heads"):
                connection.execute(b"CREATE TEMP TABLE old_" + table + b" AS TABLE " + table)
            await log.grant_many(range(10, 30), 3)
            await published(log, own_broker)
            assert said(await places(log), await lies(own_broker)) == 24 * 4 + 20 * 3

            # As after a crash between Kafka's acknowledgement and our memory of it.
            for table in (b"publisher", b"publisher_heads"):
                connection.execute(b"DELETE FROM " + table)
                connection.execute(b"INSERT INTO " + table + b" TABLE old_" + table)
        await published(log, own_broker)
        repeated = said(await places(log), await lies(own_broker))
        assert 0 < repeated < 24 * 4 + 20 * 3

        await log.grant_many(range(1, 30), 2)
        await published(log, own_broker)
        real = await lies(own_broker)
        assert any(len(offsets) == 2 for offsets in real.values())
        assert said(await places(log), real) >= repeated + 29 * 2


async def test_a_head_that_an_older_version_moved_is_not_counted_from(
    database: Database, own_broker: Broker
) -> None:
    async with open_log(database.app_url) as log:
        await log.grant_many(range(1, 5), 2)
        await published(log, own_broker)
        with psycopg.connect(log.url, autocommit=True) as connection:
            connection.execute("UPDATE publisher_heads SET record_offset = record_offset + 3")
        assert said(await places(log), await lies(own_broker)) == 0


async def test_without_kafka_an_entry_is_named_by_stream_and_version_alone(
    database: Database,
) -> None:
    async with open_log(database.app_url) as log:
        await log.grant(1)
        async with make_pool(log.url, application="test", size_max=1) as pool:
            found = await LogPlaces(pool, CLOCK, has_kafka=False).find("account:1", 1)
        assert found == LogPlace("account:1", 1)


async def test_a_command_waits_a_moment_for_the_publisher_and_then_says_pending(
    database: Database,
) -> None:
    async with open_log(database.app_url) as log:
        await log.grant(1)
        started_s = CLOCK.monotonic_s()
        async with make_pool(log.url, application="test", size_max=1) as pool, asyncio.timeout(5):
            found = await LogPlaces(pool, CLOCK, has_kafka=True).find("account:1", 1)
        assert found.pending
        assert (found.topic, found.partition) == (LEDGER, shard_of("account:1"))
        assert found.offset is UNSET
        assert CLOCK.monotonic_s() - started_s >= 0.3
