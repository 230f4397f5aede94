"""What every transport promises to consumers; the same tests run on the table and on Kafka."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import psycopg
import pytest

from backend.journal.append import append
from backend.journal.batch import Batch
from backend.journal.consumer import Arrived, PoisonEvent
from backend.journal.heads import load_heads
from backend.journal.parking import list_parked, retry_parked
from backend.journal.reader import site_of
from backend.kit.postgres import Connection, ConnectionLost, connect, make_pool
from scripts.kafka import Broker
from tests.conftest import Database
from tests.integration.log_writing import (
    CLOCK,
    FOLDS,
    granting,
    new_id,
    until,
    write_slowly,
)
from tests.integration.transport_ground import Ground, NoteTaker, expect_in_order, open_ground

pytest_plugins = ("tests.integration.kafka_broker",)

ROOT = Path(__file__).resolve().parents[2]
COPY = """
INSERT INTO event_log (epoch, xid, event_id, command_id, topic, shard, stream, version, type,
    schema, at, payload, prev_hash, hash)
SELECT epoch, pg_current_xact_id(), event_id, command_id, topic, shard, stream, version, type,
    schema, at, payload, prev_hash, {hash} FROM event_log {which}
"""


@pytest.fixture(params=["table", "kafka"])
async def ground(request: pytest.FixtureRequest, database: Database) -> AsyncGenerator[Ground]:
    broker: Broker | None = None
    if request.param == "kafka":
        broker = request.getfixturevalue("own_broker")
    async with open_ground(database.app_url, broker.bootstrap if broker else None) as made:
        yield made


async def test_every_event_takes_effect_once_and_each_stream_in_order(ground: Ground) -> None:
    await ground.log.grant_many(range(1, 11), 10)
    async with ground.carrying(NoteTaker()):
        await ground.log.grant_many(range(11, 31), 10)
        await ground.noted(300)
    expect_in_order(ground.notes(), 30, 10)


async def test_a_new_consumer_replays_from_the_beginning(ground: Ground) -> None:
    await ground.log.grant_many(range(1, 6), 10)
    async with ground.carrying(NoteTaker("first")):
        await ground.noted(50, "first")
    async with ground.carrying(NoteTaker("first"), NoteTaker("late")):
        await ground.log.grant_many(range(6, 11), 10)
        await ground.noted(100, "late")
        await ground.noted(100, "first")
    expect_in_order(ground.notes("late"), 10, 10)
    expect_in_order(ground.notes("first"), 10, 10)


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_failure_around_the_effect_is_redelivered_and_leaves_no_second_effect(
    ground: Ground, moment: str
) -> None:
    failures = 0

    async def fail_thrice(connection: Connection, batch: Sequence[Arrived]) -> None:
        nonlocal failures
        failures += 1
        if failures <= 3:
            raise ConnectionLost("the connection broke")

    consumer = NoteTaker()
    setattr(consumer, moment, fail_thrice)
    async with ground.carrying(consumer):
        await ground.log.grant_many(range(1, 6), 10)
        await ground.noted(50)
    assert failures > 3
    expect_in_order(ground.notes(), 5, 10)


async def test_a_consumer_cancelled_at_any_moment_goes_on_where_it_was(ground: Ground) -> None:
    writing = asyncio.create_task(ground.log.grant_many(range(1, 9), 25))
    chance = random.Random(7)
    for _ in range(4):
        async with ground.carrying(NoteTaker()):
            await asyncio.sleep(chance.uniform(0.05, 0.6))
    await writing
    async with ground.carrying(NoteTaker()):
        await ground.noted(200)
    expect_in_order(ground.notes(), 8, 25)


async def test_a_poison_event_parks_its_stream_and_the_others_go_on(ground: Ground) -> None:
    consumer = NoteTaker()
    async with ground.carrying(consumer) as transport:
        await ground.log.grant_many([1, 2, 3], 3)
        await ground.log.grant(2, 1, actor="poison")
        await ground.log.grant_many([1, 2, 3], 3)
        await ground.noted(6 + 3 + 6)
        assert ground.parked() == [("account:2", 4)]
        assert ground.notes() == {
            "account:1": [1, 2, 3, 4, 5, 6],
            "account:2": [1, 2, 3],
            "account:3": [1, 2, 3, 4, 5, 6],
        }

        async with make_pool(ground.log.url, application="test", size_max=2) as pool:
            with pytest.raises(PoisonEvent, match="account:2 4 is poison"):
                await retry_parked(pool, consumer, "account:2")
            async with pool.connection() as connection:
                (parked,) = await list_parked(connection)
            assert (parked.consumer, parked.stream, parked.version) == ("notes", "account:2", 4)

            consumer.poisoned = False
            assert await retry_parked(pool, consumer, "account:2") == 4
            assert await retry_parked(pool, consumer, "account:2") == 0
        assert ground.parked() == []
        await ground.log.grant_many([1, 2], 2)
        await ground.noted(6 + 7 + 6 + 4)
        assert transport.alarms == {}
    assert ground.notes()["account:2"] == list(range(1, 10))


async def test_duplicates_and_shuffles_change_nothing(ground: Ground) -> None:
    async with ground.carrying(NoteTaker()) as transport:
        await ground.log.grant_many(range(1, 6), 6)
        ground.inject(COPY.format(hash="hash", which="ORDER BY random()"))
        await ground.log.grant_many(range(1, 6), 6)
        ground.inject(COPY.format(hash="hash", which="ORDER BY random()"))
        await ground.log.grant_many(range(1, 8), 1)
        await ground.noted(67)
        assert transport.alarms == {}
    notes = ground.notes()
    assert notes.pop("account:6") == notes.pop("account:7") == [1]
    expect_in_order(notes, 5, 13)


async def test_the_same_version_with_another_hash_halts_the_consumer_with_an_alarm(
    ground: Ground,
) -> None:
    async with ground.carrying(NoteTaker()) as transport:
        await ground.log.grant_many([1, 2], 3)
        await ground.noted(6)
        ground.inject(
            COPY.format(hash="sha256(hash)", which="WHERE stream = 'account:2' AND version = 3")
        )

        async def has_alarm() -> bool:
            return "account:2 3 has two hashes" in transport.alarms.get("notes", "")

        await until(has_alarm)
        await ground.log.grant(1)
        await asyncio.sleep(0.5)
    assert sum(map(len, ground.notes().values())) == 6


async def test_twelve_writers_with_delayed_commits_lose_and_invert_nothing(
    ground: Ground,
) -> None:
    chance = random.Random(11)
    async with ground.carrying(NoteTaker()):
        await asyncio.gather(
            *(
                write_slowly(ground.log.url, account, 40, lambda: chance.uniform(0, 0.01))
                for account in range(1, 13)
            )
        )
        await ground.noted(480)
    expect_in_order(ground.notes(), 12, 40)


async def test_a_stale_writer_lands_nothing_and_no_reader_sees_it(ground: Ground) -> None:
    await ground.log.grant(1)
    async with await connect(ground.log.url, application="stale") as connection:
        site_id, _, _ = await site_of(connection)
        command = granting(1, 1_000)
        heads = await load_heads(connection, FOLDS, site_id, command.streams)
        known = {name: head for name, (head, _) in heads.items()}
        batch = Batch(FOLDS, known, CLOCK.now_us(), new_id)
        batch.add(command)
        await ground.log.grant(1, 2)
        stale = batch.laid_out()
        result = await append(connection, stale)
        assert result.landed == frozenset()
    async with ground.carrying(NoteTaker()):
        await ground.log.grant(1, 3)
        await ground.noted(3)
    with psycopg.connect(ground.log.url) as connection:
        amounts = connection.execute("SELECT amount FROM read.notes ORDER BY version").fetchall()
    assert amounts == [(1,), (2,), (3,)]


async def test_two_members_never_repeat_each_other(ground: Ground) -> None:
    members = [NoteTaker() for _ in range(2)]
    async with ground.carrying(members[0]):
        writing = asyncio.create_task(ground.log.grant_many(range(1, 25), 40))
        await ground.noted(50)
        async with ground.carrying(members[1]):
            await writing
            await ground.log.grant_many(range(1, 25), 5)
            await ground.noted(24 * 45)
        await ground.log.grant_many(range(1, 25), 5)
        await ground.noted(24 * 50)
    expect_in_order(ground.notes(), 24, 50)


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_process_killed_around_the_commit_leaves_no_gap_and_no_second_effect(
    ground: Ground, moment: str
) -> None:
    command = [sys.executable, "-m", "tests.integration.transport_member"]
    command += [ground.log.url, ground.bootstrap or "", moment]
    member = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
    rounds = 0

    async def is_dead() -> bool:
        nonlocal rounds
        await ground.log.grant_many(range(1, 9), 1)
        rounds += 1
        return member.returncode is not None

    try:
        await until(is_dead, what="the member killed itself")
        assert await member.wait() == -signal.SIGKILL
    finally:
        if member.returncode is None:
            member.kill()
    assert ground.notes()
    async with ground.carrying(NoteTaker()):
        await ground.noted(8 * rounds)
    expect_in_order(ground.notes(), 8, rounds)
