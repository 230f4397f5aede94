"""The publisher with a real broker that stops, dies, is wiped, or knows more than the table."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager

import msgspec
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from backend.journal.keys_topic import SITE_NAME
from backend.journal.publisher import Publisher
from backend.journal.publisher_place import (
    AHEAD,
    LostLeadership,
    find_lag,
    lead,
    move,
    take_lock,
)
from backend.journal.recover import recover
from backend.kit.kafka import Record, read_topics, recorded_of
from backend.kit.kafka_admin import KEYS_TOPIC
from backend.kit.kafka_outlet import outgoing_of, outlet
from backend.kit.postgres import connect
from schemas.errors import SiteProblem, Unavailable
from schemas.event import EVENT_TOPICS, START, Recorded
from scripts.kafka import Broker
from tests.conftest import Database
from tests.integration.log_writing import (
    CLOCK,
    FOLDS,
    RANDOMNESS,
    Log,
    open_log,
    rows_of,
    until,
)

pytest_plugins = ("tests.integration.kafka_broker",)


@asynccontextmanager
async def _publishing(log: Log, broker: Broker) -> AsyncGenerator[Publisher]:
    publisher = Publisher(log.url, broker.bootstrap, log.watch, CLOCK, RANDOMNESS)
    publisher.start()
    try:
        yield publisher
    finally:
        await publisher.stop()


async def _records(broker: Broker, *topics: str) -> list[Record]:
    async with aclosing(read_topics(broker.bootstrap, topics or EVENT_TOPICS)) as batches:
        return [record async for batch in batches for record in batch]


def _by_stream(rows: list[Recorded]) -> dict[str, list[Recorded]]:
    streams: dict[str, list[Recorded]] = {}
    for row in rows:
        streams.setdefault(row.stream, []).append(row)
    return streams


def _first_seen(records: list[Record]) -> dict[str, list[Recorded]]:
    """Rows per stream in the order of their first appearance."""
    seen: dict[tuple[str, bytes], Recorded] = {}
    for record in records:
        row = recorded_of(record)
        seen.setdefault((row.stream, row.hash), row)
    return _by_stream(list(seen.values()))


async def _drained(url: str) -> None:
    async def is_drained() -> bool:
        async with await connect(url, application="test") as connection:
            return (await find_lag(connection)).rows == 0

    await until(is_drained, timeout_s=60, what="the publisher caught up")


async def _expect_kafka_equals_table(log: Log, broker: Broker) -> None:
    await _drained(log.url)
    assert _first_seen(await _records(broker)) == _by_stream(await log.rows())


@pytest.fixture
def take_backup(database: Database) -> Iterator[Callable[[], str]]:
    """Copies the database as it is now; the answer is where the copy is restored."""
    name = f"{database.name}_backup"
    server_url = database.superuser_url.replace(f"/{database.name}", "/postgres")
    owner = str(conninfo_to_dict(database.owner_url)["user"])

    def copy() -> str:
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {}")
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
                (database.name,),
            )
            connection.execute(statement.format(*map(sql.Identifier, (name, database.name, owner))))
        return database.app_url.replace(f"/{database.name}", f"/{name}")

    yield copy
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        )


async def test_every_row_reaches_its_topic_and_partition_byte_for_byte(
    database: Database, own_broker: Broker
) -> None:
    async with open_log(database.app_url) as log:
        await log.grant_many(range(1, 30), 5)
        async with _publishing(log, own_broker) as publisher:
            await _drained(log.url)
            await log.grant_many(range(20, 40), 5)
            await _drained(log.url)
            assert publisher.status.state == "publishing"
            assert publisher.status.rows_sent == 29 * 5 + 20 * 5

        records = await _records(own_broker)
        assert len(records) == 29 * 5 + 20 * 5
        assert _first_seen(records) == _by_stream(await log.rows())
        assert {record.topic for record in records} == {"suanpan.ledger"}


async def test_a_stopped_kafka_delays_the_log_and_then_drains_it_in_order(
    database: Database, own_broker: Broker
) -> None:
    async with open_log(database.app_url) as log, _publishing(log, own_broker):
        await log.grant_many(range(1, 6), 3)
        await _drained(log.url)

        own_broker.stop()
        await log.grant_many(range(1, 6), 20)
        async with await connect(log.url, application="test") as connection:
            lag = await find_lag(connection)
        assert lag.rows == 100
        assert lag.seconds > 0

        own_broker.start()
        await _expect_kafka_equals_table(log, own_broker)
        for row in (await log.rows())[:1]:
            assert row.epoch == 1


async def test_a_killed_kafka_loses_nothing_that_is_written_meanwhile(
    database: Database, own_broker: Broker
) -> None:
    async with open_log(database.app_url) as log, _publishing(log, own_broker):
        for _ in range(2):
            writing = asyncio.create_task(log.grant_many(range(1, 9), 40))
            await until(lambda: _has_records(own_broker), what="publishing began")
            own_broker.kill()
            own_broker.start()
            await writing
        await _expect_kafka_equals_table(log, own_broker)


async def _has_records(broker: Broker) -> bool:
    try:
        return bool(await _records(broker, "suanpan.ledger"))
    except SiteProblem:
        return False


async def test_a_wiped_kafka_is_filled_again_from_the_beginning(
    database: Database, own_broker: Broker
) -> None:
    async with open_log(database.app_url) as log, _publishing(log, own_broker):
        await log.grant_many(range(1, 9), 5)
        await _drained(log.url)

        own_broker.wipe()
        await log.grant_many(range(1, 9), 5)
        own_broker.start()

        async def is_filled() -> bool:
            return (
                len(await _records(own_broker)) == 80 if await _has_records(own_broker) else False
            )

        await until(is_filled, timeout_s=60, what="all rows are in the new Kafka")
        await _expect_kafka_equals_table(log, own_broker)


async def test_records_that_vanished_from_the_same_cluster_are_sent_again(
    database: Database, own_broker: Broker
) -> None:
    async with open_log(database.app_url) as log:
        await log.grant_many(range(1, 9), 5)
        async with _publishing(log, own_broker):
            await _drained(log.url)
        with psycopg.connect(log.url, autocommit=True) as connection:
            # What a broker that lost its tail looks like: we remember records it does not have.
            connection.execute("UPDATE publisher_heads SET record_offset = record_offset + 7")
        await log.grant(1)

        async with _publishing(log, own_broker):
            await _expect_kafka_equals_table(log, own_broker)
        assert len(await _records(own_broker)) == 40 + 41


async def test_a_crash_between_acknowledgement_and_memory_sends_duplicates_never_gaps(
    database: Database, own_broker: Broker
) -> None:
    async with open_log(database.app_url) as log:
        await log.grant_many(range(1, 4), 4)
        async with _publishing(log, own_broker):
            await _drained(log.url)
        with psycopg.connect(log.url, autocommit=True) as connection:
            connection.execute("UPDATE publisher SET epoch = 0, xid = '0', seq = 0")
            connection.execute("DELETE FROM publisher_heads")
        async with _publishing(log, own_broker):
            await _expect_kafka_equals_table(log, own_broker)
        assert len(await _records(own_broker)) == 24


async def test_the_second_publisher_stands_by_and_takes_over(
    database: Database, own_broker: Broker
) -> None:
    async with open_log(database.app_url) as log:
        await log.grant(1)
        async with _publishing(log, own_broker) as first:
            await _drained(log.url)
            async with _publishing(log, own_broker) as second:

                async def stands_by() -> bool:
                    return second.status.state == "standby"

                await until(stands_by)
                assert first.status.state == "publishing"
                await first.stop()
                await log.grant(2)
                await _expect_kafka_equals_table(log, own_broker)
                assert second.status.rows_sent == 1


async def test_a_leader_of_the_past_changes_nothing(database: Database) -> None:
    async with (
        await connect(database.app_url, application="old") as old,
        await connect(database.app_url, application="new") as new,
    ):
        assert await take_lock(old)
        assert not await take_lock(new)
        past = await lead(old)
        await old.execute("SELECT pg_advisory_unlock_all()")
        assert await take_lock(new)
        now = await lead(new)

        with pytest.raises(LostLeadership):
            await move(old, past.leader_epoch, START, {})
        await move(new, now.leader_epoch, START, {})


async def test_data_keys_go_out_before_the_events_that_need_them(
    database: Database, own_broker: Broker
) -> None:
    async with open_log(database.app_url) as log:
        with psycopg.connect(log.url, autocommit=True) as connection:
            for account in (1, 2):
                connection.execute(
                    "INSERT INTO data_keys (account, wrapped) VALUES (%s, %s)",
                    (account, bytes([account]) * 40),
                )
        await log.grant_many([1, 2], 3)
        async with _publishing(log, own_broker):
            await _drained(log.url)
        keys = await _records(own_broker, KEYS_TOPIC)
        events = await _records(own_broker)

    assert {(key.key, key.value) for key in keys if key.key != SITE_NAME} == {
        (b"account:1/1", b"\x01" * 40),
        (b"account:2/1", b"\x02" * 40),
    }
    assert len(events) == 6
    assert max(key.timestamp for key in keys) <= min(event.timestamp for event in events)


async def test_kafka_ahead_of_a_restored_backup_closes_the_site_until_recover(
    database: Database, own_broker: Broker, take_backup: Callable[[], str]
) -> None:
    async with open_log(database.app_url) as log:
        await log.grant_many(range(1, 9), 3)
        async with _publishing(log, own_broker):
            await _drained(log.url)
    backup_url = take_backup()
    async with open_log(database.app_url) as log, _publishing(log, own_broker):
        await log.grant_many(range(5, 15), 4)
        await _drained(log.url)
    lost = await rows_of(database.app_url)

    async with open_log(backup_url) as log, _publishing(log, own_broker) as publisher:

        async def is_closed() -> bool:
            return publisher.status.state == "read-only"

        await until(is_closed)
        assert publisher.status.reason == AHEAD
        with pytest.raises(Unavailable, match="suanpan recover"):
            await log.grant(5)

        recovered = await recover(
            backup_url,
            own_broker.bootstrap,
            FOLDS,
            lambda stream, state: ["0" * 31 + "7"] if stream == "account:14" else [],
        )

        assert (recovered.epoch, recovered.events, recovered.streams) == (2, 40, 10)
        now = await log.rows()
        assert {stream: [row.hash for row in rows] for stream, rows in _by_stream(now).items()} == {
            stream: [row.hash for row in rows] for stream, rows in _by_stream(lost).items()
        }
        assert {row.epoch for row in now} == {1, 2}
        await log.grant(5, 1_000)
        await _drained(log.url)
        assert set(_first_seen(await _records(own_broker))) == set(_by_stream(now))
    with psycopg.connect(backup_url) as connection:
        states = connection.execute(
            "SELECT stream, convert_from(state, 'UTF8') FROM streams ORDER BY stream"
        ).fetchall()
        leases = connection.execute("SELECT request_id, stream FROM leases").fetchall()
    assert ("account:5", '{"granted_upt":1016}') in states
    assert ("account:14", '{"granted_upt":10}') in states
    assert [(lease[0].int, lease[1]) for lease in leases] == [(7, "account:14")]


async def test_recover_refuses_a_history_that_forked(
    database: Database, own_broker: Broker, take_backup: Callable[[], str]
) -> None:
    async with open_log(database.app_url) as log:
        await log.grant(1)
    backup_url = take_backup()
    async with open_log(database.app_url) as log, _publishing(log, own_broker):
        await log.grant(1, 5)
        await _drained(log.url)
    async with open_log(backup_url) as log:
        await log.grant(1, 6)

    with pytest.raises(SiteProblem, match="account:1 has one event 2 in Kafka and another"):
        await recover(backup_url, own_broker.bootstrap, FOLDS)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"payload": b'{"amount_upt":9,"kind":"operator","actor":"cli"}'}, "the hash it claims"),
        ({"prev_hash": bytes(32)}, "is not chained"),
        ({"version": 3}, "follows version 1"),
    ],
)
async def test_recover_refuses_a_record_that_breaks_the_chain(
    database: Database,
    own_broker: Broker,
    take_backup: Callable[[], str],
    change: dict[str, object],
    what: str,
) -> None:
    async with open_log(database.app_url) as log:
        await log.grant(1)
        async with _publishing(log, own_broker):
            await _drained(log.url)
    backup_url = take_backup()
    async with open_log(database.app_url) as log:
        await log.grant(1, 5)
        (_, second) = await log.rows()
    async with outlet(own_broker.bootstrap, client_id="test") as out:
        forged = msgspec.structs.replace(second, **change)
        await out.send([outgoing_of(forged)], timeout_s=10)

    with pytest.raises(SiteProblem, match=what):
        await recover(backup_url, own_broker.bootstrap, FOLDS)
    assert len(await rows_of(backup_url)) == 1
