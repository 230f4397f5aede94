"""Sends records to Kafka in order per partition, and says where they lie once all replicas agree.

It remembers nothing between calls and must not decide what is sent.
"""
# aiokafka ships no types: what is taken from it is named and narrowed here, for everybody else.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from backend.kit.kafka import Headers, record_of
from backend.kit.kafka_admin import ADMIN_TIMEOUT_S, REQUEST_TIMEOUT_S, translated
from schemas.event import Recorded

BATCH_BYTES_MAX: Final = 900_000
"""Below the broker's own bound for one batch (`max.message.bytes`, 1 MiB)."""
CLOSE_TIMEOUT_S: Final = 5.0

_log = structlog.get_logger("kit.kafka")


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """One record on its way; value None is a tombstone."""

    topic: str
    partition: int
    key: bytes
    value: bytes | None
    headers: Headers


def outgoing_of(row: Recorded) -> Outgoing:
    """A row on its way to its topic; the partition is its shard."""
    key, value, headers = record_of(row)
    return Outgoing(row.topic, row.shard, key, value, headers)


class Outlet:
    """Made by `outlet`; after an error it is closed, never used again."""

    def __init__(self, bootstrap: str, producer: AIOKafkaProducer) -> None:
        self._bootstrap: Final = bootstrap
        self._producer: Final = producer

    async def send(
        self, records: Sequence[Outgoing], *, timeout_s: float
    ) -> dict[tuple[str, int], int]:
        """Returns when all are acknowledged: (topic, partition) → offset of its last record.

        A partition is missing in the answer when Kafka did not say the offset. Raises
        KafkaUnavailable; then a prefix of each partition's records may have arrived, and no more.
        """
        by_partition: dict[tuple[str, int], list[Outgoing]] = {}
        for record in records:
            by_partition.setdefault((record.topic, record.partition), []).append(record)
        async with translated(self._bootstrap, timeout_s):
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = {
                        place: group.create_task(self._send_partition(place, own))
                        for place, own in by_partition.items()
                    }
            except BaseExceptionGroup as failures:
                # Not `except*`: what is raised there comes out as a group again.
                if (failed := _all_of_kafka(failures)) is not None:
                    raise failed from failures
                raise
        offsets = {place: task.result() for place, task in tasks.items()}
        return {place: offset for place, offset in offsets.items() if offset >= 0}

    async def _send_partition(self, place: tuple[str, int], records: list[Outgoing]) -> int:
        # One batch at a time: a lost batch must not be overtaken by the next one.
        topic, partition = place
        last = -1
        for batch in self._batches(records):
            count: int = batch.record_count()
            future: Any = await self._producer.send_batch(batch, topic, partition=partition)
            base: int = (await future).offset
            last = base + count - 1 if base >= 0 else -1
        return last

    def _batches(self, records: Iterable[Outgoing]) -> Iterable[Any]:
        batch: Any = self._producer.create_batch()
        for record in records:
            if not _added(batch, record):
                yield batch
                batch = self._producer.create_batch()
                if not _added(batch, record):
                    raise ValueError(f"{record.topic}: a record larger than {BATCH_BYTES_MAX}")
        batch.close()
        yield batch


@asynccontextmanager
async def outlet(bootstrap: str, *, client_id: str) -> AsyncGenerator[Outlet]:
    """A connected idempotent producer that waits for all replicas. Raises KafkaUnavailable."""
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        client_id=client_id,
        acks="all",
        enable_idempotence=True,
        max_batch_size=BATCH_BYTES_MAX,
        request_timeout_ms=int(REQUEST_TIMEOUT_S * 1000),
    )
    try:
        async with translated(bootstrap, ADMIN_TIMEOUT_S):
            await producer.start()
        yield Outlet(bootstrap, producer)
    finally:
        await _close(producer)


async def _close(producer: AIOKafkaProducer) -> None:
    # Everything wanted was awaited by `send`. stop() would wait for what was given up, for ever.
    private: Any = producer
    sending: asyncio.Task[None] | None = private._sender.sender_task  # noqa: SLF001
    if sending is not None:
        sending.cancel()
        await asyncio.wait([sending], timeout=CLOSE_TIMEOUT_S)
    private._closed = True  # noqa: SLF001
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await producer.client.close()
    except (KafkaError, OSError, TimeoutError) as error:
        _log.info("kafka producer did not close cleanly", error=type(error).__name__)


def _added(batch: Any, record: Outgoing) -> bool:
    added = batch.append(key=record.key, value=record.value, timestamp=None, headers=record.headers)
    return added is not None


def _all_of_kafka(failures: BaseExceptionGroup[BaseException]) -> KafkaError | None:
    """The first failure, if all of them are Kafka's."""
    ours, others = failures.split(KafkaError)
    if ours is None or others is not None:
        return None
    return _first(ours)


def _first(failures: BaseExceptionGroup[KafkaError]) -> KafkaError:
    inner = failures.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
