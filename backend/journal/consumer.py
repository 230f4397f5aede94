"""Consumers: declared once, run by either transport. The place in the log commits with the effect.

Never decides by a Kafka offset; drops what it has by (stream, version, hash).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import msgspec
import structlog

from backend.journal.append import at_text
from backend.kit.postgres import BadData, Connection, Pool, fetch_all, fetch_one
from schemas.event import START, Position, Recorded
from schemas.registry import Event, UndecodableEvent, decode

LOCK_PLACES: Final = """
SELECT topic, shard::integer, epoch, xid::text::bigint, seq FROM consumer_places
WHERE consumer = %(consumer)s AND (topic, shard) IN (
    SELECT topic, shard FROM json_to_recordset(%(keys)s::json) AS k(topic text, shard smallint))
ORDER BY topic, shard FOR UPDATE
"""
MAKE_PLACES: Final = """
INSERT INTO consumer_places (consumer, topic, shard, epoch, xid, seq, at)
SELECT %(consumer)s, topic, shard, 0, '0', 0, to_timestamp(0)
FROM json_to_recordset(%(keys)s::json) AS k(topic text, shard smallint)
ORDER BY topic, shard ON CONFLICT DO NOTHING
"""
MOVE_PLACES: Final = """
UPDATE consumer_places p SET epoch = i.epoch, xid = i.xid::text::xid8, seq = i.seq, at = i.at,
    events = p.events + i.events
FROM json_to_recordset(%(places)s::json) AS i(topic text, shard smallint, epoch integer,
    xid bigint, seq bigint, at timestamptz, events bigint)
WHERE p.consumer = %(consumer)s AND p.topic = i.topic AND p.shard = i.shard
    AND (p.epoch, p.xid, p.seq) < (i.epoch, i.xid::text::xid8, i.seq)
"""
TABLE_PLACE: Final = """
SELECT epoch, xid::text::bigint, seq FROM consumer_places
WHERE consumer = %(consumer)s AND topic = '*' AND shard = 0
"""
LOAD_STREAMS: Final = """
SELECT stream, version, hash FROM consumer_streams
WHERE consumer = %(consumer)s AND stream = ANY(%(streams)s)
"""
SAVE_STREAMS: Final = """
INSERT INTO consumer_streams (consumer, stream, version, hash)
SELECT %(consumer)s, stream, version, decode(hash, 'hex')
FROM json_to_recordset(%(streams)s::json) AS i(stream text, version bigint, hash text)
ORDER BY stream
ON CONFLICT (consumer, stream) DO UPDATE SET version = excluded.version, hash = excluded.hash
"""
LIST_PARKED: Final = """
SELECT stream FROM parked WHERE consumer = %(consumer)s AND stream = ANY(%(streams)s)
"""
PARK: Final = """
INSERT INTO parked (consumer, stream, version, reason)
VALUES (%(consumer)s, %(stream)s, %(version)s, %(reason)s)
ON CONFLICT (consumer, stream) DO NOTHING
"""

_ENCODER: Final = msgspec.json.Encoder()
_log = structlog.get_logger("journal.consumer")


class Arrived(msgspec.Struct, frozen=True, gc=False):
    """An event with the row it came in."""

    row: Recorded
    event: Event


class PoisonEvent(ValueError):
    """A handler cannot apply this event; its stream is parked and the others go on."""


POISON: Final = (ValueError, BadData)
"""What a handler raises for an event that no retry will cure."""


class ForkedStream(RuntimeError):
    """The same version with another hash: table and topic disagree. The consumer halts and
    alarms.
    """


class MissingEvents(RuntimeError):
    """A version gap within a stream: the transport must give the missing events first."""


class Consumer(Protocol):
    """One effect of events. `handle` runs inside the transaction that also keeps the place."""

    @property
    def name(self) -> str: ...

    @property
    def topics(self) -> tuple[str, ...]: ...

    async def handle(self, connection: Connection, batch: Sequence[Arrived]) -> None:
        """Applies events in order. Raises PoisonEvent where one cannot be applied."""
        ...


PlaceOf = Callable[[Recorded], tuple[str, int]]
"""Which place row a transport keeps for an event: (topic, shard) for Kafka, one for the table."""


def place_in_kafka(row: Recorded) -> tuple[str, int]:
    return row.topic, row.shard


def place_in_table(row: Recorded) -> tuple[str, int]:
    """The table is read in one order by one reader, so one place is enough."""
    return "*", 0


async def consume(
    pool: Pool, consumer: Consumer, rows: Sequence[Recorded], place_of: PlaceOf
) -> int:
    """Applies what is new among `rows` and keeps the place, in one transaction; returns how many.

    Duplicates are dropped. An event that cannot be applied parks its stream. Raises ForkedStream,
    MissingEvents, and psycopg errors, in which case nothing has changed.
    """
    wanted = [row for row in rows if row.topic in consumer.topics]
    if not wanted:
        return 0
    try:
        return await _consume(pool, consumer, wanted, place_of, {})
    except POISON:
        poison = await _find_poison(pool, consumer, wanted)
        if not poison:
            raise
        return await _consume(pool, consumer, wanted, place_of, poison)


async def _consume(
    pool: Pool,
    consumer: Consumer,
    rows: Sequence[Recorded],
    place_of: PlaceOf,
    poison: dict[str, tuple[int, str]],
) -> int:
    async with pool.connection() as connection, connection.transaction():
        await _lock_places(connection, consumer, {place_of(row) for row in rows})
        fresh, heads = await _new_rows(connection, consumer, rows)
        for stream, (version, reason) in poison.items():
            await _park(connection, consumer, stream, version, reason)
            fresh = [r for r in fresh if r.stream != stream or r.version < version]
            heads = {row.stream: row for row in fresh}
        if fresh:
            await consumer.handle(connection, _decoded(fresh))
            await _save_streams(connection, consumer, heads)
        await _move_places(connection, consumer, rows, place_of, len(fresh))
        return len(fresh)


def _decoded(rows: Sequence[Recorded]) -> list[Arrived]:
    try:
        return [Arrived(row, decode(row)) for row in rows]
    except UndecodableEvent as error:
        raise PoisonEvent(str(error)) from error


async def place_of_table(connection: Connection, consumer_name: str) -> Position:
    """Where a consumer that tails the table goes on."""
    row = await fetch_one(connection, TABLE_PLACE, {"consumer": consumer_name})
    return START if row is None else Position(*row)


async def _lock_places(
    connection: Connection, consumer: Consumer, keys: set[tuple[str, int]]
) -> None:
    """Locks these places: a consumer that lost its partition waits here, then drops all."""
    arguments = {
        "consumer": consumer.name,
        "keys": _ENCODER.encode([{"topic": t, "shard": s} for t, s in sorted(keys)]).decode(),
    }
    found = await fetch_all(connection, LOCK_PLACES, arguments)
    if len(found) < len(keys):
        await connection.execute(MAKE_PLACES, arguments)
        await fetch_all(connection, LOCK_PLACES, arguments)


async def _new_rows(
    connection: Connection, consumer: Consumer, rows: Sequence[Recorded]
) -> tuple[list[Recorded], dict[str, Recorded]]:
    """Rows the consumer has not seen, in order per stream, without those of parked streams."""
    streams = list({row.stream for row in rows})
    arguments: dict[str, Any] = {"consumer": consumer.name, "streams": streams}
    known = {
        stream: (version, bytes(digest))
        for stream, version, digest in await fetch_all(connection, LOAD_STREAMS, arguments)
    }
    parked = {stream for (stream,) in await fetch_all(connection, LIST_PARKED, arguments)}
    fresh: list[Recorded] = []
    heads: dict[str, Recorded] = {}
    for row in rows:
        if row.stream in parked:
            continue
        version, digest = known.get(row.stream, (0, b""))
        if row.version <= version:
            if row.version == version and row.hash != digest:
                raise ForkedStream(f"{consumer.name}: {row.stream} {row.version} has two hashes")
            continue
        if row.version > version + 1:
            raise MissingEvents(f"{consumer.name}: {row.stream} jumps {version} → {row.version}")
        known[row.stream] = (row.version, row.hash)
        fresh.append(row)
        heads[row.stream] = row
    return fresh, heads


async def _save_streams(
    connection: Connection, consumer: Consumer, heads: dict[str, Recorded]
) -> None:
    rows = [
        {"stream": row.stream, "version": row.version, "hash": row.hash.hex()}
        for row in heads.values()
    ]
    await connection.execute(
        SAVE_STREAMS, {"consumer": consumer.name, "streams": _ENCODER.encode(rows).decode()}
    )


async def _move_places(
    connection: Connection,
    consumer: Consumer,
    rows: Sequence[Recorded],
    place_of: PlaceOf,
    applied: int,
) -> None:
    last: dict[tuple[str, int], Recorded] = {}
    for row in rows:
        key = place_of(row)
        if key not in last or row.position > last[key].position:
            last[key] = row
    places = [
        {
            "topic": topic,
            "shard": shard,
            "epoch": row.epoch,
            "xid": row.xid,
            "seq": row.seq,
            "at": at_text(row.at_us),
            "events": applied if index == 0 else 0,
        }
        for index, ((topic, shard), row) in enumerate(last.items())
    ]
    await connection.execute(
        MOVE_PLACES, {"consumer": consumer.name, "places": _ENCODER.encode(places).decode()}
    )


async def _find_poison(
    pool: Pool, consumer: Consumer, rows: Sequence[Recorded]
) -> dict[str, tuple[int, str]]:
    """First event of each stream that cannot be applied: tried stream by stream and rolled back."""
    found: dict[str, tuple[int, str]] = {}
    async with pool.connection() as connection:
        for stream in dict.fromkeys(row.stream for row in rows):
            own = [row for row in rows if row.stream == stream]
            fresh, _ = await _new_rows(connection, consumer, own)
            found_here = await _first_poison(connection, consumer, fresh)
            if found_here is not None:
                found[stream] = found_here
    return found


async def _first_poison(
    connection: Connection, consumer: Consumer, rows: Sequence[Recorded]
) -> tuple[int, str] | None:
    """The first event that fails, by bisection: a prefix fails if and only if it holds it."""
    reason = await _failure_of(connection, consumer, rows)
    if reason is None:
        return None
    good, bad = 0, len(rows)
    while bad - good > 1:
        middle = (good + bad) // 2
        failure = await _failure_of(connection, consumer, rows[:middle])
        if failure is None:
            good = middle
        else:
            bad, reason = middle, failure
    return rows[bad - 1].version, reason


async def _failure_of(
    connection: Connection, consumer: Consumer, rows: Sequence[Recorded]
) -> str | None:
    """Why these events cannot be applied, or None; tried and rolled back."""
    try:
        async with connection.transaction(force_rollback=True):
            await consumer.handle(connection, _decoded(rows))
    except POISON as error:
        return f"{type(error).__name__}: {error}"
    return None


async def _park(
    connection: Connection, consumer: Consumer, stream: str, version: int, reason: str
) -> None:
    _log.error("parked", consumer=consumer.name, stream=stream, version=version, reason=reason)
    await connection.execute(
        PARK,
        {
            "consumer": consumer.name,
            "stream": stream,
            "version": version,
            "reason": reason[:500],
        },
    )
