"""Append: one statement, its transaction's first and only write. What does not match does not land.

Streams that one command ties together form a unit; a unit lands whole or not at all.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec
from psycopg import AsyncRawCursor

from backend.kit.postgres import Connection, fetch_all

APPEND: Final = """
WITH stream_in AS MATERIALIZED (
    SELECT * FROM json_to_recordset($1::json)
        AS i(stream text, unit integer, expected bigint, version bigint, hash text, state text)
), command_in AS MATERIALIZED (
    SELECT * FROM json_to_recordset($2::json)
        AS i(command_id uuid, unit integer, body_hash text, stream text, version bigint)
), lease_in AS MATERIALIZED (
    SELECT * FROM json_to_recordset($3::json)
        AS i(request_id uuid, unit integer, act text, stream text, seconds integer,
             generation bigint)
), taken AS MATERIALIZED (
    SELECT i.unit, c.command_id, c.body_hash, c.stream, c.version
    FROM command_in i CROSS JOIN LATERAL (
        SELECT * FROM commands c WHERE c.command_id = i.command_id LIMIT 1
    ) c
), locked AS MATERIALIZED (
    SELECT s.stream FROM streams s JOIN stream_in i ON s.stream = i.stream
    WHERE s.stream = ANY (ARRAY(SELECT stream FROM stream_in))
        AND s.version = i.expected AND s.last_xid < pg_current_xact_id()
    ORDER BY s.stream FOR UPDATE OF s
), guarded AS MATERIALIZED (
    SELECT l.request_id FROM leases l JOIN lease_in i ON l.request_id = i.request_id
    WHERE l.request_id = ANY (ARRAY(SELECT request_id FROM lease_in WHERE act = 'sweep'))
        AND l.generation = i.generation AND l.until < clock_timestamp()
        AND (SELECT count(*) FROM locked) >= 0
    ORDER BY l.request_id FOR UPDATE OF l
), lost AS MATERIALIZED (
    SELECT i.unit FROM stream_in i
    WHERE i.expected > 0 AND i.stream NOT IN (SELECT stream FROM locked)
    UNION ALL SELECT unit FROM taken
    UNION ALL SELECT i.unit FROM lease_in i
    WHERE i.act = 'sweep' AND i.request_id NOT IN (SELECT request_id FROM guarded)
    UNION ALL SELECT i.unit FROM stream_in i
    WHERE (SELECT read_only_reason FROM site) IS NOT NULL
), created AS (
    INSERT INTO streams (stream, version, hash, last_xid, state)
    SELECT i.stream, i.version, decode(i.hash, 'base64'), pg_current_xact_id(),
        decode(i.state, 'base64')
    FROM stream_in i WHERE i.expected = 0 AND i.unit NOT IN (SELECT unit FROM lost)
    ORDER BY i.stream ON CONFLICT (stream) DO NOTHING RETURNING stream
), landed AS MATERIALIZED (
    SELECT i.unit FROM stream_in i
    WHERE i.unit NOT IN (SELECT unit FROM lost)
    GROUP BY i.unit
    HAVING bool_and(i.expected > 0 OR i.stream IN (SELECT stream FROM created))
), half AS (
    SELECT refuse_half_a_unit() FROM stream_in i
    WHERE i.stream IN (SELECT stream FROM created) AND i.unit NOT IN (SELECT unit FROM landed)
), updated AS (
    UPDATE streams s SET version = i.version, hash = decode(i.hash, 'base64'),
        last_xid = pg_current_xact_id(), state = decode(i.state, 'base64')
    FROM stream_in i
    WHERE s.stream = ANY (ARRAY(SELECT stream FROM locked)) AND s.stream = i.stream
        AND i.version > i.expected AND i.unit IN (SELECT unit FROM landed)
), logged AS (
    INSERT INTO event_log (epoch, xid, event_id, command_id, topic, shard, stream, version, type,
        schema, at, payload, prev_hash, hash)
    SELECT (SELECT epoch FROM site), pg_current_xact_id(), e.event_id, e.command_id, e.topic,
        e.shard, e.stream, e.version, e.type, e.schema, e.at, decode(e.payload, 'base64'),
        decode(e.prev_hash, 'base64'), decode(e.hash, 'base64')
    FROM json_to_recordset($4::json)
        AS e(ordinal integer, unit integer, event_id uuid, command_id uuid, topic text,
             shard smallint, stream text, version bigint, type text, schema smallint,
             at timestamptz, payload text, prev_hash text, hash text)
    WHERE e.unit IN (SELECT unit FROM landed)
    ORDER BY e.ordinal
), done AS (
    INSERT INTO commands (command_id, body_hash, stream, version)
    SELECT i.command_id, decode(i.body_hash, 'base64'), i.stream, i.version
    FROM command_in i WHERE i.unit IN (SELECT unit FROM landed)
    ORDER BY i.command_id
), opened AS (
    INSERT INTO leases (request_id, stream, until)
    SELECT i.request_id, i.stream, clock_timestamp() + make_interval(secs => i.seconds)
    FROM lease_in i WHERE i.act = 'open' AND i.unit IN (SELECT unit FROM landed)
), closed AS (
    DELETE FROM leases WHERE request_id = ANY (ARRAY(
        SELECT i.request_id FROM lease_in i
        WHERE i.act IN ('close', 'sweep') AND i.unit IN (SELECT unit FROM landed)))
)
SELECT (SELECT read_only_reason FROM site),
    coalesce((SELECT array_agg(DISTINCT unit) FROM landed), '{}'),
    coalesce((SELECT json_agg(json_build_array(
        command_id, encode(body_hash, 'hex'), stream, version)) FROM taken), '[]'),
    (SELECT count(*) FROM half)
"""

TAKEN: Final = """
SELECT command_id, body_hash, stream, version FROM commands WHERE command_id = ANY(%(ids)s)
"""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ENCODER: Final = msgspec.json.Encoder()


class StreamIn(msgspec.Struct, frozen=True, gc=False):
    """A stream's row: the version it must have, and what it becomes. Equal versions: only read."""

    stream: str
    unit: int
    expected: int
    version: int
    hash: str
    state: str


class EventIn(msgspec.Struct, frozen=True, gc=False):
    ordinal: int
    unit: int
    event_id: UUID
    command_id: UUID
    topic: str
    shard: int
    stream: str
    version: int
    type: str
    schema: int
    at: str
    payload: str
    prev_hash: str
    hash: str


class CommandIn(msgspec.Struct, frozen=True, gc=False):
    command_id: UUID
    unit: int
    body_hash: str
    stream: str
    version: int


class LeaseIn(msgspec.Struct, frozen=True, gc=False):
    """`act`: open (for `seconds`), close, or sweep: lands only for `generation`, and only once it
    ran out.
    """

    request_id: str
    unit: int
    act: str
    stream: str
    seconds: int = 0
    generation: int = 0


class Taken(msgspec.Struct, frozen=True):
    """A command id that the log already has, and where its first event lies."""

    command_id: UUID
    body_hash: bytes
    stream: str
    version: int


class AppendInput(msgspec.Struct):
    streams: list[StreamIn]
    events: list[EventIn]
    commands: list[CommandIn]
    leases: list[LeaseIn]


class AppendResult(msgspec.Struct, frozen=True):
    read_only_reason: str | None
    landed: frozenset[int]
    """Units."""
    taken: tuple[Taken, ...]


def text_of(data: bytes) -> str:
    """Bytes as they travel inside the JSON arguments."""
    return b64encode(data).decode("ascii")


def at_text(at_us: int) -> str:
    """RFC 3339 with microseconds, UTC, as PostgreSQL reads it exactly."""
    return (_EPOCH + timedelta(microseconds=at_us)).isoformat()


async def append(connection: Connection, given: AppendInput) -> AppendResult:
    """Runs the statement. `connection` is in autocommit mode.

    Raises psycopg errors: a concurrent twin of one of the commands (unique violation) or half a
    unit (serialization failure) fails the whole statement and nothing lands.
    """
    # Raw: the statement is longer than what psycopg keeps converted, and this is the hot path.
    async with AsyncRawCursor(connection) as cursor:
        await cursor.execute(APPEND, _arguments(given), prepare=True)
        row = await cursor.fetchone()
    assert row is not None
    reason, landed, taken, _ = row
    return AppendResult(
        reason,
        frozenset(landed),
        tuple(
            Taken(UUID(command), bytes.fromhex(body), stream, version)
            for command, body, stream, version in taken
        ),
    )


async def find_taken(connection: Connection, command_ids: Sequence[UUID]) -> tuple[Taken, ...]:
    """Which of these ids the log has, as committed now."""
    rows = await fetch_all(connection, TAKEN, {"ids": list(command_ids)})
    return tuple(
        Taken(command_id, bytes(body_hash), stream, version)
        for command_id, body_hash, stream, version in rows
    )


def _arguments(given: AppendInput) -> list[str]:
    return [
        _ENCODER.encode(rows).decode()
        for rows in (given.streams, given.commands, given.leases, given.events)
    ]
