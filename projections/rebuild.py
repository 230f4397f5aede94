"""Makes one projection again from the table while the old one is read, then swaps them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Final

import msgspec

from backend.journal.append import at_text
from backend.journal.consumer import Consumer, consume, place_in_table
from backend.journal.reader import head, read_page
from backend.kit.clock import Clock
from backend.kit.postgres import Connection, DatabaseError, Pool, fetch_all, fetch_one
from projections.borrowed import borrowed
from projections.declared import Projection
from projections.tables import clear, forget_consumer, start_over, swap
from projections.target import Schema, consumer_name, wait_for_disk
from schemas.errors import Conflict, Unavailable
from schemas.event import SHARDS, START, Position, Recorded

TRY_LOCK: Final = "SELECT pg_try_advisory_lock(hashtextextended(%(name)s, 1))"
UNLOCK: Final = "SELECT pg_advisory_unlock(hashtextextended(%(name)s, 1))"
BE_PATIENT: Final = "SELECT set_config('lock_timeout', '1000', true)"
MAKE_PLACES: Final = """
INSERT INTO consumer_places (consumer, topic, shard, epoch, xid, seq, at)
SELECT %(consumer)s, topic, shard, 0, '0', 0, to_timestamp(0)
FROM json_to_recordset(%(places)s::json) AS i(topic text, shard smallint)
ORDER BY topic, shard ON CONFLICT DO NOTHING
"""
LOCK_PLACES: Final = """
SELECT topic, shard::integer FROM consumer_places WHERE consumer = %(consumer)s
ORDER BY topic, shard FOR UPDATE
"""
SET_PLACES: Final = """
UPDATE consumer_places SET epoch = %(epoch)s, xid = %(xid)s::text::xid8, seq = %(seq)s,
    at = %(at)s::timestamptz, events = 0
WHERE consumer = %(consumer)s AND (epoch, xid, seq) <= (%(epoch)s, %(xid)s::text::xid8, %(seq)s)
"""
SET_EVENTS: Final = """
UPDATE consumer_places SET events = %(events)s WHERE consumer = %(consumer)s
    AND (topic, shard) = (SELECT topic, shard FROM consumer_places
        WHERE consumer = %(consumer)s ORDER BY topic, shard LIMIT 1)
"""
FORGET_STREAMS: Final = "DELETE FROM consumer_streams WHERE consumer = %(consumer)s"
FORGET_PARKED: Final = "DELETE FROM parked WHERE consumer = %(consumer)s"
TAKE_STREAMS: Final = """
UPDATE consumer_streams SET consumer = %(consumer)s WHERE consumer = %(rebuilt)s
"""
TAKE_PARKED: Final = "UPDATE parked SET consumer = %(consumer)s WHERE consumer = %(rebuilt)s"

PAGE_ROWS: Final = 4_000
SWAP_ATTEMPTS_MAX: Final = 10
"""A long reader of the old table keeps the swap waiting; each attempt gives up after a second."""
_PAUSE_S: Final = 0.2

_ENCODER: Final = msgspec.json.Encoder()


class RebuildRunning(Conflict):
    """Somebody else is rebuilding the same projection."""

    code = "rebuild_running"


class Progress(msgspec.Struct, frozen=True):
    """`done` of `total` rows of the log have been read (numbers of the log: gaps count)."""

    done: int
    total: int
    events: int
    """Applied by this projection."""
    events_per_s: float


class Rebuilt(msgspec.Struct, frozen=True):
    projection: str
    events: int
    duration_ms: int
    position: Position

    @property
    def events_per_s(self) -> float:
        return self.events * 1000 / max(1, self.duration_ms)


def places_in_table() -> tuple[tuple[str, int], ...]:
    """The place rows of a live consumer that tails the table."""
    return (("*", 0),)


def places_in_kafka(topics: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """The place rows of a live consumer that reads Kafka."""
    return tuple((topic, shard) for topic in topics for shard in range(SHARDS))


async def rebuild(
    pool: Pool,
    projection: Projection,
    places: tuple[tuple[str, int], ...],
    clock: Clock,
    progress: Callable[[Progress], None],
) -> Rebuilt:
    """Replays the log into fresh tables and swaps them in; safe while everything else runs.

    `places` are those that the live consumer's transport keeps. Raises RebuildRunning while another
    rebuild of it runs, Unavailable when readers of the old table never leave, and what `consume`
    raises; then the old tables stay as they were.
    """
    async with pool.connection() as connection, _alone(connection, projection.name):
        run = _Run(pool, connection, projection, places, clock, progress)
        try:
            return await run.to_the_end()
        finally:
            await run.tidy_up()


@asynccontextmanager
async def _alone(connection: Connection, name: str) -> AsyncGenerator[None]:
    row = await fetch_one(connection, TRY_LOCK, {"name": f"suanpan rebuild {name}"})
    if row is None or not row[0]:
        raise RebuildRunning(f"A rebuild of {name} is running already.")
    try:
        yield
    finally:
        with suppress(DatabaseError, OSError):
            await connection.execute(UNLOCK, {"name": f"suanpan rebuild {name}"})


class _Run:
    """One rebuild. `connection` holds the lock, reads the log and makes the swap."""

    def __init__(
        self,
        pool: Pool,
        connection: Connection,
        projection: Projection,
        places: tuple[tuple[str, int], ...],
        clock: Clock,
        progress: Callable[[Progress], None],
    ) -> None:
        self._pool: Final = pool
        self._connection: Final = connection
        self._projection: Final = projection
        self._places: Final = places
        self._clock: Final = clock
        self._progress: Final = progress
        self._consumer: Final[Consumer] = projection.make(Schema.REBUILD)
        self._started_s: Final = clock.monotonic_s()
        self._position = START
        self._at_us = 0
        self._events = 0
        self._total = 0
        self._done = False

    async def to_the_end(self) -> Rebuilt:
        async with self._connection.transaction():
            await start_over(self._connection, self._projection, Schema.REBUILD)
        self._total = (await head(self._connection)).seq
        for _ in range(SWAP_ATTEMPTS_MAX):
            await self._catch_up()
            if await self._swapped():
                self._done = True
                return Rebuilt(
                    self._projection.name, self._events, self._elapsed_ms(), self._position
                )
            await asyncio.sleep(_PAUSE_S)
        raise Unavailable(
            f"{self._projection.name} is rebuilt, but readers of the old table do not leave it.",
            retry_after_s=60,
        )

    async def tidy_up(self) -> None:
        """After a failure: what was half made goes. If that fails too, the next rebuild does it."""
        if self._done:
            return
        with suppress(DatabaseError, OSError):
            async with self._connection.transaction():
                await clear(self._connection, self._projection, Schema.REBUILD)

    async def _catch_up(self) -> None:
        """In short transactions until a page is not full: the rest is read while others wait."""
        while page := await read_page(self._connection, self._position, PAGE_ROWS):
            self._events += await consume(self._pool, self._consumer, page, place_in_table)
            self._moved(page)
            self._tell()
            if len(page) < PAGE_ROWS:
                return

    async def _swapped(self) -> bool:
        """One transaction: hold the live consumer, apply the rest, take its place."""
        position, at_us, events = self._position, self._at_us, self._events
        try:
            async with self._connection.transaction():
                await self._connection.execute(BE_PATIENT)
                await self._hold_live_consumer()
                await self._apply_the_rest()
                await self._take_place()
                await swap(self._connection, self._projection)
                await wait_for_disk(self._connection)
        except DatabaseError as error:
            if error.sqlstate not in _WORTH_ANOTHER_TRY:
                raise
            self._position, self._at_us, self._events = position, at_us, events
            return False
        self._tell()
        return True

    async def _hold_live_consumer(self) -> None:
        """It waits at its place until our commit, then drops what it finds applied.

        Our transaction has an id from here on, so no reader gets past it: nothing that the live
        consumer has seen can be missing from what we read next.
        """
        places = [{"topic": topic, "shard": shard} for topic, shard in self._places]
        given = {"consumer": self._projection.name, "places": _ENCODER.encode(places).decode()}
        await self._connection.execute(MAKE_PLACES, given)
        await fetch_all(self._connection, LOCK_PLACES, {"consumer": self._projection.name})

    async def _apply_the_rest(self) -> None:
        pool = borrowed(self._connection)
        while page := await read_page(self._connection, self._position, PAGE_ROWS):
            self._events += await consume(pool, self._consumer, page, place_in_table)
            self._moved(page)

    async def _take_place(self) -> None:
        name = self._projection.name
        rebuilt = consumer_name(name, Schema.REBUILD)
        for statement in (FORGET_STREAMS, FORGET_PARKED):
            await self._connection.execute(statement, {"consumer": name})
        for statement in (TAKE_STREAMS, TAKE_PARKED):
            await self._connection.execute(statement, {"consumer": name, "rebuilt": rebuilt})
        await forget_consumer(self._connection, rebuilt)
        await self._connection.execute(
            SET_PLACES,
            {
                "consumer": name,
                "epoch": self._position.epoch,
                "xid": str(self._position.xid),
                "seq": self._position.seq,
                "at": at_text(self._at_us),
            },
        )
        await self._connection.execute(SET_EVENTS, {"consumer": name, "events": self._events})

    def _moved(self, page: list[Recorded]) -> None:
        self._position, self._at_us = page[-1].position, page[-1].at_us

    def _tell(self) -> None:
        done = self._position.seq
        self._total = max(self._total, done)
        rate = self._events * 1000 / max(1, self._elapsed_ms())
        self._progress(Progress(done, self._total, self._events, rate))

    def _elapsed_ms(self) -> int:
        return int((self._clock.monotonic_s() - self._started_s) * 1000)


_WORTH_ANOTHER_TRY: Final = frozenset({"55P03", "40P01"})
"""lock_not_available and deadlock_detected: somebody reads or writes the old table just now."""
