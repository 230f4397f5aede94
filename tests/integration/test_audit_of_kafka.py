"""The full audit holds Kafka's records against the table: what only one of them says is named."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backend.journal.chain import hash_of
from backend.kit.kafka_outlet import Outgoing, outgoing_of, outlet
from projections.audit.report import SEALS, TOPICS, AuditReport
from schemas.event import LEDGER, Recorded, shard_of
from scripts.kafka import Broker
from tests.integration.audited_site import audited, copy_of, make_history, project, tamper
from tests.integration.log_writing import new_id, rows_of
from tests.integration.sealed_site import cut_after, drop_stream, rewrite_from
from tests.integration.test_seals_from_kafka import (
    filled,
    one_more_call,
    witness_on,
    witnessed,
)

pytest_plugins = ("tests.integration.kafka_broker",)


@pytest.fixture(scope="module")
def broker(kafka_jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Nothing is written to it but the history below."""
    made = Broker(kafka_jars, tmp_path_factory.mktemp("kafka"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def written(server: Any, broker: Broker) -> Iterator[Any]:
    database = server.fresh()

    async def write() -> None:
        await make_history(database.app_url)
        await filled(database, broker.bootstrap)
        await project(database.app_url)

    asyncio.run(write())
    yield database
    server.drop(database)


@pytest.fixture
def copy(server: Any, written: Any) -> Iterator[Any]:
    """The same table, to be damaged; the topics are as they were."""
    made = copy_of(server, written)
    yield made
    server.drop(made)


def first_of(report: AuditReport) -> tuple[str, str, int]:
    failed = next(check for check in report.checks if not check.ok)
    assert failed.first is not None
    return failed.id, failed.first.stream, failed.first.version


async def test_topics_and_table_that_say_the_same_are_sound(copy: Any, broker: Broker) -> None:
    report = await audited(copy.app_url, bootstrap=broker.bootstrap)
    assert report.ok, report.first
    # What was not published yet is no difference.
    await one_more_call(copy)
    report = await audited(copy.app_url, bootstrap=broker.bootstrap)
    assert report.ok, report.first


async def test_a_rewritten_table_is_named_where_kafka_begins_to_differ(
    copy: Any, broker: Broker
) -> None:
    rewrite_from(copy.superuser_url, "account:1", 5, lambda p: p.replace(b"chat", b"chap"))
    report = await audited(copy.app_url, bootstrap=broker.bootstrap)
    assert first_of(report) == (TOPICS, "account:1", 5)


async def test_a_tail_that_kafka_still_has_is_named(copy: Any, broker: Broker) -> None:
    cut_after(copy.superuser_url, "account:1", 10)
    report = await audited(copy.app_url, bootstrap=broker.bootstrap)
    assert first_of(report) == (TOPICS, "account:1", 11)


async def test_a_stream_that_kafka_still_has_is_named(copy: Any, broker: Broker) -> None:
    drop_stream(copy.superuser_url, "account:1")
    report = await audited(copy.app_url, bootstrap=broker.bootstrap)
    assert first_of(report) == (TOPICS, "account:1", 1)


async def test_a_row_that_kafka_should_have_is_named(copy: Any, broker: Broker) -> None:
    await one_more_call(copy)
    tamper(
        copy.superuser_url,
        "UPDATE publisher p SET epoch = e.epoch, xid = e.xid, seq = e.seq FROM event_log e "
        "WHERE e.stream = 'account:1' AND e.version = 14",
    )
    report = await audited(copy.app_url, bootstrap=broker.bootstrap)
    assert first_of(report) == (TOPICS, "account:1", 13)


async def forged(database: Any, broker: Broker, *records: Outgoing) -> AuditReport:
    async with outlet(broker.bootstrap, client_id="test") as out:
        await out.send(list(records), timeout_s=30)
    return await audited(database.app_url, bootstrap=broker.bootstrap)


def fitting(row: Recorded) -> Outgoing:
    return outgoing_of(msgspec.structs.replace(row, hash=hash_of(row)))


async def test_a_record_that_continues_a_stream_by_itself_is_named(
    database: Any, own_broker: Broker
) -> None:
    await make_history(database.app_url)
    await filled(database, own_broker.bootstrap)
    rows = [row for row in await rows_of(database.app_url) if row.stream == "account:1"]
    granted = next(row for row in rows if row.type == "PointsGranted")
    plausible = msgspec.structs.replace(
        granted, version=13, prev_hash=rows[-1].hash, event_id=new_id(), command_id=new_id(),
        seq=granted.seq + 10_000,
    )  # fmt: skip
    report = await forged(database, own_broker, fitting(plausible))
    assert first_of(report) == (TOPICS, "account:1", 13)


async def test_a_record_for_a_version_that_there_is_is_named(
    database: Any, own_broker: Broker
) -> None:
    await make_history(database.app_url)
    await filled(database, own_broker.bootstrap)
    rows = await rows_of(database.app_url)
    same = next(row for row in rows if (row.stream, row.version) == ("account:1", 5))
    other = msgspec.structs.replace(same, payload=same.payload + b" ")
    # The same record twice is what every at-least-once transport does.
    report = await forged(database, own_broker, outgoing_of(same), outgoing_of(same))
    assert report.ok, report.first
    report = await forged(database, own_broker, fitting(other))
    assert first_of(report) == (TOPICS, "account:1", 5)


async def test_a_record_of_no_known_shape_is_named(database: Any, own_broker: Broker) -> None:
    await make_history(database.app_url)
    await filled(database, own_broker.bootstrap)
    shard = shard_of("account:1")
    record = Outgoing(LEDGER, shard, b"account:1", b"{}", [("version", b"13")])
    report = await forged(database, own_broker, record)
    check, place, offset = first_of(report)
    assert (check, place) == (TOPICS, f"{LEDGER}/{shard}")
    assert offset > 0


async def test_an_incremental_audit_goes_on_from_the_witness_s_seal(
    database: Any, own_broker: Broker, tmp_path: Path
) -> None:
    data, seen = tmp_path / "auditor", tmp_path / "witness"
    more = {"bootstrap": own_broker.bootstrap}
    await make_history(database.app_url)
    await filled(database, own_broker.bootstrap)
    await witnessed(witness_on(own_broker, seen), 1, 28)
    full = await audited(database.app_url, data, **more)
    assert full.ok, full.first
    assert full.coverage.checkpoint is not None

    await one_more_call(database)
    await filled(database, own_broker.bootstrap)
    await witnessed(witness_on(own_broker, seen), 2, 30)
    await one_more_call(database)
    report = await audited(database.app_url, data, since_seal=True, **more)
    assert report.ok, report.first
    assert (report.coverage.kind, report.events) == ("since-seal", 32)
    assert report.coverage.events_read < 32
    again = await audited(database.app_url, data, since_seal=True, **more)
    assert (again.ok, again.digest) == (True, report.digest)

    cut_after(database.superuser_url, "account:1", 13)
    cut = await audited(database.app_url, data, since_seal=True, **more)
    assert cut.coverage.kind == "since-seal"
    assert not cut.ok
    rewritten = await audited(database.app_url, data, **more)
    assert first_of(rewritten) == (TOPICS, "account:1", 14)
    assert not next(check for check in rewritten.checks if check.id == SEALS).ok
