"""Our topics, records and reading against a real broker, which is also killed and wiped."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.admin import DescribeConfigsRequest
from structlog.testing import capture_logs

from backend.kit.kafka import (
    MalformedRecord,
    Record,
    last_records,
    read_topics,
    record_of,
    recorded_of,
)
from backend.kit.kafka_admin import (
    KEYS_TOPIC,
    OUR_TOPICS,
    KafkaUnavailable,
    TopicSpec,
    cluster_identity,
    ensure_topics,
)
from backend.kit.kafka_outlet import outgoing_of, outlet
from backend.kit.kafka_wire import SetTopicConfigsRequest
from schemas.errors import SiteProblem
from schemas.event import EVENT_TOPICS, Recorded
from scripts.kafka import Broker
from tests.integration.log_writing import until

ROOT = Path(__file__).resolve().parents[2]

pytest_plugins = ("tests.integration.kafka_broker",)


def _row(topic: str, version: int, payload: bytes, stream: str = "account:42") -> Recorded:
    return Recorded(
        epoch=3,
        xid=2**40 + version,
        seq=version,
        event_id=uuid.UUID(int=version),
        command_id=uuid.UUID(int=2**127 + version),
        topic=topic,
        shard=2,
        stream=stream,
        version=version,
        type="PointsGranted",
        schema=1,
        at_us=1_760_000_000_123_456,
        payload=payload,
        prev_hash=bytes(32),
        hash=bytes(range(32)),
    )


async def _send(bootstrap: str, rows: list[Recorded]) -> None:
    async with outlet(bootstrap, client_id="test") as sender:
        await sender.send([outgoing_of(row) for row in rows], timeout_s=30)


async def _read(bootstrap: str, topic: str, records_max: int = 2_000) -> list[Record]:
    batches = read_topics(bootstrap, [topic], records_max=records_max)
    return [record async for batch in batches for record in batch]


async def _configs(bootstrap: str, topic: str) -> dict[str, str]:
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    await client.bootstrap()
    try:
        request = DescribeConfigsRequest([(2, topic, None)], False)
        answer: Any = await client.send(client.get_random_node(), request)
        return {entry[0]: entry[1] for entry in answer.resources[0][4]}
    finally:
        await client.close()


async def _is(bootstrap: str, topic: str, name: str, value: str) -> bool:
    return (await _configs(bootstrap, topic))[name] == value


async def _set_config(bootstrap: str, topic: str, configs: dict[str, str]) -> None:
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    await client.bootstrap()
    try:
        await client.send(client.get_random_node(), SetTopicConfigsRequest(topic, configs))
    finally:
        await client.close()


async def test_our_topics_are_made_once_and_keep_everything(kafka_bootstrap: str) -> None:
    await ensure_topics(kafka_bootstrap, 1)
    first = await cluster_identity(kafka_bootstrap)
    await ensure_topics(kafka_bootstrap, 1)

    assert await cluster_identity(kafka_bootstrap) == first
    assert set(first.topic_ids) == set(EVENT_TOPICS)
    assert len(set(first.topic_ids.values())) == len(EVENT_TOPICS)
    for spec in OUR_TOPICS:
        configs = await _configs(kafka_bootstrap, spec.name)
        assert configs["retention.ms"] == "-1"
        assert configs["retention.bytes"] == "-1"
        assert configs["cleanup.policy"] == spec.cleanup_policy
        assert len(await last_records(kafka_bootstrap, spec.name)) == spec.partitions


async def test_a_limited_retention_is_set_to_forever_and_other_settings_stay(
    kafka_bootstrap: str, own_topic: str
) -> None:
    limits = {"retention.ms": "604800000", "segment.bytes": "33554432"}
    await _set_config(kafka_bootstrap, own_topic, limits)
    await until(lambda: _is(kafka_bootstrap, own_topic, "segment.bytes", "33554432"))

    with capture_logs() as lines:
        await ensure_topics(kafka_bootstrap, 1, specs=[TopicSpec(own_topic, 4)])

    await until(lambda: _is(kafka_bootstrap, own_topic, "retention.ms", "-1"))
    configs = await _configs(kafka_bootstrap, own_topic)
    assert configs["segment.bytes"] == "33554432"
    (line,) = [line for line in lines if line["event"] == "kafka retention changed"]
    assert line["was"] == {"retention.ms": "604800000"}


async def test_keys_that_were_superseded_are_compacted_within_a_day(
    kafka_bootstrap: str, own_topic: str
) -> None:
    await ensure_topics(kafka_bootstrap, 1)
    assert (await _configs(kafka_bootstrap, KEYS_TOPIC))["max.compaction.lag.ms"] == "86400000"

    # A topic as an earlier version made it.
    await _set_config(kafka_bootstrap, own_topic, {"cleanup.policy": "compact"})
    await until(lambda: _is(kafka_bootstrap, own_topic, "cleanup.policy", "compact"))
    assert not await _is(kafka_bootstrap, own_topic, "max.compaction.lag.ms", "86400000")
    await ensure_topics(kafka_bootstrap, 1, specs=[TopicSpec(own_topic, 4, "compact")])
    await until(lambda: _is(kafka_bootstrap, own_topic, "max.compaction.lag.ms", "86400000"))


async def test_wrong_partitions_or_cleanup_policy_are_refused_with_what_to_do(
    kafka_bootstrap: str, own_topic: str
) -> None:
    with pytest.raises(SiteProblem, match="has 4 partitions and must have 16"):
        await ensure_topics(kafka_bootstrap, 1, specs=[TopicSpec(own_topic, 16)])
    with pytest.raises(SiteProblem, match=r"kafka-configs\.sh"):
        await ensure_topics(kafka_bootstrap, 1, specs=[TopicSpec(own_topic, 4, "compact")])


async def test_a_row_survives_the_way_through_kafka_byte_for_byte(
    kafka_bootstrap: str, own_topic: str
) -> None:
    payloads = [b"", b"{}", bytes(range(256)), "数\u2028\ufffe".encode(), b"\xff" * (512 * 1024)]
    rows = [
        _row(own_topic, version, payload, "price:模型/α β")
        for version, payload in enumerate(payloads, 1)
    ]
    await _send(kafka_bootstrap, rows)

    assert [recorded_of(record) for record in await _read(kafka_bootstrap, own_topic)] == rows
    last = await last_records(kafka_bootstrap, own_topic)
    assert [partition for partition, record in last.items() if record] == [2]
    assert last[2] is not None
    assert recorded_of(last[2]) == rows[-1]


async def test_sending_says_where_the_last_record_of_each_partition_lies(
    kafka_bootstrap: str, own_topic: str
) -> None:
    big = bytes(400_000)
    rows = [_row(own_topic, version, big) for version in range(1, 8)]
    async with outlet(kafka_bootstrap, client_id="test") as sender:
        sent = await sender.send([outgoing_of(row) for row in rows], timeout_s=30)
        again = await sender.send([outgoing_of(rows[0])], timeout_s=30)

    assert sent == {(own_topic, 2): 6}
    assert again == {(own_topic, 2): 7}
    read = [recorded_of(record).version for record in await _read(kafka_bootstrap, own_topic)]
    assert read == [1, 2, 3, 4, 5, 6, 7, 1]


async def test_sending_to_a_broker_that_is_gone_ends_at_the_deadline(own_broker: Broker) -> None:
    await ensure_topics(own_broker.bootstrap, 1)
    started = time.monotonic()
    async with outlet(own_broker.bootstrap, client_id="test") as sender:
        own_broker.kill()
        with pytest.raises(KafkaUnavailable):
            await sender.send([outgoing_of(_row("suanpan.ledger", 1, b"{}"))], timeout_s=2)
    assert time.monotonic() - started < 8


async def test_reading_ends_where_the_topic_ended_and_keeps_order(
    kafka_bootstrap: str, own_topic: str
) -> None:
    rows = [_row(own_topic, version, b"{}") for version in range(1, 301)]
    await _send(kafka_bootstrap, rows)

    seen: list[int] = []
    async for batch in read_topics(kafka_bootstrap, [own_topic], records_max=50):
        if not seen:
            await _send(kafka_bootstrap, [_row(own_topic, 999, b"{}")])
        assert len(batch) <= 50
        seen += [recorded_of(record).version for record in batch]

    assert seen == list(range(1, 301))


async def test_an_empty_topic_reads_as_nothing_and_a_missing_one_is_named(
    kafka_bootstrap: str, own_topic: str, unique_name: Callable[[str], str]
) -> None:
    assert await _read(kafka_bootstrap, own_topic) == []
    with pytest.raises(SiteProblem, match="has no topic"):
        await _read(kafka_bootstrap, unique_name("absent"))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"hash": b"00"}, "a hash of 1 bytes"),
        ({"hash": b"zz" * 32}, "non-hexadecimal"),
        ({"version": b"-1"}, "not a number"),
        ({"version": b""}, "not a number"),
        ({"event_id": b"nobody"}, "badly formed"),
        ({"type": b"\xff"}, "decode"),
        ({"seq": None}, "header seq is missing"),
        ({"key": None}, "no key"),
        ({"twice": b"1"}, "occurs twice"),
    ],
)
def test_a_record_that_nobody_of_ours_wrote_is_named_by_its_place(
    change: dict[str, bytes | None], what: str
) -> None:
    key, value, headers = record_of(_row("suanpan.ledger", 7, b"{}"))
    fields = dict(headers)
    (name, new) = next(iter(change.items()))
    if name == "twice":
        headers = [*headers, ("seq", b"1")]
    elif name != "key":
        headers = [(n, new if n == name else v) for n, v in fields.items()]
        headers = [(n, v) for n, v in headers if v is not None]
    record: Record = Record(
        "suanpan.ledger", 2, 99, 0, 0, None if name == "key" else key, value, None, 0, 0, headers
    )
    with pytest.raises(MalformedRecord, match=what) as raised:
        recorded_of(record)
    assert (raised.value.topic, raised.value.partition, raised.value.offset) == (
        "suanpan.ledger",
        2,
        99,
    )


async def test_acknowledged_records_survive_a_kill_of_the_broker(own_broker: Broker) -> None:
    await ensure_topics(own_broker.bootstrap, 1)
    before = await cluster_identity(own_broker.bootstrap)
    rows = [_row("suanpan.ledger", version, b"{}") for version in range(1, 101)]
    await _send(own_broker.bootstrap, rows)

    own_broker.kill()
    with pytest.raises(KafkaUnavailable):
        await cluster_identity(own_broker.bootstrap, timeout_s=3)
    own_broker.start()

    read = await _read(own_broker.bootstrap, "suanpan.ledger")
    assert [recorded_of(record) for record in read] == rows
    assert await cluster_identity(own_broker.bootstrap) == before


async def test_a_wiped_broker_and_a_topic_made_anew_have_another_identity(
    own_broker: Broker,
) -> None:
    await ensure_topics(own_broker.bootstrap, 1)
    first = await cluster_identity(own_broker.bootstrap)

    own_broker.wipe()
    own_broker.start()
    assert (await cluster_identity(own_broker.bootstrap)).topic_ids == {}
    await ensure_topics(own_broker.bootstrap, 1)
    second = await cluster_identity(own_broker.bootstrap)

    assert second.cluster_id != first.cluster_id
    for topic in EVENT_TOPICS:
        assert second.topic_ids[topic] != first.topic_ids[topic]


def test_no_broker_outlives_the_command_that_started_it(kafka_jars: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "kafka.py"), "start"]
    command += ["--dir", str(tmp_path / "kafka"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline().startswith("kafka: ready at 127.0.0.1:")
        (broker,) = psutil.Process(starter.pid).children()
        starter.kill()
        psutil.wait_procs([broker], timeout=10)
    assert not broker.is_running() or broker.status() == psutil.STATUS_ZOMBIE
