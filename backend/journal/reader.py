"""Reads the log in its one order, never past a transaction that could still commit below it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final
from uuid import UUID

from backend.kit.postgres import Connection, fetch_all, fetch_one
from schemas.event import Position, Recorded

PAGE: Final = """
SELECT epoch, xid::text::bigint, seq, event_id, command_id, topic, shard::integer, stream, version,
    type, schema::integer, (extract(epoch FROM at) * 1000000)::bigint, payload, prev_hash, hash
FROM (
    (SELECT e.* FROM event_log e
     WHERE e.epoch = %(epoch)s AND (e.xid, e.seq) > (%(xid)s::text::xid8, %(seq)s)
         AND (e.epoch < (SELECT site.epoch FROM site)
             OR e.xid < pg_snapshot_xmin(pg_current_snapshot()))
     ORDER BY e.xid, e.seq LIMIT %(count_max)s)
    UNION ALL
    (SELECT e.* FROM event_log e
     WHERE e.epoch > %(epoch)s
         AND (e.epoch < (SELECT site.epoch FROM site)
             OR e.xid < pg_snapshot_xmin(pg_current_snapshot()))
     ORDER BY e.epoch, e.xid, e.seq LIMIT %(count_max)s)
) page
ORDER BY page.epoch, page.xid, page.seq
LIMIT %(count_max)s
"""
"""In two parts, because of `(epoch, xid, seq) > …` as a whole the planner expects one row: it then
sorts all that is left of the log for every page. A bare `xid` in ORDER BY would be the column that
is put out, which no index knows.
"""
STREAM_PAGE: Final = """
SELECT epoch, xid::text::bigint, seq, event_id, command_id, topic, shard::integer, stream, version,
    type, schema::integer, (extract(epoch FROM at) * 1000000)::bigint, payload, prev_hash, hash
FROM event_log
WHERE stream = %(stream)s AND version >= %(from_version)s
ORDER BY version, epoch, xid, seq
LIMIT %(count_max)s
"""
HEAD: Final = """
SELECT epoch, xid::text::bigint, seq FROM event_log
WHERE epoch < (SELECT site.epoch FROM site) OR xid < pg_snapshot_xmin(pg_current_snapshot())
ORDER BY epoch DESC, event_log.xid DESC, seq DESC LIMIT 1
"""
SITE: Final = "SELECT site_id, epoch, read_only_reason FROM site"
COMMAND: Final = "SELECT stream, version, body_hash FROM commands WHERE command_id = %(command_id)s"

PAGE_ROWS: Final = 2_000


def _rows(rows: Sequence[tuple[Any, ...]]) -> list[Recorded]:
    return [Recorded(*row) for row in rows]


async def read_page(
    connection: Connection, after: Position, count_max: int = PAGE_ROWS
) -> list[Recorded]:
    """The next rows after a position, at most `count_max`; empty at the end."""
    return _rows(
        await fetch_all(
            connection,
            PAGE,
            {
                "epoch": after.epoch,
                "xid": str(after.xid),
                "seq": after.seq,
                "count_max": count_max,
            },
        )
    )


async def read_stream(
    connection: Connection, stream: str, from_version: int, count_max: int = PAGE_ROWS
) -> list[Recorded]:
    """The committed events of one stream from a version on."""
    return _rows(
        await fetch_all(
            connection,
            STREAM_PAGE,
            {"stream": stream, "from_version": from_version, "count_max": count_max},
        )
    )


async def read_all(
    connection: Connection, after: Position, upto: Position | None = None
) -> AsyncIterator[list[Recorded]]:
    """Pages from `after` to the end, or up to and including `upto`; each page its own
    transaction.
    """
    while page := await read_page(connection, after):
        if upto is not None and page[-1].position > upto:
            page = [row for row in page if row.position <= upto]
            if page:
                yield page
            return
        yield page
        after = page[-1].position


async def head(connection: Connection) -> Position:
    """The last position that readers may see now; zeros for an empty log."""
    row = await fetch_one(connection, HEAD)
    return Position(0, 0, 0) if row is None else Position(*row)


async def site_of(connection: Connection) -> tuple[UUID, int, str | None]:
    """(site id, epoch, why the site is read-only or None)."""
    row = await fetch_one(connection, SITE)
    assert row is not None, "a migrated database has its site row"
    return row[0], row[1], row[2]


async def find_command(
    connection: Connection, command_id: UUID
) -> tuple[bytes, list[Recorded]] | None:
    """(body hash, events on its first stream) of a command that landed, or None."""
    row = await fetch_one(connection, COMMAND, {"command_id": command_id})
    if row is None:
        return None
    events = await read_stream(connection, row[0], row[1], 64)
    return bytes(row[2]), [event for event in events if event.command_id == command_id]
