"""Kafka goes away under load, and comes back empty: no call notices, and the log is whole again."""

from __future__ import annotations

import asyncio
import contextlib
import os
from random import Random

import httpx

from backend.folds import ALL_FOLDS
from backend.kit.kafka_admin import KafkaUnavailable
from backend.kit.postgres import connect, fetch_one
from projections.declared import live_consumers
from projections.health import list_lags
from projections.replay import replay_kafka, replay_table
from schemas.errors import SiteProblem
from scripts.kafka import Broker
from tests.faults.books import check_audit, check_states, read_books, until_ended
from tests.faults.chance import ROUNDS_DEFAULT, rounds
from tests.faults.conftest import MakeRole
from tests.faults.load import Ending, Load
from tests.faults.roles import Role, database_url
from tests.faults.site import open_accounts, until_served
from tests.upstream import FakeUpstream

pytest_plugins = ("tests.integration.kafka_broker",)

STOPPED_S = float(
    os.environ.get("SUANPAN_FAULT_KAFKA_S") or (8 if rounds() <= ROUNDS_DEFAULT else 60)
)
DRAINED_TIMEOUT_S = 60.0
PUBLISHED = """
SELECT (epoch, xid, seq) = (SELECT epoch, xid, seq FROM event_log
    ORDER BY epoch DESC, xid DESC, seq DESC LIMIT 1) FROM publisher
"""


async def until_drained(url: str) -> None:
    """Waits until Kafka has acknowledged the last row and every consumer has applied it."""
    async with (
        asyncio.timeout(DRAINED_TIMEOUT_S),
        await connect(url, application="t") as connection,
    ):
        while True:
            published = await fetch_one(connection, PUBLISHED)
            lags = await list_lags(connection, live_consumers())
            if published == (True,) and not any(lag.rows for lag in lags):
                return
            await asyncio.sleep(0.1)


async def check_replays_agree(url: str, bootstrap: str) -> int:
    """Kafka holds what the table holds; how many events that is."""
    table = await replay_table(url, ALL_FOLDS)
    kafka = await replay_kafka(url, bootstrap, ALL_FOLDS)
    assert table.differences == ()
    assert kafka.differences == ()
    assert (kafka.events, kafka.digest) == (table.events, table.digest)
    assert kafka.position == table.position
    return table.events


async def until_refilled(url: str, bootstrap: str) -> None:
    """A wiped Kafka is noticed and filled from the table again."""
    async with asyncio.timeout(DRAINED_TIMEOUT_S):
        while True:
            table = await replay_table(url, ALL_FOLDS)
            # Until the publisher has looked, the new cluster does not even have our topics.
            with contextlib.suppress(SiteProblem, KafkaUnavailable):
                kafka = await replay_kafka(url, bootstrap, ALL_FOLDS)
                if kafka.events >= table.events and not kafka.differences:
                    return
            await asyncio.sleep(0.3)


async def health_of(role: Role) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.get(f"{role.url}/health", timeout=10)


async def test_no_call_fails_without_kafka_and_kafka_has_everything_afterwards(
    own_broker: Broker, upstream: FakeUpstream, make_role: MakeRole, chance: Random
) -> None:
    role = make_role("serve", {"KAFKA_BOOTSTRAP_SERVERS": own_broker.bootstrap})
    await role.start()
    accounts = await open_accounts(role.environment, upstream.url)
    await until_served(role.url, accounts)
    url = database_url(role)
    async with Load(role.url, accounts, ("quick", "long"), chance, 4, pause_s=0.05) as load:
        await load.until_answered(10)
        own_broker.kill()
        await load.until_answered(1)
        await asyncio.sleep(STOPPED_S)
        assert (await health_of(role)).status_code == 200, "the site is ready without Kafka"
        await load.until_answered(10)
        await asyncio.to_thread(own_broker.start)
    await until_ended(url)
    await until_drained(url)
    before_wipe = await check_replays_agree(url, own_broker.bootstrap)

    async with Load(role.url, accounts, ("quick",), chance, 2, pause_s=0.05) as more:
        await asyncio.to_thread(own_broker.wipe)
        await asyncio.to_thread(own_broker.start)
        await more.until_answered(10)
    await until_ended(url)
    await until_refilled(url, own_broker.bootstrap)
    await until_drained(url)
    assert await check_replays_agree(url, own_broker.bootstrap) > before_wipe
    calls = load.calls + more.calls
    assert {call.ending for call in calls} == {Ending.ANSWERED}, calls
    books = await read_books(url)
    assert books.check(accounts, calls, upstream.reported()) == []
    await check_states(url, books)
    await check_audit(role.environment)
