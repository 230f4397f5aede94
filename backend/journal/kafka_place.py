"""Where an event lies in Kafka: its partition and offset, or that it is not there yet.

An offset is counted back from the publisher's last record of the partition, and given only where no
record was sent twice since: it is exact or absent.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from backend.kit.clock import Clock
from backend.kit.postgres import Connection, Pool, fetch_one

FIND_PLACE: Final = """
WITH entry AS MATERIALIZED (
    SELECT e.topic, e.shard, e.epoch, e.xid, e.seq, p.epoch AS sent_epoch, p.xid AS sent_xid,
        p.seq AS sent_seq, (e.epoch, e.xid, e.seq) <= (p.epoch, p.xid, p.seq) AS sent
    FROM event_log e, publisher p
    WHERE e.stream = %(stream)s AND e.version = %(version)s LIMIT 1
), later AS MATERIALIZED (
    SELECT count(*) AS rows, count(*) FILTER (WHERE l.same) AS same
    FROM entry CROSS JOIN LATERAL (
        SELECT l.topic = entry.topic AND l.shard = entry.shard AS same FROM event_log l
        WHERE (l.epoch, l.xid, l.seq) > (entry.epoch, entry.xid, entry.seq)
            AND (l.epoch, l.xid, l.seq) <= (entry.sent_epoch, entry.sent_xid, entry.sent_seq)
        ORDER BY l.epoch, l.xid, l.seq LIMIT %(rows_max)s
    ) l
)
SELECT entry.topic, entry.shard::integer, entry.sent,
    CASE WHEN entry.sent AND later.rows < %(rows_max)s AND h.run_offset = h.record_offset
        AND (h.run_epoch, h.run_xid, h.run_seq) <= (entry.epoch, entry.xid, entry.seq)
    THEN h.record_offset - later.same END
FROM entry CROSS JOIN later
LEFT JOIN publisher_heads h ON h.topic = entry.topic AND h.shard = entry.shard
"""
ROWS_MAX: Final = 100_000
"""Further back than this many rows of the log nothing is counted."""
WAIT_S: Final = 0.3
_POLLS_S: Final = (0.01, 0.02, 0.04)


class LogPlace(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where an entry lies. Without Kafka only the stream and its version are said."""

    stream: str
    version: int
    topic: str | UnsetType = UNSET
    partition: int | UnsetType = UNSET
    offset: int | UnsetType = UNSET
    """Absent as well where something was sent twice since, or it is long ago."""
    pending: bool = False
    """Recorded, and not in Kafka yet: it will be."""


class LogPlaces:
    """One per process; `has_kafka`: whether this site publishes to Kafka."""

    def __init__(self, pool: Pool, clock: Clock, *, has_kafka: bool) -> None:
        self._pool: Final = pool
        self._clock: Final = clock
        self._has_kafka: Final = has_kafka

    async def find(self, stream: str, version: int) -> LogPlace:
        """The place of a recorded event; waits up to WAIT_S for the publisher."""
        if not self._has_kafka:
            return LogPlace(stream, version)
        deadline_s = self._clock.monotonic_s() + WAIT_S
        polls = 0
        while True:
            async with self._pool.connection() as connection:
                place = await find_place(connection, stream, version)
            if not place.pending or self._clock.monotonic_s() > deadline_s:
                return place
            await asyncio.sleep(_POLLS_S[min(polls, len(_POLLS_S) - 1)])
            polls += 1


async def find_place(connection: Connection, stream: str, version: int) -> LogPlace:
    """The place as it is now. A row that was exported and detached is said by its version alone."""
    given = {"stream": stream, "version": version, "rows_max": ROWS_MAX}
    row = await fetch_one(connection, FIND_PLACE, given)
    if row is None:
        return LogPlace(stream, version)
    topic, shard, sent, offset = row
    return LogPlace(
        stream, version, topic, shard, UNSET if offset is None else offset, pending=not sent
    )
