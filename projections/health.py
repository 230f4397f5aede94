"""How far consumers are behind the log, what they have set aside, and whether a read is fresh."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import msgspec

from backend.kit.clock import Clock
from backend.kit.postgres import Connection, Pool, fetch_all, fetch_one

LAG: Final = """
WITH consumer AS MATERIALIZED (
    SELECT DISTINCT consumer, topic
    FROM json_to_recordset(%(topics)s::json) AS i(consumer text, topic text)
), newest AS MATERIALIZED (
    SELECT topic, shard, epoch, xid, seq, at FROM event_log
    ORDER BY epoch DESC, xid DESC, seq DESC LIMIT %(rows_max)s
), part AS MATERIALIZED (
    SELECT c.consumer, n.topic, n.shard, p.epoch, p.xid, p.seq
    FROM (SELECT DISTINCT topic, shard FROM newest) n
    JOIN consumer c ON c.topic = n.topic
    LEFT JOIN LATERAL (
        SELECT epoch, xid, seq FROM consumer_places
        WHERE consumer_places.consumer = c.consumer
            AND ((consumer_places.topic = n.topic AND consumer_places.shard = n.shard)
                OR consumer_places.topic = '*')
        ORDER BY epoch DESC, xid DESC, seq DESC LIMIT 1
    ) p ON true
), behind AS (
    SELECT part.consumer, count(*) AS rows, min(n.at) AS oldest
    FROM part JOIN newest n ON n.topic = part.topic AND n.shard = part.shard
    WHERE part.epoch IS NULL OR (n.epoch, n.xid, n.seq) > (part.epoch, part.xid, part.seq)
    GROUP BY part.consumer
)
SELECT c.consumer, coalesce(behind.rows, 0),
    greatest(0, coalesce(extract(epoch FROM clock_timestamp() - behind.oldest) * 1000, 0))::bigint,
    (SELECT count(*) FROM parked WHERE parked.consumer = c.consumer),
    (SELECT coalesce(sum(events), 0)::bigint FROM consumer_places
        WHERE consumer_places.consumer = c.consumer)
FROM (SELECT DISTINCT consumer FROM consumer) c
LEFT JOIN behind ON behind.consumer = c.consumer
ORDER BY c.consumer
"""
APPLIED: Final = """
SELECT version FROM consumer_streams WHERE consumer = %(consumer)s AND stream = %(stream)s
"""

LAG_ROWS_MAX: Final = 10_000
"""Counted among this many newest events; a consumer further behind is reported as this far."""
LAG_MS_MAX: Final = 60_000
"""Further behind than this is an alarm."""
WAIT_MS_MAX: Final = 300
_POLLS_S: Final = (0.005, 0.01, 0.02, 0.04)

_ENCODER: Final = msgspec.json.Encoder()


class Named(Protocol):
    """What is asked of a consumer or a projection here."""

    @property
    def name(self) -> str: ...

    @property
    def topics(self) -> tuple[str, ...]: ...


class Lag(msgspec.Struct, frozen=True):
    """`rows` not applied yet (at most LAG_ROWS_MAX are counted), the oldest `behind_ms` ago."""

    consumer: str
    rows: int
    behind_ms: int
    parked: int
    events: int
    """Applied since the consumer started from the beginning."""


class Freshness(msgspec.Struct, frozen=True):
    """Whether a projection has reached a version; `applied` is how far it has got."""

    stale: bool
    applied: int


async def list_lags(connection: Connection, consumers: Sequence[Named]) -> list[Lag]:
    """One row per consumer, by name; it works for both transports."""
    topics = [
        {"consumer": consumer.name, "topic": topic}
        for consumer in consumers
        for topic in consumer.topics
    ]
    given = {"topics": _ENCODER.encode(topics).decode(), "rows_max": LAG_ROWS_MAX}
    return [Lag(*row) for row in await fetch_all(connection, LAG, given)]


def alarms_of(lags: Iterable[Lag], lag_ms_max: int = LAG_MS_MAX) -> tuple[str, ...]:
    """A sentence for each thing that an operator must look at; empty when all is well."""
    alarms: list[str] = []
    for lag in lags:
        if lag.parked:
            alarms.append(f"{lag.consumer}: {lag.parked} parked")
        if lag.behind_ms > lag_ms_max:
            alarms.append(f"{lag.consumer}: {lag.behind_ms // 1000} s behind")
    return tuple(alarms)


async def wait_for(
    pool: Pool,
    clock: Clock,
    consumer: str,
    stream: str,
    version: int,
    timeout_ms: int = WAIT_MS_MAX,
) -> Freshness:
    """Read your writes: waits until a consumer has applied a version, at most 300 ms."""
    deadline_s = clock.monotonic_s() + min(timeout_ms, WAIT_MS_MAX) / 1000
    polls = 0
    while True:
        async with pool.connection() as connection:
            row = await fetch_one(connection, APPLIED, {"consumer": consumer, "stream": stream})
        applied: int = 0 if row is None else row[0]
        left_s = deadline_s - clock.monotonic_s()
        if applied >= version or left_s <= 0:
            return Freshness(applied < version, applied)
        await asyncio.sleep(min(left_s, _POLLS_S[min(polls, len(_POLLS_S) - 1)]))
        polls += 1
