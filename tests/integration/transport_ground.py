"""One ground for both transports: a log, what carries it, and a consumer that keeps notes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

import psycopg

from backend.journal.consumer import Arrived, PoisonEvent
from backend.journal.kafka_transport import KafkaTransport
from backend.journal.publisher import Publisher
from backend.journal.tail import TableTail
from backend.kit.postgres import Connection, Pool, make_pool
from schemas.event import LEDGER
from schemas.ledger import PointsGranted
from tests.integration.log_writing import CLOCK, RANDOMNESS, Log, open_log, until

MAKE_NOTES = """
CREATE TABLE read.notes (
    ordinal bigint GENERATED ALWAYS AS IDENTITY, consumer text NOT NULL, stream text NOT NULL,
    version bigint NOT NULL, amount bigint NOT NULL, PRIMARY KEY (consumer, stream, version))
"""
NOTE = """
INSERT INTO read.notes (consumer, stream, version, amount)
VALUES (%(consumer)s, %(stream)s, %(version)s, %(amount)s)
"""

Fault = Callable[[Connection, Sequence[Arrived]], Awaitable[None]]


class NoteTaker:
    """Notes every event once; a second effect of one event would break the primary key."""

    topics = (LEDGER,)

    def __init__(self, name: str = "notes") -> None:
        self.name = name
        self.before: Fault | None = None
        self.after: Fault | None = None
        self.poisoned = True
        self.handled = 0

    async def handle(self, connection: Connection, batch: Sequence[Arrived]) -> None:
        if self.before is not None:
            await self.before(connection, batch)
        for arrived in batch:
            event = arrived.event
            assert isinstance(event, PointsGranted)
            if self.poisoned and event.actor == "poison":
                raise PoisonEvent(f"{arrived.row.stream} {arrived.row.version} is poison")
        async with connection.cursor() as cursor:
            await cursor.executemany(
                NOTE,
                [
                    {
                        "consumer": self.name,
                        "stream": arrived.row.stream,
                        "version": arrived.row.version,
                        "amount": arrived.event.amount_upt,
                    }
                    for arrived in batch
                    if isinstance(arrived.event, PointsGranted)
                ],
            )
        self.handled += len(batch)
        if self.after is not None:
            await self.after(connection, batch)


class Transport(Protocol):
    alarms: dict[str, str]

    def start(self) -> None: ...
    async def stop(self) -> None: ...


class Ground:
    """`carrying` runs consumers; everything else is asked of the database."""

    def __init__(self, log: Log, bootstrap: str | None) -> None:
        self.log = log
        self.bootstrap = bootstrap

    @asynccontextmanager
    async def carrying(self, *consumers: NoteTaker) -> AsyncGenerator[Transport]:
        """A process of consumers with its own pool."""
        async with make_pool(self.log.url, application="test", size_max=6) as pool:
            transport = self._transport(pool, consumers)
            transport.start()
            try:
                yield transport
            finally:
                await transport.stop()

    def _transport(self, pool: Pool, consumers: Sequence[NoteTaker]) -> Transport:
        if self.bootstrap is None:
            return TableTail(pool, self.log.watch, RANDOMNESS, consumers)
        return KafkaTransport(pool, self.bootstrap, RANDOMNESS, consumers)

    def notes(self, consumer: str = "notes") -> dict[str, list[int]]:
        """Stream → versions in the order in which they took effect."""
        found: dict[str, list[int]] = {}
        with psycopg.connect(self.log.url) as connection:
            rows = connection.execute(
                "SELECT stream, version FROM read.notes WHERE consumer = %s ORDER BY ordinal",
                (consumer,),
            ).fetchall()
        for stream, version in rows:
            found.setdefault(stream, []).append(version)
        return found

    async def noted(self, count: int, consumer: str = "notes", timeout_s: float = 40.0) -> None:
        """Returns when `count` events have taken effect."""

        async def is_noted() -> bool:
            notes = await asyncio.to_thread(self.notes, consumer)
            return sum(map(len, notes.values())) >= count

        await until(is_noted, timeout_s=timeout_s, what=f"{count} events took effect")

    def parked(self) -> list[tuple[str, int]]:
        with psycopg.connect(self.log.url) as connection:
            return connection.execute("SELECT stream, version FROM parked").fetchall()

    def inject(self, statement: str) -> None:
        """Something that no writer of ours would write."""
        with psycopg.connect(self.log.url, autocommit=True) as connection:
            connection.execute(statement.encode())
        self.log.watch.announce()


@asynccontextmanager
async def open_ground(url: str, bootstrap: str | None) -> AsyncGenerator[Ground]:
    """A log on a fresh database; with `bootstrap` also a publisher."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(MAKE_NOTES)
    async with AsyncExitStack() as stack:
        log = await stack.enter_async_context(open_log(url))
        if bootstrap is not None:
            publisher = Publisher(url, bootstrap, log.watch, CLOCK, RANDOMNESS)
            publisher.start()
            stack.push_async_callback(publisher.stop)
        yield Ground(log, bootstrap)


def expect_in_order(notes: dict[str, list[int]], streams: int, versions: int) -> None:
    """Every stream has versions 1…n, each once, in order."""
    assert len(notes) == streams
    for stream, seen in notes.items():
        assert seen == list(range(1, versions + 1)), stream
