"""Streams that a consumer could not go on with: listed, and tried again once the cause is gone.

A retry applies what waited in order and in one transaction, or leaves everything as it was.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import msgspec

from backend.journal.consumer import (
    LOAD_STREAMS,
    POISON,
    SAVE_STREAMS,
    Arrived,
    Consumer,
    PoisonEvent,
)
from backend.journal.reader import PAGE_ROWS, read_stream
from backend.kit.postgres import Connection, Pool, fetch_all, fetch_one
from schemas.event import Recorded, shard_of, topic_of
from schemas.registry import decode

LIST: Final = """
SELECT consumer, stream, version, reason, at FROM parked ORDER BY consumer, stream
LIMIT %(count_max)s
"""
LOCK_BOTH_PLACES: Final = """
SELECT topic, shard FROM consumer_places
WHERE consumer = %(consumer)s AND (topic = '*' OR topic = %(topic)s AND shard = %(shard)s)
ORDER BY topic, shard FOR UPDATE
"""
UNPARK: Final = """
DELETE FROM parked WHERE consumer = %(consumer)s AND stream = %(stream)s RETURNING version
"""

_ENCODER: Final = msgspec.json.Encoder()


class Parked(msgspec.Struct, frozen=True):
    """A stream that waits, and the version it waits at."""

    consumer: str
    stream: str
    version: int
    reason: str
    at: datetime


async def list_parked(connection: Connection, count_max: int = 1_000) -> list[Parked]:
    """What waits, by consumer and stream."""
    rows = await fetch_all(connection, LIST, {"count_max": count_max})
    return [Parked(*row) for row in rows]


async def retry_parked(pool: Pool, consumer: Consumer, stream: str) -> int:
    """Applies the waiting events of a stream; how many, 0 where nothing was parked.

    Raises PoisonEvent when one still cannot be applied: then the stream stays parked as it was.
    """
    # The place keeps the transport out: what it would drop as parked meanwhile, we might miss.
    arguments: dict[str, Any] = {
        "consumer": consumer.name,
        "stream": stream,
        "streams": [stream],
        "topic": topic_of(stream),
        "shard": shard_of(stream),
    }
    try:
        async with pool.connection() as connection, connection.transaction():
            await fetch_all(connection, LOCK_BOTH_PLACES, arguments)
            if await fetch_one(connection, UNPARK, arguments) is None:
                return 0
            known = await fetch_one(connection, LOAD_STREAMS, arguments)
            return await _apply_from(connection, consumer, stream, known[1] if known else 0)
    except POISON as error:
        raise PoisonEvent(str(error)) from error


async def _apply_from(connection: Connection, consumer: Consumer, stream: str, version: int) -> int:
    applied = 0
    last: Recorded | None = None
    while page := await read_stream(connection, stream, version + applied + 1, PAGE_ROWS):
        await consumer.handle(connection, [Arrived(row, decode(row)) for row in page])
        applied += len(page)
        last = page[-1]
    if last is not None:
        saved = [{"stream": stream, "version": last.version, "hash": last.hash.hex()}]
        await connection.execute(
            SAVE_STREAMS, {"consumer": consumer.name, "streams": _ENCODER.encode(saved).decode()}
        )
    return applied
