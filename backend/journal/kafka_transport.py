"""The transport with Kafka: consumers as FastStream batch subscribers, one group per consumer.

Imported only where Kafka is configured. What was applied is decided by the places and versions in
Postgres, never by an offset: an offset that was not committed costs a redelivery, no more.
"""
# aiokafka ships no types, and its listener's methods are declared as plain but awaited.
# pyright: reportMissingTypeStubs=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import structlog
from aiokafka import ConsumerRebalanceListener
from aiokafka.errors import KafkaError
from faststream.exceptions import NackMessage, StopConsume
from faststream.kafka import KafkaBroker
from faststream.message import StreamMessage
from faststream.middlewares import AckPolicy

from backend.journal.consumer import (
    LOAD_STREAMS,
    Consumer,
    ForkedStream,
    MissingEvents,
    consume,
    place_in_kafka,
)
from backend.journal.reader import read_stream
from backend.kit.clock import Randomness
from backend.kit.kafka import MalformedRecord, Record, recorded_of
from backend.kit.kafka_admin import KafkaUnavailable, ensure_topics
from backend.kit.postgres import DatabaseError, Pool, fetch_all
from schemas.errors import SiteProblem
from schemas.event import Recorded

RECORDS_MAX: Final = 2_000
POLL_MS: Final = 100
HEARTBEAT_MS: Final = 1_000
"""A member learns of a rebalance by a heartbeat: the default of 3 s would be its pause."""
SESSION_MS: Final = 6_000
"""After so long a killed member's partitions go to the others; brokers allow no less by default."""
METADATA_MS: Final = 10_000
"""How soon a topic that was made anew is found; by default after five minutes."""
DRAIN_TIMEOUT_S: Final = 20.0
STOP_TIMEOUT_S: Final = 15.0
BACKOFF_S: Final = (0.1, 0.5, 2.0, 5.0)

_log = structlog.get_logger("journal.kafka")


class RowCodec:
    """Records as rows. One that is none of ours is named in the log and left out.

    Leaving it out loses nothing: the stream's next event shows the gap, and the table fills it.
    """

    async def decode(self, msg: StreamMessage[Any]) -> Any:
        raise NotImplementedError("rows come in batches")

    async def encode(self, msg: Any, serializer: Any = None) -> NoReturn:
        raise NotImplementedError("the publisher sends, consumers do not")

    async def encode_batch(self, msgs: Any, serializer: Any = None) -> NoReturn:
        raise NotImplementedError("the publisher sends, consumers do not")

    async def decode_batch(self, msg: StreamMessage[Sequence[Record]]) -> list[Any]:
        rows: list[Recorded] = []
        for record in msg.raw_message:
            try:
                rows.append(recorded_of(record))
            except MalformedRecord as error:
                _log.error("malformed record", topic=error.topic, reason=str(error))
        return rows


class _DrainOnRevoke(ConsumerRebalanceListener):
    """Lets the running batch end before its partitions go to somebody else."""

    def __init__(self, busy: asyncio.Lock) -> None:
        self._busy: Final = busy

    async def on_partitions_revoked(self, revoked: Any) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_TIMEOUT_S), self._busy:
                pass

    async def on_partitions_assigned(self, assigned: Any) -> None:
        return


class _Feed:
    """One consumer's handler: applies batches, and waits longer after each failure in a row."""

    def __init__(
        self,
        pool: Pool,
        consumer: Consumer,
        randomness: Randomness,
        alarms: dict[str, str],
        stopping: asyncio.Event,
    ) -> None:
        self._pool: Final = pool
        self._consumer: Final = consumer
        self._randomness: Final = randomness
        self._alarms: Final = alarms
        self._stopping: Final = stopping
        self._failures = 0
        self.busy: Final = asyncio.Lock()

    async def handle(self, rows: list[Recorded]) -> None:
        """Returns when the batch is applied: only then its offsets may be committed."""
        try:
            async with self.busy:
                await self._apply(rows)
            self._failures = 0
        except (DatabaseError, OSError, TimeoutError) as error:
            _log.warning("consumer waits", consumer=self._consumer.name, error=type(error).__name__)
            # Not under the lock: a rebalance need not wait for our pause.
            await self._pause()
            raise NackMessage from error
        except (ForkedStream, MissingEvents) as error:
            self._halt(str(error))
            raise StopConsume from error
        except Exception as error:  # last resort: redelivery would meet the same defect at once
            self._halt(f"{type(error).__name__}: {error}")
            _log.error("consumer defect", consumer=self._consumer.name, exc_info=True)
            raise StopConsume from error

    def _halt(self, reason: str) -> None:
        self._alarms[self._consumer.name] = reason
        _log.critical("consumer halted", consumer=self._consumer.name, reason=reason)

    async def _apply(self, rows: list[Recorded]) -> None:
        try:
            await consume(self._pool, self._consumer, rows, place_in_kafka)
        except MissingEvents:
            # A stream that was parked, or a record that was left out: the table has them all.
            filled = await self._filled(rows)
            await consume(self._pool, self._consumer, filled, place_in_kafka)

    async def _filled(self, rows: list[Recorded]) -> list[Recorded]:
        """`rows` with what the table has before the first new event of each stream."""
        streams = list({row.stream for row in rows})
        filled: list[Recorded] = []
        async with self._pool.connection() as connection:
            arguments = {"consumer": self._consumer.name, "streams": streams}
            known: dict[str, int] = {
                stream: version
                for stream, version, _ in await fetch_all(connection, LOAD_STREAMS, arguments)
            }
            for row in rows:
                version = known.get(row.stream, 0)
                absent = row.version - version - 1
                if absent > 0:
                    filled += await read_stream(connection, row.stream, version + 1, absent)
                known[row.stream] = max(version, row.version)
                filled.append(row)
        return filled

    async def _pause(self) -> None:
        self._failures += 1
        pause_s = BACKOFF_S[min(self._failures, len(BACKOFF_S)) - 1]
        pause_s *= 0.5 + self._randomness.bits(16) / 2**17
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._stopping.wait()


class KafkaTransport:
    """Runs consumers until stopped. `alarms` names consumers that halted, and why."""

    def __init__(
        self,
        pool: Pool,
        bootstrap: str,
        randomness: Randomness,
        consumers: Sequence[Consumer],
        *,
        replication_factor: int = 1,
    ) -> None:
        self._pool: Final = pool
        self._bootstrap: Final = bootstrap
        self._randomness: Final = randomness
        self._consumers: Final = tuple(consumers)
        self._replication_factor: Final = replication_factor
        self._stopping: Final = asyncio.Event()
        self._broker: KafkaBroker | None = None
        self._task: asyncio.Task[None] | None = None
        self.alarms: dict[str, str] = {}

    def start(self) -> None:
        """Returns at once: Kafka may be away, and is waited for."""
        self._task = asyncio.create_task(self._connect())

    async def stop(self) -> None:
        """Ends after the running batches, at the latest after STOP_TIMEOUT_S."""
        self._stopping.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._disconnect()

    @property
    def connected(self) -> bool:
        """Whether the consumers have joined their groups once; Kafka may be away since."""
        return self._task is not None and self._task.done() and self._broker is not None

    async def _connect(self) -> None:
        failures = 0
        while True:
            try:
                await ensure_topics(self._bootstrap, self._replication_factor)
                self._broker = self._declared()
                await self._broker.start()
            except (KafkaUnavailable, SiteProblem, KafkaError, OSError, TimeoutError) as error:
                _log.warning("kafka transport waits", reason=str(error))
                await self._disconnect()
                failures += 1
                pause_s = BACKOFF_S[min(failures, len(BACKOFF_S)) - 1]
                await asyncio.sleep(pause_s * (0.5 + self._randomness.bits(16) / 2**17))
            else:
                return

    async def _disconnect(self) -> None:
        broker, self._broker = self._broker, None
        if broker is not None:
            with contextlib.suppress(KafkaError, OSError, TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT_S + 5):
                    await broker.stop()

    def _declared(self) -> KafkaBroker:
        broker = KafkaBroker(
            [server.strip() for server in self._bootstrap.split(",")],
            client_id="suanpan",
            metadata_max_age_ms=METADATA_MS,
            consumer_only=True,
            allow_auto_create_topics=False,
            apply_types=False,
            graceful_timeout=STOP_TIMEOUT_S,
            logger=logging.getLogger("suanpan.kafka"),
        )
        for consumer in self._consumers:
            feed = _Feed(self._pool, consumer, self._randomness, self.alarms, self._stopping)
            subscriber = broker.subscriber(
                *consumer.topics,
                batch=True,
                group_id=f"suanpan.{consumer.name}",
                auto_offset_reset="earliest",
                ack_policy=AckPolicy.NACK_ON_ERROR,
                max_records=RECORDS_MAX,
                batch_timeout_ms=POLL_MS,
                heartbeat_interval_ms=HEARTBEAT_MS,
                session_timeout_ms=SESSION_MS,
                listener=_DrainOnRevoke(feed.busy),
                codec=RowCodec(),
                no_reply=True,
            )
            subscriber(feed.handle)
        return broker
