"""What only Kafka can do to consumers: rebalance, stop, be wiped, carry what is none of ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from backend.kit.kafka_outlet import Outgoing, outlet
from schemas.event import LEDGER, shard_of
from scripts.kafka import Broker
from tests.conftest import Database
from tests.integration.log_writing import until
from tests.integration.transport_ground import Ground, NoteTaker, expect_in_order, open_ground

pytest_plugins = ("tests.integration.kafka_broker",)


@pytest.fixture
async def ground(database: Database, own_broker: Broker) -> AsyncGenerator[Ground]:
    async with open_ground(database.app_url, own_broker.bootstrap) as made:
        yield made


async def test_two_members_share_the_partitions_and_hand_them_over(ground: Ground) -> None:
    first, second = NoteTaker(), NoteTaker()
    rounds = 0

    async def write_until(member: NoteTaker) -> None:
        nonlocal rounds
        before = member.handled

        async def worked() -> bool:
            nonlocal rounds
            await ground.log.grant_many(range(1, 33), 1)
            rounds += 1
            return member.handled > before

        await until(worked)

    async with ground.carrying(first):
        await write_until(first)
        async with ground.carrying(second):
            await write_until(second)
            await write_until(first)
        await write_until(first)
        await ground.noted(32 * rounds)
    expect_in_order(ground.notes(), 32, rounds)


async def test_a_running_batch_ends_before_its_partitions_are_given_away(ground: Ground) -> None:
    running = asyncio.Event()
    may_end = asyncio.Event()

    async def dawdle(*_: object) -> None:
        running.set()
        await may_end.wait()

    first, second = NoteTaker(), NoteTaker()
    first.after = dawdle
    await ground.log.grant_many(range(1, 33), 2)
    async with ground.carrying(first):
        await running.wait()
        async with ground.carrying(second):
            # Longer than a heartbeat and a join would take.
            await asyncio.sleep(3)
            assert second.handled == 0
            may_end.set()
            await ground.noted(64)
    expect_in_order(ground.notes(), 32, 2)


async def test_consumers_go_on_when_kafka_comes_back(ground: Ground, own_broker: Broker) -> None:
    async with ground.carrying(NoteTaker()) as transport:
        await ground.log.grant_many(range(1, 9), 5)
        await ground.noted(40)
        own_broker.kill()
        await ground.log.grant_many(range(1, 9), 5)
        own_broker.start()
        await ground.noted(80, timeout_s=60)
        assert transport.alarms == {}
    expect_in_order(ground.notes(), 8, 10)


async def test_consumers_outlive_a_wiped_kafka(ground: Ground, own_broker: Broker) -> None:
    async with ground.carrying(NoteTaker()) as transport:
        await ground.log.grant_many(range(1, 9), 5)
        await ground.noted(40)
        own_broker.wipe()
        await ground.log.grant_many(range(1, 9), 5)
        own_broker.start()
        await ground.noted(80, timeout_s=90)
        assert transport.alarms == {}
    expect_in_order(ground.notes(), 8, 10)


async def test_a_transport_started_before_kafka_waits_for_it(
    ground: Ground, own_broker: Broker
) -> None:
    own_broker.stop()
    await ground.log.grant_many(range(1, 5), 3)
    async with ground.carrying(NoteTaker()):
        await asyncio.sleep(1)
        own_broker.start()
        await ground.noted(12, timeout_s=60)
    expect_in_order(ground.notes(), 4, 3)


async def test_a_record_that_is_none_of_ours_is_left_out(
    ground: Ground, own_broker: Broker
) -> None:
    async with ground.carrying(NoteTaker()) as transport:
        await ground.log.grant_many([1], 3)
        await ground.noted(3)
        alien = Outgoing(LEDGER, shard_of("account:1"), b"account:1", b"{}", [("version", b"x")])
        async with outlet(own_broker.bootstrap, client_id="alien") as out:
            await out.send([alien], timeout_s=10)
        await ground.log.grant_many([1], 3)
        await ground.noted(6)
        assert transport.alarms == {}
    expect_in_order(ground.notes(), 1, 6)


async def test_what_was_skipped_while_parked_comes_from_the_table(ground: Ground) -> None:
    consumer = NoteTaker()
    async with ground.carrying(consumer) as transport:
        await ground.log.grant(1, actor="poison")
        await ground.log.grant_many([1, 2], 3)
        await ground.noted(3)
        assert ground.parked() == [("account:1", 1)]
        consumer.poisoned = False
        # By hand, without a retry: the next event finds a gap.
        ground.inject("DELETE FROM parked")
        await ground.log.grant(1)
        await ground.noted(8)
        assert transport.alarms == {}
    assert ground.notes() == {"account:1": [1, 2, 3, 4, 5], "account:2": [1, 2, 3]}
