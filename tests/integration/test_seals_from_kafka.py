"""The witness and the replay from Kafka, against a real broker that the publisher fills."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from backend.folds import ALL_FOLDS
from backend.journal.chain import hash_of
from backend.journal.publisher import Publisher
from backend.journal.wake import LogWatch
from backend.kit.clock import SystemClock, SystemRandomness
from backend.kit.kafka_admin import ensure_topics
from backend.kit.kafka_outlet import outgoing_of, outlet
from projections.audit.report import SEALS
from projections.replay import replay_kafka, replay_table
from projections.witness import STATE_FILE, Witness
from schemas.usage import Usage
from scripts.kafka import Broker
from tests.integration.audited_site import audited, make_history, open_site, readable, tamper
from tests.integration.log_writing import rows_of, until

pytest_plugins = ("tests.integration.kafka_broker",)


@asynccontextmanager
async def published(database: Any, bootstrap: str) -> AsyncGenerator[Publisher]:
    watch = LogWatch(database.app_url)
    publisher = Publisher(database.app_url, bootstrap, watch, SystemClock(), SystemRandomness())
    watch.start()
    publisher.start()
    try:
        yield publisher
    finally:
        await publisher.stop()
        await watch.stop()


async def filled(database: Any, bootstrap: str) -> None:
    """Publishes until Kafka has every row."""
    await ensure_topics(bootstrap, 1)
    async with published(database, bootstrap):

        async def in_step() -> bool:
            kafka = await replay_kafka(database.app_url, bootstrap, ALL_FOLDS)
            return kafka.position == (await replay_table(database.app_url, ALL_FOLDS)).position

        await until(in_step, what="Kafka has every row", timeout_s=60)


def witness_on(broker: Broker, data_dir: Path) -> Witness:
    return Witness(broker.bootstrap, data_dir, SystemClock(), SystemRandomness(), every_s=0.2)


async def witnessed(witness: Witness, seals: int, events: int) -> None:
    """Runs a witness until it has sealed so much."""
    witness.start()
    try:

        async def done() -> bool:
            health = witness.health()
            return health.seals >= seals and health.events >= events

        await until(done, what=f"{seals} seals: {witness.health()}", timeout_s=60)
    finally:
        await witness.stop()


async def one_more_call(database: Any) -> None:
    async with open_site(database.app_url) as site:
        await site.settle(1, await site.hold(1), Usage(input=1, output=1))
    await readable(database.app_url)


async def test_what_the_witness_seals_is_what_the_table_holds(
    database: Any, own_broker: Broker, tmp_path: Path
) -> None:
    await make_history(database.app_url)
    await filled(database, own_broker.bootstrap)
    kafka = await replay_kafka(database.app_url, own_broker.bootstrap, ALL_FOLDS)
    table = await replay_table(database.app_url, ALL_FOLDS)
    assert kafka.differences == ()
    assert (kafka.events, kafka.digest, kafka.position) == (
        table.events,
        table.digest,
        table.position,
    )
    await witnessed(witness_on(own_broker, tmp_path), 1, 28)
    report = await audited(database.app_url, bootstrap=own_broker.bootstrap)
    assert report.ok, report.first

    # After a restart it goes on from its own place, and makes the next seal.
    await one_more_call(database)
    await filled(database, own_broker.bootstrap)
    again = witness_on(own_broker, tmp_path)
    await witnessed(again, 2, 30)
    assert again.health().alarms == ()
    assert (await audited(database.app_url, bootstrap=own_broker.bootstrap)).ok

    # Without its file it reads everything again and finds its own seals true.
    (tmp_path / STATE_FILE).unlink()
    await one_more_call(database)
    await filled(database, own_broker.bootstrap)
    fresh = witness_on(own_broker, tmp_path)
    await witnessed(fresh, 3, 32)
    assert fresh.health().alarms == ()
    assert (await audited(database.app_url, bootstrap=own_broker.bootstrap)).ok

    # The table alone is rewritten: the seals in Kafka and the topics say otherwise.
    tamper(
        database.superuser_url,
        "DELETE FROM event_log WHERE stream = 'account:1' AND version = 16",
    )
    report = await audited(database.app_url, bootstrap=own_broker.bootstrap)
    assert not next(check for check in report.checks if check.id == SEALS).ok
    replayed = await replay_kafka(database.app_url, own_broker.bootstrap, ALL_FOLDS)
    assert replayed.differences == ()


async def test_a_fork_in_kafka_alarms_and_ends_sealing(
    database: Any, own_broker: Broker, tmp_path: Path
) -> None:
    await make_history(database.app_url)
    await filled(database, own_broker.bootstrap)
    rows = await rows_of(database.app_url)
    same = next(row for row in rows if (row.stream, row.version) == ("account:1", 5))
    changed = msgspec.structs.replace(same, payload=same.payload + b" ")
    changed = msgspec.structs.replace(changed, hash=hash_of(changed))
    async with outlet(own_broker.bootstrap, client_id="test") as out:
        await out.send([outgoing_of(same), outgoing_of(changed)], timeout_s=30)
    witness = witness_on(own_broker, tmp_path)
    witness.start()
    try:

        async def alarmed() -> bool:
            return bool(witness.health().alarms)

        await until(alarmed, what="the fork is noticed", timeout_s=60)
    finally:
        await witness.stop()
    assert witness.health().alarms[0].startswith("account:1 5:")
    assert not witness.health().ready
    replayed = await replay_kafka(database.app_url, own_broker.bootstrap, ALL_FOLDS)
    assert [(d.stream, d.version) for d in replayed.differences] == [("account:1", 5)]


async def test_what_kafka_lacks_is_a_difference(database: Any, own_broker: Broker) -> None:
    await make_history(database.app_url)
    await filled(database, own_broker.bootstrap)
    await one_more_call(database)
    before = await replay_kafka(database.app_url, own_broker.bootstrap, ALL_FOLDS)
    assert before.differences == ()
    assert before.events == 28
    # The publisher's place says more than the topics hold.
    tamper(
        database.superuser_url,
        "UPDATE publisher p SET epoch = e.epoch, xid = e.xid, seq = e.seq FROM event_log e "
        "WHERE e.stream = 'account:1' AND e.version = 14",
    )
    after = await replay_kafka(database.app_url, own_broker.bootstrap, ALL_FOLDS)
    assert [(d.stream, d.version) for d in after.differences] == [("account:1", 13)]
