"""Follows topics from given offsets without a group: the reader keeps its own place.

Must not judge records; it knows offsets, not what they mean.
"""
# aiokafka ships no types: what is taken from it is named and narrowed here, for everybody else.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from backend.kit.kafka import RECORDS_MAX, Record
from backend.kit.kafka_admin import (
    ADMIN_TIMEOUT_S,
    REQUEST_TIMEOUT_S,
    KafkaUnavailable,
    connected,
    describe_cluster,
    translated,
)
from schemas.errors import SiteProblem

Offsets = dict[tuple[str, int], int]
"""(topic, partition) → the next offset to read."""

_log = structlog.get_logger("kit.kafka")


class Follower:
    """Made by `follow`. `offsets` is where reading goes on after what was returned."""

    def __init__(
        self, bootstrap: str, consumer: AIOKafkaConsumer, offsets: Offsets, again: bool
    ) -> None:
        self._bootstrap: Final = bootstrap
        self._consumer: Final = consumer
        self.offsets: Final = offsets
        self.from_the_start: Final = again
        """Whether a partition ends before the given place, so that it is read again from 0."""

    async def next(self, timeout_s: float) -> list[Record]:
        """Records, in order per partition; empty after `timeout_s`. Raises KafkaUnavailable."""
        async with translated(self._bootstrap, timeout_s + REQUEST_TIMEOUT_S):
            batches = await self._consumer.getmany(
                timeout_ms=int(timeout_s * 1000), max_records=RECORDS_MAX
            )
        if not batches:
            self._expect_topics()
        found: list[Record] = []
        for partition, records in batches.items():
            found += records
            self.offsets[partition.topic, partition.partition] = records[-1].offset + 1
        return found

    def _expect_topics(self) -> None:
        """A topic that is gone would be asked for without end: better to begin again later."""
        for topic in {partition.topic for partition in self._consumer.assignment()}:
            if self._consumer.partitions_for_topic(topic) is None:
                raise KafkaUnavailable(f"{self._bootstrap}: topic {topic} is gone")

    async def behind(self) -> int:
        """How many records are there that were not returned yet. Raises KafkaUnavailable."""
        async with translated(self._bootstrap, ADMIN_TIMEOUT_S):
            ends = await self._consumer.end_offsets(list(self._consumer.assignment()))
        return sum(
            max(0, end - self.offsets[partition.topic, partition.partition])
            for partition, end in ends.items()
        )


@asynccontextmanager
async def follow(
    bootstrap: str, topics: Sequence[str], places: Mapping[tuple[str, int], int]
) -> AsyncGenerator[Follower]:
    """Reads from `places` on; partitions without one, or that end before it, from their beginning.

    Raises KafkaUnavailable; SiteProblem for a topic that does not exist.
    """
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
        auto_offset_reset="none",
        request_timeout_ms=int(REQUEST_TIMEOUT_S * 1000),
    )
    try:
        async with translated(bootstrap, ADMIN_TIMEOUT_S):
            await consumer.start()
            begins = await consumer.beginning_offsets(partitions)
            ends = await consumer.end_offsets(partitions)
        offsets: Offsets = {}
        again = False
        for partition in partitions:
            key = (partition.topic, partition.partition)
            place = places.get(key, begins[partition])
            again = again or not begins[partition] <= place <= ends[partition]
            kept = begins[partition] <= place <= ends[partition]
            offsets[key] = place if kept else begins[partition]
        consumer.assign(partitions)
        for partition in partitions:
            consumer.seek(partition, offsets[partition.topic, partition.partition])
        yield Follower(bootstrap, consumer, offsets, again)
    finally:
        await _stopped(consumer)


async def _stopped(consumer: AIOKafkaConsumer) -> None:
    """Closing must not hang on a broker that is gone, nor hide why we close."""
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            await consumer.stop()
    except (KafkaError, OSError, TimeoutError) as error:
        _log.info("kafka client did not close cleanly", error=type(error).__name__)
