"""What the publisher remembers in Postgres: who leads, how far, and where Kafka's records end.

Changed only under the leader's number, so that a leader who lost the lock changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from backend.kit.kafka_admin import ClusterIdentity
from backend.kit.postgres import Connection, fetch_all, fetch_one
from schemas.event import START, Position, Recorded

LOCK_KEY: Final = 0x5375616E_707562
TAKE_LOCK: Final = "SELECT pg_try_advisory_lock(%(key)s::bigint)"
LEAD: Final = """
UPDATE publisher SET leader_epoch = leader_epoch + 1
RETURNING leader_epoch, epoch, xid::text::bigint, seq, cluster_id, topic_ids::text
"""
LIST_HEADS: Final = "SELECT topic, shard::integer, record_offset, hash FROM publisher_heads"
MOVE: Final = """
WITH mine AS (
    UPDATE publisher SET epoch = %(epoch)s, xid = %(xid)s::text::xid8, seq = %(seq)s
    WHERE leader_epoch = %(leader_epoch)s RETURNING leader_epoch
), heads AS (
    INSERT INTO publisher_heads (topic, shard, record_offset, hash, run_offset, run_epoch, run_xid,
        run_seq)
    SELECT i.topic, i.shard, i.record_offset, decode(i.hash, 'hex'), i.record_offset,
        coalesce(h.run_epoch, i.epoch), coalesce(h.run_xid, i.xid::xid8),
        coalesce(h.run_seq, i.seq)
    FROM mine, json_to_recordset(%(heads)s::json)
        AS i(topic text, shard smallint, record_offset bigint, hash text, rows bigint,
             epoch integer, xid text, seq bigint)
    LEFT JOIN publisher_heads h ON h.topic = i.topic AND h.shard = i.shard
        AND h.run_offset = h.record_offset AND h.record_offset + i.rows = i.record_offset
    ORDER BY i.topic, i.shard
    ON CONFLICT (topic, shard) DO UPDATE
        SET record_offset = excluded.record_offset, hash = excluded.hash,
            run_offset = excluded.run_offset, run_epoch = excluded.run_epoch,
            run_xid = excluded.run_xid, run_seq = excluded.run_seq
)
SELECT count(*) FROM mine
"""
BEGIN_AGAIN: Final = """
WITH mine AS (
    UPDATE publisher SET epoch = 0, xid = '0', seq = 0, cluster_id = %(cluster_id)s,
        topic_ids = %(topic_ids)s::jsonb
    WHERE leader_epoch = %(leader_epoch)s RETURNING leader_epoch
), heads AS (
    DELETE FROM publisher_heads USING mine
), keys AS (
    UPDATE data_keys SET published = false FROM mine WHERE data_keys.published
), epochs AS (
    UPDATE key_epochs SET published = false FROM mine WHERE key_epochs.published
), tombstones AS (
    UPDATE key_tombstones SET published = false FROM mine WHERE key_tombstones.published
)
SELECT count(*) FROM mine
"""
LAG: Final = """
WITH behind AS (
    SELECT e.at FROM event_log e, publisher p
    WHERE (e.epoch, e.xid, e.seq) > (p.epoch, p.xid, p.seq)
    ORDER BY e.epoch, e.xid, e.seq LIMIT %(rows_max)s
)
SELECT count(*), greatest(extract(epoch FROM clock_timestamp() - min(at)), 0)::float8 FROM behind
"""
FIND_ABSENT: Final = """
SELECT i.stream, i.version, e.hash IS NOT NULL
FROM json_to_recordset(%(rows)s::json) AS i(stream text, version bigint, hash text)
LEFT JOIN event_log e ON e.stream = i.stream AND e.version = i.version
WHERE e.hash IS DISTINCT FROM decode(i.hash, 'hex')
ORDER BY i.stream, i.version LIMIT 1
"""
CLOSE_SITE: Final = """
UPDATE site SET read_only_reason = %(reason)s WHERE read_only_reason IS NULL
"""
OPEN_SITE: Final = """
UPDATE site SET read_only_reason = NULL WHERE read_only_reason = %(reason)s
"""

AHEAD: Final = (
    "Kafka holds events that this database lacks, as after restoring an older backup: "
    "run `suanpan recover`"
)
RESTORING: Final = (
    "this database is being restored from Kafka: run `suanpan restore --from kafka` until it has "
    "finished"
)
LAG_ROWS_MAX: Final = 100_000

_ENCODER: Final = msgspec.json.Encoder()


class LostLeadership(RuntimeError):
    """Somebody else leads now; what we sent and did not remember, they send again."""


class Head(msgspec.Struct, frozen=True):
    """The last record we know of in a partition."""

    offset: int
    hash: bytes
    rows: int = 0
    """How many were sent since the head before this one."""
    since: Position | None = None
    """A row that is known to lie where counting back from `offset` finds it, unless this head
    follows the one before without a gap. None: no such row is known.
    """


class Place(msgspec.Struct, frozen=True):
    """How far a leader's predecessors came, in the table and in Kafka."""

    leader_epoch: int
    position: Position
    identity: ClusterIdentity
    heads: dict[tuple[str, int], Head]


class Lag(msgspec.Struct, frozen=True):
    """What Kafka does not have yet."""

    rows: int
    """At most LAG_ROWS_MAX: more is not counted."""
    seconds: float
    """Age of the oldest of them."""


async def take_lock(connection: Connection) -> bool:
    """Whether we lead now, for as long as `connection` lives."""
    row = await fetch_one(connection, TAKE_LOCK, {"key": LOCK_KEY})
    assert row is not None
    return bool(row[0])


async def lead(connection: Connection) -> Place:
    """A new leader's number, and the place to go on from. The lock must be held."""
    row = await fetch_one(connection, LEAD)
    assert row is not None, "a migrated database has its publisher row"
    leader_epoch, epoch, xid, seq, cluster_id, topic_ids = row
    identity = ClusterIdentity(cluster_id, msgspec.json.decode(topic_ids, type=dict[str, str]))
    heads = {
        (topic, shard): Head(offset, bytes(digest))
        for topic, shard, offset, digest in await fetch_all(connection, LIST_HEADS)
    }
    return Place(leader_epoch, Position(epoch, xid, seq), identity, heads)


async def begin_again(
    connection: Connection, leader_epoch: int, identity: ClusterIdentity
) -> Place:
    """The place of a publisher that fills `identity` from the start. Raises LostLeadership."""
    row = await fetch_one(
        connection,
        BEGIN_AGAIN,
        {
            "leader_epoch": leader_epoch,
            "cluster_id": identity.cluster_id,
            "topic_ids": _ENCODER.encode(identity.topic_ids).decode(),
        },
    )
    _expect_mine(row)
    return Place(leader_epoch, START, identity, {})


async def move(
    connection: Connection,
    leader_epoch: int,
    position: Position,
    heads: Mapping[tuple[str, int], Head],
) -> None:
    """Everything up to `position` is acknowledged. Raises LostLeadership."""
    rows = [_head_in(place, head) for place, head in heads.items()]
    arguments = {
        "leader_epoch": leader_epoch,
        "epoch": position.epoch,
        "xid": str(position.xid),
        "seq": position.seq,
        "heads": _ENCODER.encode(rows).decode(),
    }
    _expect_mine(await fetch_one(connection, MOVE, arguments))


async def find_lag(connection: Connection) -> Lag:
    """Rows that are not in Kafka yet, for health and metrics; any process may ask."""
    row = await fetch_one(connection, LAG, {"rows_max": LAG_ROWS_MAX})
    assert row is not None
    return Lag(row[0], row[1] or 0.0)


async def find_absent(
    connection: Connection, rows: Sequence[Recorded]
) -> tuple[str, int, bool] | None:
    """First (stream, version, whether the table has another event there) the table lacks."""
    given = [{"stream": row.stream, "version": row.version, "hash": row.hash.hex()} for row in rows]
    found = await fetch_one(connection, FIND_ABSENT, {"rows": _ENCODER.encode(given).decode()})
    return None if found is None else (found[0], found[1], found[2])


def _head_in(place: tuple[str, int], head: Head) -> dict[str, Any]:
    since = head.since
    return {
        "topic": place[0],
        "shard": place[1],
        "record_offset": head.offset,
        "hash": head.hash.hex(),
        "rows": head.rows,
        "epoch": None if since is None else since.epoch,
        "xid": None if since is None else str(since.xid),
        "seq": None if since is None else since.seq,
    }


def _expect_mine(row: tuple[Any, ...] | None) -> None:
    if row is None or row[0] != 1:
        raise LostLeadership("another publisher leads")
