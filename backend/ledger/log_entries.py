"""Events of the ledger as they were recorded, for whoever explores the log. Reads only.

Only streams of the ledger: they hold ids and amounts, nothing that is sealed.
"""

from __future__ import annotations

from typing import Any, Final, LiteralString
from uuid import UUID

import msgspec

from backend.kit.postgres import Connection
from backend.ledger.planned import fetch_planned
from backend.ledger.record_filters import LIMIT_MAX, EntryFilter
from schemas.errors import BadRequest
from schemas.event import LEDGER, Position, Recorded, topic_of

LIST_OF_STREAM: Final = """
SELECT epoch, xid::text::bigint, seq, event_id, command_id, topic, shard::integer, stream, version,
    type, schema::integer, (extract(epoch FROM at) * 1000000)::bigint, payload, prev_hash, hash
FROM event_log
WHERE stream = %(stream)s AND version < %(version)s
    AND at >= timestamptz 'epoch' + %(since_us)s * interval '1 microsecond'
    AND at < timestamptz 'epoch' + %(until_us)s * interval '1 microsecond'
    AND (%(types)s::text[] IS NULL OR type = ANY(%(types)s::text[]))
ORDER BY version DESC LIMIT %(limit)s
"""
LIST_OF_ALL: Final = """
SELECT epoch, xid::text::bigint, seq, event_id, command_id, topic, shard::integer, stream, version,
    type, schema::integer, (extract(epoch FROM at) * 1000000)::bigint, payload, prev_hash, hash
FROM (
    (SELECT e.* FROM event_log e
     WHERE e.epoch = %(epoch)s AND (e.xid, e.seq) < (%(xid)s::text::xid8, %(seq)s)
         AND (e.epoch < (SELECT site.epoch FROM site)
             OR e.xid < pg_snapshot_xmin(pg_current_snapshot()))
         AND topic = %(topic)s
         AND at >= timestamptz 'epoch' + %(since_us)s * interval '1 microsecond'
         AND at < timestamptz 'epoch' + %(until_us)s * interval '1 microsecond'
         AND (%(types)s::text[] IS NULL OR type = ANY(%(types)s::text[]))
     ORDER BY e.xid DESC, e.seq DESC LIMIT %(limit)s)
    UNION ALL
    (SELECT e.* FROM event_log e
     WHERE e.epoch < %(epoch)s
         AND (e.epoch < (SELECT site.epoch FROM site)
             OR e.xid < pg_snapshot_xmin(pg_current_snapshot()))
         AND topic = %(topic)s
         AND at >= timestamptz 'epoch' + %(since_us)s * interval '1 microsecond'
         AND at < timestamptz 'epoch' + %(until_us)s * interval '1 microsecond'
         AND (%(types)s::text[] IS NULL OR type = ANY(%(types)s::text[]))
     ORDER BY e.epoch DESC, e.xid DESC, e.seq DESC LIMIT %(limit)s)
) page
ORDER BY page.epoch DESC, page.xid DESC, page.seq DESC
LIMIT %(limit)s
"""
"""In two parts, for the same reason as the log's readers page in two."""
LIST_ONWARD: Final = """
SELECT epoch, xid::text::bigint, seq, event_id, command_id, topic, shard::integer, stream, version,
    type, schema::integer, (extract(epoch FROM at) * 1000000)::bigint, payload, prev_hash, hash
FROM event_log
WHERE stream = %(stream)s AND version > %(version)s
    AND at >= timestamptz 'epoch' + %(since_us)s * interval '1 microsecond'
    AND at < timestamptz 'epoch' + %(until_us)s * interval '1 microsecond'
    AND (%(types)s::text[] IS NULL OR type = ANY(%(types)s::text[]))
ORDER BY version LIMIT %(limit)s
"""
FIND: Final = """
SELECT epoch, xid::text::bigint, seq, event_id, command_id, topic, shard::integer, stream, version,
    type, schema::integer, (extract(epoch FROM at) * 1000000)::bigint, payload, prev_hash, hash
FROM event_log
WHERE event_id = %(event_id)s AND topic = %(topic)s
    AND (%(stream)s::text IS NULL OR stream = %(stream)s::text)
LIMIT 1
"""

_TIME_MAX_US: Final = 253_402_300_799_000_000
"""The end of the year 9999: timestamps and their texts go no further."""


def ledger_stream(stream: str) -> str:
    """A stream's name that may be explored. Raises BadRequest."""
    try:
        is_ours = topic_of(stream) == LEDGER and "\x00" not in stream and len(stream) <= 200
    except KeyError:
        is_ours = False
    if not is_ours:
        raise BadRequest("`stream` is one of the ledger's, such as account:7.")
    return stream


async def list_stream_entries(
    connection: Connection, wanted: EntryFilter, limit: int, before: int
) -> list[Recorded]:
    """Events of `wanted.stream`, newest first, at most 1,000, below the version `before`."""
    return await _rows(connection, LIST_OF_STREAM, wanted, limit, {"version": before})


async def list_entries(
    connection: Connection, wanted: EntryFilter, limit: int, before: Position
) -> list[Recorded]:
    """Events of all the ledger's streams in the log's own order, newest first, at most 1,000."""
    place = {"epoch": before.epoch, "xid": str(before.xid), "seq": before.seq, "topic": LEDGER}
    return await _rows(connection, LIST_OF_ALL, wanted, limit, place)


async def list_entries_onward(
    connection: Connection, wanted: EntryFilter, limit: int, after: int
) -> list[Recorded]:
    """Events of `wanted.stream` from the first on, behind the version `after`: for exports."""
    return await _rows(connection, LIST_ONWARD, wanted, limit, {"version": after})


async def find_entry(
    connection: Connection, event_id: UUID, stream: str | None = None
) -> Recorded | None:
    """One event of the ledger, or None; with `stream` only if it lies there."""
    arguments = {"event_id": event_id, "topic": LEDGER, "stream": stream}
    rows = await fetch_planned(connection, FIND, arguments)
    return Recorded(*rows[0]) if rows else None


async def _rows(
    connection: Connection,
    query: LiteralString,
    wanted: EntryFilter,
    limit: int,
    place: dict[str, Any],
) -> list[Recorded]:
    arguments = {
        **msgspec.structs.asdict(wanted),
        **place,
        "until_us": min(wanted.until_us, _TIME_MAX_US),
        "limit": min(limit, LIMIT_MAX),
    }
    return [Recorded(*row) for row in await fetch_planned(connection, query, arguments)]
