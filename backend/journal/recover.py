"""Brings back from Kafka what the table lacks after an older backup was restored, in a new epoch.

It imports only events that continue a verified chain, and never overwrites one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog

from backend.journal.append import at_text, text_of
from backend.journal.batch import Head
from backend.journal.chain import hash_of
from backend.journal.fold import Folds
from backend.journal.heads import load_heads
from backend.journal.kafka_check import identity_of
from backend.journal.publisher_place import AHEAD, CLOSE_SITE, OPEN_SITE, find_absent, take_lock
from backend.journal.reader import site_of
from backend.kit.kafka import read_topics, recorded_of
from backend.kit.postgres import Connection, connect
from schemas.errors import SiteProblem
from schemas.event import EVENT_TOPICS, Recorded, shard_of
from schemas.registry import decode

NEW_EPOCH: Final = "UPDATE site SET epoch = epoch + 1 RETURNING epoch"
FREE_STREAMS: Final = """
UPDATE streams SET last_xid = pg_current_xact_id() WHERE last_xid > pg_current_xact_id()
"""
IMPORT: Final = """
WITH given AS MATERIALIZED (
    SELECT * FROM json_to_recordset(%(events)s::json)
        AS e(ordinal integer, event_id uuid, command_id uuid, topic text, shard smallint,
             stream text, version bigint, type text, schema smallint, at timestamptz,
             payload text, prev_hash text, hash text)
), logged AS (
    INSERT INTO event_log (epoch, xid, event_id, command_id, topic, shard, stream, version, type,
        schema, at, payload, prev_hash, hash)
    SELECT (SELECT epoch FROM site), pg_current_xact_id(), event_id, command_id, topic, shard,
        stream, version, type, schema, at, decode(payload, 'base64'),
        decode(prev_hash, 'base64'), decode(hash, 'base64')
    FROM given ORDER BY ordinal
), done AS (
    INSERT INTO commands (command_id, body_hash, stream, version)
    SELECT DISTINCT ON (command_id) command_id, '', stream, version
    FROM given ORDER BY command_id, ordinal
    ON CONFLICT DO NOTHING
)
INSERT INTO streams (stream, version, hash, last_xid, state)
SELECT stream, version, decode(hash, 'base64'), pg_current_xact_id(), decode(state, 'base64')
FROM json_to_recordset(%(streams)s::json)
    AS s(stream text, version bigint, hash text, state text)
ORDER BY stream
ON CONFLICT (stream) DO UPDATE SET version = excluded.version, hash = excluded.hash,
    last_xid = excluded.last_xid, state = excluded.state
"""
OPEN_LEASES: Final = """
INSERT INTO leases (request_id, stream, until)
SELECT request_id, stream, clock_timestamp()
FROM json_to_recordset(%(leases)s::json) AS l(request_id uuid, stream text)
ORDER BY request_id ON CONFLICT DO NOTHING
"""

LOCK_EVERY_S: Final = 0.1
LOCK_ATTEMPTS_MAX: Final = 300
_LEASE_STREAMS: Final = 500
_ENCODER: Final = msgspec.json.Encoder()

_log = structlog.get_logger("journal.recover")

OpenRequests = Callable[[str, Any], Iterable[str]]
"""(stream, its state) → ids of requests that still hold something and need a lease."""


class Recovered(msgspec.Struct, frozen=True):
    """What `recover` did."""

    epoch: int
    events: int
    streams: int


def no_open_requests(stream: str, state: Any) -> Iterable[str]:
    """For logs whose streams hold nothing."""
    return ()


async def recover(
    database_url: str,
    bootstrap: str,
    folds: Folds,
    open_requests: OpenRequests = no_open_requests,
) -> Recovered:
    """Imports every event that Kafka has and the table lacks, then lets the site write again.

    The site is read-only meanwhile. Run again after a failure, it goes on where it was. Raises
    SiteProblem where histories fork, a chain does not verify or a publisher still runs;
    KafkaUnavailable; MalformedRecord; psycopg errors.
    """
    await identity_of(bootstrap)
    async with await connect(database_url, application="suanpan recover") as connection:
        await _take_lock(connection)
        await connection.execute(CLOSE_SITE, {"reason": AHEAD})
        epoch = await _new_epoch(connection)
        touched: set[str] = set()
        events = 0
        site_id, _, _ = await site_of(connection)
        async with aclosing(read_topics(bootstrap, EVENT_TOPICS)) as batches:
            async for batch in batches:
                rows = [recorded_of(record) for record in batch]
                fresh = await _import(connection, folds, site_id, rows)
                events += len(fresh)
                touched.update(row.stream for row in fresh)
        await _lease(connection, folds, site_id, sorted(touched), open_requests)
        await connection.execute(OPEN_SITE, {"reason": AHEAD})
    _log.warning("recovered", epoch=epoch, events=events, streams=len(touched))
    return Recovered(epoch, events, len(touched))


async def _take_lock(connection: Connection) -> None:
    """The publisher's own lock: it gives it back while it waits for us."""
    for _ in range(LOCK_ATTEMPTS_MAX):
        if await take_lock(connection):
            return
        await asyncio.sleep(LOCK_EVERY_S)
    raise SiteProblem("a publisher is at work: stop it, then run `suanpan recover`")


async def _new_epoch(connection: Connection) -> int:
    """Restored transaction numbers may lie above the server's: order and guards begin anew."""
    async with connection.transaction():
        cursor = await connection.execute(NEW_EPOCH)
        row = await cursor.fetchone()
        assert row is not None, "a migrated database has its site row"
        await connection.execute(FREE_STREAMS)
    return row[0]


async def _import(
    connection: Connection, folds: Folds, site_id: UUID, rows: Sequence[Recorded]
) -> list[Recorded]:
    """Appends those of `rows` that the table lacks and returns them; one transaction."""
    heads = {
        stream: head
        for stream, (head, _) in (
            await load_heads(connection, folds, site_id, {row.stream for row in rows})
        ).items()
    }
    known: list[Recorded] = []
    fresh: dict[tuple[str, int], Recorded] = {}
    for row in rows:
        earlier = fresh.get((row.stream, row.version))
        if earlier is not None:
            _expect_same(row, earlier.hash)
        elif row.version <= heads[row.stream].version:
            known.append(row)
        else:
            heads[row.stream] = _continued(folds, heads[row.stream], row)
            fresh[row.stream, row.version] = row
    absent = await find_absent(connection, known) if known else None
    if absent is not None:
        raise _forked(absent[0], absent[1])
    if fresh:
        await _append(connection, folds, list(fresh.values()), heads)
    return list(fresh.values())


def _continued(folds: Folds, head: Head, row: Recorded) -> Head:
    """The head after `row`, which must follow it by version, chain and place."""
    if row.version != head.version + 1:
        raise _broken(row, f"follows version {head.version}")
    if row.prev_hash != head.hash:
        raise _broken(row, "is not chained to the event before it")
    if row.hash != hash_of(row):
        raise _broken(row, "does not have the hash it claims")
    if row.shard != shard_of(row.stream):
        raise _broken(row, f"lies in partition {row.shard}")
    try:
        state = folds.of(row.stream).apply(head.state, decode(row), row.version, row.at_us)
    except (KeyError, ValueError) as error:
        raise _broken(row, f"cannot be applied: {error}") from error
    return Head(row.version, row.hash, state)


async def _append(
    connection: Connection, folds: Folds, fresh: list[Recorded], heads: dict[str, Head]
) -> None:
    streams = {row.stream: heads[row.stream] for row in fresh}
    arguments = {
        "events": _ENCODER.encode([_event_in(i, row) for i, row in enumerate(fresh)]).decode(),
        "streams": _ENCODER.encode(
            [
                {
                    "stream": stream,
                    "version": head.version,
                    "hash": text_of(head.hash),
                    "state": text_of(folds.of(stream).encode(head.state)),
                }
                for stream, head in streams.items()
            ]
        ).decode(),
    }
    async with connection.transaction():
        await connection.execute(IMPORT, arguments)


def _event_in(ordinal: int, row: Recorded) -> dict[str, Any]:
    return {
        "ordinal": ordinal,
        "event_id": row.event_id,
        "command_id": row.command_id,
        "topic": row.topic,
        "shard": row.shard,
        "stream": row.stream,
        "version": row.version,
        "type": row.type,
        "schema": row.schema,
        "at": at_text(row.at_us),
        "payload": text_of(row.payload),
        "prev_hash": text_of(row.prev_hash),
        "hash": text_of(row.hash),
    }


async def _lease(
    connection: Connection,
    folds: Folds,
    site_id: UUID,
    streams: Sequence[str],
    open_requests: OpenRequests,
) -> None:
    """Nobody answers for recovered holds: leases that have run out hand them to the sweep."""
    for start in range(0, len(streams), _LEASE_STREAMS):
        page = streams[start : start + _LEASE_STREAMS]
        heads = await load_heads(connection, folds, site_id, page)
        leases = [
            {"request_id": request_id, "stream": stream}
            for stream, (head, _) in heads.items()
            for request_id in open_requests(stream, head.state)
        ]
        if leases:
            await connection.execute(OPEN_LEASES, {"leases": _ENCODER.encode(leases).decode()})


def _expect_same(row: Recorded, digest: bytes) -> None:
    if row.hash != digest:
        raise _forked(row.stream, row.version)


def _forked(stream: str, version: int) -> SiteProblem:
    return SiteProblem(
        f"{stream} has one event {version} in Kafka and another in the database: nothing can "
        "decide between them; restore a backup made before the two diverged"
    )


def _broken(row: Recorded, what: str) -> SiteProblem:
    return SiteProblem(
        f"Kafka's record of {row.stream} version {row.version} ({row.topic}/{row.shard}) {what}"
    )
