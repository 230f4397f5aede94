"""The port to Kafka: rows as records, and reading without a group. No business words.

Value bytes pass untouched; it never decides what a record means.
"""
# aiokafka ships no types: what is taken from it is named and narrowed here, for everybody else.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeAlias
from uuid import UUID

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from backend.kit.kafka_admin import (
    ADMIN_TIMEOUT_S,
    REQUEST_TIMEOUT_S,
    connected,
    describe_cluster,
    translated,
)
from schemas.errors import SiteProblem
from schemas.event import Recorded

STALL_TIMEOUT_S: Final = 30.0
RECORDS_MAX: Final = 2_000

_POLL_MS: Final = 500

Record: TypeAlias = ConsumerRecord[bytes, bytes]
Headers: TypeAlias = list[tuple[str, bytes]]

_log = structlog.get_logger("kit.kafka")


class MalformedRecord(ValueError):
    """A record in one of our topics that no version of ours has written."""

    def __init__(self, record: Record, what: str) -> None:
        super().__init__(f"{record.topic}/{record.partition} offset {record.offset}: {what}")
        self.topic = record.topic
        self.partition = record.partition
        self.offset = record.offset
        self.what = what


def record_of(row: Recorded) -> tuple[bytes, bytes, Headers]:
    """(key, value, headers) of a row. The key is the stream, the value the very payload bytes.

    Headers are text: ids as UUIDs, hashes in hex, numbers in decimal. Topic and shard are not
    among them: a record's topic and partition are the row's.
    """
    headers = [
        ("event_id", str(row.event_id).encode()),
        ("command_id", str(row.command_id).encode()),
        ("version", b"%d" % row.version),
        ("type", row.type.encode()),
        ("schema", b"%d" % row.schema),
        ("at_us", b"%d" % row.at_us),
        ("prev_hash", row.prev_hash.hex().encode()),
        ("hash", row.hash.hex().encode()),
        ("epoch", b"%d" % row.epoch),
        ("xid", b"%d" % row.xid),
        ("seq", b"%d" % row.seq),
    ]
    return row.stream.encode(), row.payload, headers


def recorded_of(record: Record) -> Recorded:
    """The row that a record carries. Raises MalformedRecord; hashes are not verified here."""
    if record.key is None or record.value is None:
        raise MalformedRecord(record, "no key or no value")
    headers = dict(record.headers)
    if len(headers) != len(record.headers):
        raise MalformedRecord(record, "a header occurs twice")
    try:
        return Recorded(
            epoch=_number(headers["epoch"]),
            xid=_number(headers["xid"]),
            seq=_number(headers["seq"]),
            event_id=UUID(headers["event_id"].decode("ascii")),
            command_id=UUID(headers["command_id"].decode("ascii")),
            topic=record.topic,
            shard=record.partition,
            stream=record.key.decode(),
            version=_number(headers["version"]),
            type=headers["type"].decode(),
            schema=_number(headers["schema"]),
            at_us=_number(headers["at_us"]),
            payload=record.value,
            prev_hash=_digest(headers["prev_hash"]),
            hash=_digest(headers["hash"]),
        )
    except KeyError as error:
        raise MalformedRecord(record, f"header {error.args[0]} is missing") from error
    except ValueError as error:
        raise MalformedRecord(record, str(error)) from error


async def read_topics(
    bootstrap: str,
    topics: Sequence[str],
    *,
    after: Mapping[tuple[str, int], int] | None = None,
    records_max: int = RECORDS_MAX,
    stall_timeout_s: float = STALL_TIMEOUT_S,
) -> AsyncGenerator[list[Record]]:
    """Batches from the beginning to where each partition ended at the start; order per partition.

    `after`: (topic, partition) → the offset behind which to begin there. Raises KafkaUnavailable
    when nothing came for `stall_timeout_s`; SiteProblem for a topic that does not exist.
    """
    known = after or {}
    async with _consumer(bootstrap, topics) as (consumer, partitions):
        begins = await consumer.beginning_offsets(partitions)
        ends = await consumer.end_offsets(partitions)
        starts = {
            partition: max(
                begins[partition], known.get((partition.topic, partition.partition), -1) + 1
            )
            for partition in partitions
        }
        open_ones = {partition for partition in partitions if starts[partition] < ends[partition]}
        _assign(consumer, {partition: starts[partition] for partition in open_ones})
        while open_ones:
            yield await _next_batch(consumer, open_ones, ends, records_max, stall_timeout_s)


async def read_since(
    bootstrap: str, topic: str, at_ms: int, *, stall_timeout_s: float = STALL_TIMEOUT_S
) -> AsyncGenerator[list[Record]]:
    """As `read_topics`, from the first record of each partition that is not older than `at_ms`."""
    async with _consumer(bootstrap, (topic,)) as (consumer, partitions):
        async with asyncio.timeout(stall_timeout_s):
            ends = await consumer.end_offsets(partitions)
            found = await consumer.offsets_for_times(dict.fromkeys(partitions, at_ms))
        starts = {partition: at.offset for partition, at in found.items() if at is not None}
        open_ones = {partition for partition, start in starts.items() if start < ends[partition]}
        _assign(consumer, {partition: starts[partition] for partition in open_ones})
        while open_ones:
            yield await _next_batch(consumer, open_ones, ends, RECORDS_MAX, stall_timeout_s)


async def count_records(bootstrap: str, topics: Sequence[str]) -> int:
    """About how many records the topics hold; what compaction removed counts too.

    Raises as `read_topics`.
    """
    async with _consumer(bootstrap, topics) as (consumer, partitions):
        async with asyncio.timeout(STALL_TIMEOUT_S):
            begins = await consumer.beginning_offsets(partitions)
            ends = await consumer.end_offsets(partitions)
    return sum(ends[partition] - begins[partition] for partition in partitions)


async def last_records(
    bootstrap: str, topic: str, *, timeout_s: float = STALL_TIMEOUT_S
) -> dict[int, Record | None]:
    """Partition → its last record, None where it holds nothing. Raises as `read_topics`."""
    async with _consumer(bootstrap, (topic,)) as (consumer, partitions), asyncio.timeout(timeout_s):
        begins = await consumer.beginning_offsets(partitions)
        ends = await consumer.end_offsets(partitions)
        last: dict[int, Record | None] = {partition.partition: None for partition in partitions}
        waiting = {partition for partition in partitions if begins[partition] < ends[partition]}
        _assign(consumer, {partition: ends[partition] - 1 for partition in waiting})
        while waiting:
            batches = await consumer.getmany(timeout_ms=_POLL_MS)
            for partition, records in batches.items():
                last[partition.partition] = records[-1]
                consumer.pause(partition)
                waiting.discard(partition)
        return last


async def _next_batch(
    consumer: AIOKafkaConsumer,
    open_ones: set[TopicPartition],
    ends: dict[TopicPartition, int],
    records_max: int,
    stall_timeout_s: float,
) -> list[Record]:
    """The next records below the ends; partitions that are through leave `open_ones`."""
    batch: list[Record] = []
    async with asyncio.timeout(stall_timeout_s):
        while not batch and open_ones:
            batches = await consumer.getmany(timeout_ms=_POLL_MS, max_records=records_max)
            for partition, records in batches.items():
                batch += [record for record in records if record.offset < ends[partition]]
            # The position also passes what compaction removed, so that the end is always reached.
            for partition in tuple(open_ones):
                if await consumer.position(partition) >= ends[partition]:
                    open_ones.discard(partition)
                    consumer.pause(partition)
    return batch


def _assign(consumer: AIOKafkaConsumer, places: dict[TopicPartition, int]) -> None:
    """Assigned and sought without a pause between: there is no default place to start from."""
    consumer.assign(list(places))
    for partition, offset in places.items():
        consumer.seek(partition, offset)


@asynccontextmanager
async def _consumer(
    bootstrap: str, topics: Sequence[str]
) -> AsyncGenerator[tuple[AIOKafkaConsumer, list[TopicPartition]]]:
    async with connected(bootstrap, ADMIN_TIMEOUT_S) as client:
        found = (await describe_cluster(client, tuple(topics))).topics
    if absent := sorted(set(topics) - set(found)):
        raise SiteProblem(
            f"Kafka has no topic {absent[0]}: start the publisher, it makes the topics"
        )
    partitions = [
        TopicPartition(name, number) for name in topics for number in range(found[name].partitions)
    ]
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        enable_auto_commit=False,
        # Neither end is a good guess: a place that vanished is an error.
        auto_offset_reset="none",
        request_timeout_ms=int(REQUEST_TIMEOUT_S * 1000),
    )
    async with translated(bootstrap, None):
        try:
            async with asyncio.timeout(ADMIN_TIMEOUT_S):
                await consumer.start()
            yield consumer, partitions
        finally:
            await _stop(consumer)


async def _stop(consumer: AIOKafkaConsumer) -> None:
    """Closing must not hang on a broker that is gone, nor hide why we close."""
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            await consumer.stop()
    except (KafkaError, OSError, TimeoutError) as error:
        _log.info("kafka consumer did not close cleanly", error=type(error).__name__)


def _number(text: bytes) -> int:
    if not text.isdigit():
        raise ValueError(f"not a number: {text[:20]!r}")
    return int(text)


def _digest(text: bytes) -> bytes:
    digest = bytes.fromhex(text.decode("ascii"))
    if len(digest) != 32:
        raise ValueError(f"a hash of {len(digest)} bytes")
    return digest
