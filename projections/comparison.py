"""Compares verified streams with the table `streams`, row by row, while the site may go on writing.

Reads only, in short transactions; what moved on since is folded forward and then compared.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final
from uuid import UUID

import msgspec
from psycopg import IsolationLevel

from backend.journal.fold import Folds
from backend.journal.reader import PAGE_ROWS, read_stream, site_of
from backend.kit.postgres import Connection, connect, fetch_all
from projections.verifying import Fault, FaultKind, Line, Verifier
from schemas.event import Position

PAGE: Final = """
SELECT stream, version, hash, last_xid::text::bigint, state FROM streams
WHERE stream > %(after)s ORDER BY stream LIMIT %(count_max)s
"""
HASH_AT: Final = """
SELECT hash FROM event_log WHERE stream = %(stream)s AND version = %(version)s LIMIT 1
"""
PAGE_STREAMS: Final = 500


class Site(msgspec.Struct, frozen=True):
    site_id: UUID
    epoch: int


class StreamRow(msgspec.Struct, frozen=True):
    """A row of `streams`."""

    stream: str
    version: int
    hash: bytes
    last_xid: int
    state: bytes


async def site_row(connection: Connection) -> Site:
    """Whose log this is."""
    site_id, epoch, _ = await site_of(connection)
    return Site(site_id, epoch)


Inspect = Callable[[Connection, Sequence[StreamRow]], Awaitable[None]]
"""Looks at a page of `streams` inside the transaction that read it."""


async def connect_for_reading(database_url: str, application: str) -> Connection:
    """A connection whose transactions are read-only and see one moment.

    Such a transaction has no transaction id of its own, and `pg_snapshot_xmin` counts only those
    that have one: it holds no reader of the log back. It does keep dead rows from being removed,
    so each one here lasts for a page and no longer.
    """
    connection = await connect(database_url, application=application, prepare_after=1)
    await connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
    await connection.set_read_only(True)
    return connection


class StreamsComparison:
    """Differences between `verifier`'s lines, complete up to `position`, and the table."""

    def __init__(
        self,
        connection: Connection,
        verifier: Verifier,
        folds: Folds,
        site: Site,
        position: Position,
    ) -> None:
        self._connection: Final = connection
        self._verifier: Final = verifier
        self._folds: Final = folds
        self._site: Final = site
        self._position: Final = position
        self._by_hash: dict[bytes, Line] | None = None
        self._renamed: Final[set[str]] = set()
        self.faults: Final[list[Fault]] = []
        self.streams = 0

    async def run(
        self, inspect: Inspect | None = None, done: Callable[[int], None] | None = None
    ) -> None:
        """Goes through the whole table; the connection is one of `connect_for_reading`."""
        after, seen = "", set[str]()
        while True:
            async with self._connection.transaction():
                arguments = {"after": after, "count_max": PAGE_STREAMS}
                found = await fetch_all(self._connection, PAGE, arguments)
                rows = [
                    StreamRow(stream, version, bytes(digest), xid, bytes(state))
                    for stream, version, digest, xid, state in found
                ]
                for row in rows:
                    await self._compare(row)
                if inspect is not None and rows:
                    await inspect(self._connection, rows)
            seen.update(row.stream for row in rows)
            self.streams += len(rows)
            if done is not None:
                done(self.streams)
            if len(rows) < PAGE_STREAMS:
                break
            after = rows[-1].stream
        for stream in sorted(self._verifier.lines.keys() - seen - self._renamed):
            line = self._verifier.lines[stream]
            if line.version > 0:
                self._differs(stream, line.version, "the stream has no row in `streams`")

    async def _compare(self, row: StreamRow) -> None:
        line = self._verifier.lines.get(row.stream)
        if line is None or row.version > line.version:
            line = await self._forward(row, line)
        if line.version == row.version:
            self._compare_heads(row, line)
        elif line.version > row.version:
            await self._behind(row, line)
        else:
            self._ahead(row, line)

    def _compare_heads(self, row: StreamRow, line: Line) -> None:
        if row.hash != line.hash:
            self._differs(row.stream, row.version, "`streams` has another hash for this event")
        elif line.epoch > self._site.epoch:
            self._differs(row.stream, row.version, f"the site never had an epoch {line.epoch}")
        elif row.last_xid != line.xid and line.epoch == self._site.epoch:
            # A restore renumbers what it finds, so only the present epoch can be compared.
            what = f"`streams` says transaction {row.last_xid}, its row {line.xid}"
            self._differs(row.stream, row.version, what)
        elif line.intact and line.foldable and not _is_state(row.state, line):
            self._differs(row.stream, row.version, "the state is not what the events fold to")

    async def _forward(self, row: StreamRow, line: Line | None) -> Line:
        """The line as of the row's version: what was written since is read and verified now."""
        ahead = Verifier(self._site.site_id, self._folds)
        if line is not None:
            ahead.lines[row.stream] = line.copy()
        reached = 0 if line is None else line.version
        while reached < row.version:
            rows = await read_stream(self._connection, row.stream, reached + 1)
            rows = [new for new in rows if new.version <= row.version]
            if not rows:
                break
            skipped = next((new for new in rows if new.position <= self._position), None)
            if skipped is not None:
                self._differs(row.stream, skipped.version, "in the table, but not in what was read")
                break
            ahead.feed(rows)
            reached = rows[-1].version
            if len(rows) < PAGE_ROWS:
                break
        self.faults.extend(ahead.faults())
        return ahead.line_of(row.stream)

    def _ahead(self, row: StreamRow, line: Line) -> None:
        """The table names a version that the log does not have."""
        missing = line.version + 1
        lost = self._verifier.claim(row.hash)
        if any(fault.stream == row.stream and fault.version == missing for fault in self.faults):
            return
        if lost is not None and row.version == missing:
            what = f"the row that belongs here says {lost.stream} {lost.version}"
            self._verifier.add(Fault(FaultKind.CHANGED, row.stream, missing, what, lost.position))
        elif row.hash == line.hash:
            what = f"`streams` says version {row.version}, the log ends here"
            self._differs(row.stream, line.version, what)
        elif (owner := self._owner_of(row.hash)) is not None and line.version > 0:
            what = f"`streams` has the head of {owner.stream} here"
            self._differs(row.stream, line.version, what)
        elif owner is not None:
            self._renamed.add(owner.stream)
            self._differs(owner.stream, owner.version, f"`streams` calls it {row.stream}")
        else:
            what = f"no such row; `streams` goes on to version {row.version}"
            self._differs(row.stream, missing, what, FaultKind.MISSING)

    async def _behind(self, row: StreamRow, line: Line) -> None:
        """The log goes on where the table says the stream ends."""
        found = await fetch_all(
            self._connection, HASH_AT, {"stream": row.stream, "version": row.version}
        )
        if [bytes(digest) for (digest,) in found] == [row.hash]:
            what = f"`streams` ends at version {row.version}, the log goes on"
            self._differs(row.stream, row.version + 1, what)
        else:
            what = f"`streams` says version {row.version}, and not with the hash of that event"
            self._differs(row.stream, line.version, what)

    def _owner_of(self, head_hash: bytes) -> Line | None:
        """The stream whose head this is."""
        if self._by_hash is None:
            self._by_hash = {line.hash: line for line in self._verifier.lines.values()}
        return self._by_hash.get(head_hash)

    def _differs(
        self, stream: str, version: int, what: str, kind: FaultKind = FaultKind.DIFFERENT
    ) -> None:
        self.faults.append(Fault(kind, stream, version, what, self._position))


def _is_state(stored: bytes, line: Line) -> bool:
    """Whether a stored state is what the line folds to.

    An earlier version may have laid the same state out in other bytes (a default written out): it
    is then read as a decision would read it, and compared in today's layout.
    """
    expected = line.encoded_state()
    if stored == expected:
        return True
    assert line.fold is not None, "the caller has looked"
    try:
        return line.fold.encode(line.fold.decode(stored)) == expected
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
