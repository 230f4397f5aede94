"""Appends rows that Kafka has and the table lacks, each verified against the stream it continues.

It overwrites nothing, and holds no more than a batch and a bounded number of heads in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final
from uuid import UUID

import msgspec
from psycopg import sql

from backend.journal.append import at_text, find_taken, text_of
from backend.journal.batch import Head
from backend.journal.chain import hash_of
from backend.journal.entity_ids import pass_restored_ids
from backend.journal.fold import Folds
from backend.journal.heads import HeadCache, load_heads
from backend.journal.publisher_place import find_absent, take_lock
from backend.kit.postgres import Connection, fetch_all, fetch_one
from schemas.errors import SiteProblem
from schemas.event import Recorded, shard_of
from schemas.registry import decode

PLACE: Final = "SELECT epoch, pg_current_xact_id()::text FROM site"
COPY_EVENTS: Final = """
COPY event_log (epoch, xid, event_id, command_id, topic, shard, stream, version, type, schema, at,
    payload, prev_hash, hash) FROM STDIN
"""
SAVE_STREAMS: Final = """
INSERT INTO streams (stream, version, hash, last_xid, state)
SELECT stream, version, decode(hash, 'base64'), pg_current_xact_id(), decode(state, 'base64')
FROM json_to_recordset(%(streams)s::json)
    AS s(stream text, version bigint, hash text, state text)
ORDER BY stream
ON CONFLICT (stream) DO UPDATE SET version = excluded.version, hash = excluded.hash,
    last_xid = excluded.last_xid, state = excluded.state
"""
FORGET_SEEN: Final = sql.SQL("DROP TABLE IF EXISTS rebuild.imported_commands")
MAKE_SEEN: Final = sql.SQL("""
CREATE UNLOGGED TABLE rebuild.imported_commands (command_id uuid, stream text COLLATE "C",
    version bigint, epoch integer, xid bigint, seq bigint)
""")
COPY_SEEN: Final = """
COPY rebuild.imported_commands (command_id, stream, version, epoch, xid, seq) FROM STDIN
"""
RECORD_COMMANDS: Final = sql.SQL("""
INSERT INTO commands (command_id, body_hash, stream, version)
SELECT DISTINCT ON (command_id) command_id, '', stream, version FROM rebuild.imported_commands
ORDER BY command_id, epoch, xid, seq
ON CONFLICT DO NOTHING
""")
STATES_PAGE: Final = """
SELECT stream, state FROM streams WHERE stream > %(after)s ORDER BY stream LIMIT %(count_max)s
"""
OPEN_LEASES: Final = """
INSERT INTO leases (request_id, stream, until)
SELECT request_id, stream, clock_timestamp()
FROM json_to_recordset(%(leases)s::json) AS l(request_id uuid, stream text)
ORDER BY request_id ON CONFLICT DO NOTHING
"""
BE_PATIENT: Final = "SELECT set_config('statement_timeout', '3600000', true)"

HEADS_BYTES_MAX: Final = 128 * 1024 * 1024
LOCK_EVERY_S: Final = 0.1
LOCK_ATTEMPTS_MAX: Final = 300
_PAGE_STREAMS: Final = 1_000
_ENCODER: Final = msgspec.json.Encoder()

OpenRequests = Callable[[str, Any], Iterable[str]]
"""(stream, its state) → ids of requests that still hold something and need a lease."""


def no_open_requests(stream: str, state: Any) -> Iterable[str]:
    """For logs whose streams hold nothing."""
    return ()


async def wait_for_lock(connection: Connection, sentence: str) -> None:
    """The publisher's own lock: it gives it back while it waits for us. Raises SiteProblem."""
    for _ in range(LOCK_ATTEMPTS_MAX):
        if await take_lock(connection):
            return
        await asyncio.sleep(LOCK_EVERY_S)
    raise SiteProblem(sentence)


class Importer:
    """One run: `begin`, `take` every batch from Kafka's beginning on, `complete`; else `abandon`.

    A batch is written while the next one is read and verified. Run again after any failure it goes
    on where it was: what the table has is compared, not written.
    """

    def __init__(self, connection: Connection, folds: Folds, site_id: UUID) -> None:
        self._connection: Final = connection
        self._folds: Final = folds
        self._site_id: Final = site_id
        self._heads: Final = HeadCache(HEADS_BYTES_MAX)
        self._writing: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        async with self._connection.transaction():
            await self._connection.execute(FORGET_SEEN)
            await self._connection.execute(MAKE_SEEN)

    async def take(self, rows: Sequence[Recorded]) -> list[Recorded]:
        """Appends those of `rows` that the table lacks and returns them.

        Raises SiteProblem where one does not continue its stream, or the table has another event
        there; psycopg errors, also those of the batch before.
        """
        heads = await self._load(rows)
        known: list[Recorded] = []
        fresh: dict[tuple[str, int], Recorded] = {}
        for row in rows:
            earlier = fresh.get((row.stream, row.version))
            if earlier is not None:
                _expect_same(row, earlier.hash)
            elif row.version <= heads[row.stream].version:
                known.append(row)
            else:
                heads[row.stream] = self._continued(heads[row.stream], row)
                fresh[row.stream, row.version] = row
        seen = list(fresh.values())
        if known:
            seen += await self._compare(known)
        if seen:
            streams = self._encoded({row.stream: heads[row.stream] for row in fresh.values()})
            await self._written()
            self._writing = asyncio.create_task(
                self._write(list(fresh.values()), streams, seen), name="import"
            )
        return list(fresh.values())

    async def complete(self, open_requests: OpenRequests) -> None:
        """Records the commands, hands open requests to the sweep, and passes the ids in use."""
        await self._written()
        async with self._connection.transaction():
            await self._connection.execute(BE_PATIENT)
            await self._connection.execute(RECORD_COMMANDS)
        await self._lease(open_requests)
        await pass_restored_ids(self._connection)
        await self._connection.execute(FORGET_SEEN)

    async def abandon(self) -> None:
        """After a failure: nothing is written behind the caller's back."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)

    async def _load(self, rows: Sequence[Recorded]) -> dict[str, Head]:
        heads: dict[str, Head] = {}
        absent: list[str] = []
        for stream in {row.stream for row in rows}:
            head = self._heads.get(stream)
            if head is None:
                absent.append(stream)
            else:
                heads[stream] = head
        if absent:
            # What is being written may be what was dropped from memory.
            await self._written()
            for row in rows:
                self._expect_known_kind(row)
            loaded = await load_heads(self._connection, self._folds, self._site_id, absent)
            heads |= {stream: head for stream, (head, _) in loaded.items()}
        return heads

    def _expect_known_kind(self, row: Recorded) -> None:
        try:
            self._folds.of(row.stream)
        except KeyError as error:
            raise _broken(row, "is of a kind that this version does not know") from error

    async def _compare(self, known: list[Recorded]) -> list[Recorded]:
        """Those whose command is not recorded yet. Raises SiteProblem for a fork."""
        await self._written()
        absent = await find_absent(self._connection, known)
        if absent is not None:
            raise _forked(absent[0], absent[1])
        ids = list({row.command_id for row in known})
        taken = {one.command_id for one in await find_taken(self._connection, ids)}
        return [row for row in known if row.command_id not in taken]

    def _continued(self, head: Head, row: Recorded) -> Head:
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
            fold = self._folds.of(row.stream)
            state = fold.apply(head.state, decode(row), row.version, row.at_us)
        except (KeyError, ValueError) as error:
            raise _broken(row, f"cannot be applied: {error}") from error
        return Head(row.version, row.hash, state)

    def _encoded(self, heads: dict[str, Head]) -> str:
        rows: list[dict[str, Any]] = []
        for stream, head in heads.items():
            state = self._folds.of(stream).encode(head.state)
            self._heads.put(stream, head, len(state))
            rows.append(
                {
                    "stream": stream,
                    "version": head.version,
                    "hash": text_of(head.hash),
                    "state": text_of(state),
                }
            )
        return _ENCODER.encode(rows).decode()

    async def _write(
        self, fresh: Sequence[Recorded], streams: str, seen: Sequence[Recorded]
    ) -> None:
        """One transaction."""
        connection = self._connection
        async with connection.transaction(), connection.cursor() as cursor:
            place = await fetch_one(connection, PLACE)
            assert place is not None, "a migrated database has its site row"
            if fresh:
                async with cursor.copy(COPY_EVENTS) as copy:
                    for row in fresh:
                        await copy.write_row(_event_in(place, row))
                await connection.execute(SAVE_STREAMS, {"streams": streams})
            async with cursor.copy(COPY_SEEN) as copy:
                for row in seen:
                    await copy.write_row(
                        (row.command_id, row.stream, row.version, row.epoch, row.xid, row.seq)
                    )

    async def _written(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing

    async def _lease(self, open_requests: OpenRequests) -> None:
        """Nobody answers for imported holds: leases that have run out hand them to the sweep."""
        after = ""
        while True:
            arguments = {"after": after, "count_max": _PAGE_STREAMS}
            rows = await fetch_all(self._connection, STATES_PAGE, arguments)
            leases = [
                {"request_id": request_id, "stream": stream}
                for stream, state in rows
                for request_id in open_requests(stream, self._folds.of(stream).decode(state))
            ]
            if leases:
                given = {"leases": _ENCODER.encode(leases).decode()}
                await self._connection.execute(OPEN_LEASES, given)
            if len(rows) < _PAGE_STREAMS:
                return
            after = rows[-1][0]


def _event_in(place: tuple[Any, ...], row: Recorded) -> tuple[Any, ...]:
    return (
        *place,
        row.event_id,
        row.command_id,
        row.topic,
        row.shard,
        row.stream,
        row.version,
        row.type,
        row.schema,
        at_text(row.at_us),
        row.payload,
        row.prev_hash,
        row.hash,
    )


def _expect_same(row: Recorded, digest: bytes) -> None:
    if row.hash != digest:
        raise SiteProblem(f"Kafka holds two different events {row.version} of {row.stream}")


def _forked(stream: str, version: int) -> SiteProblem:
    return SiteProblem(
        f"{stream} has one event {version} in Kafka and another in the database: nothing can "
        "decide between them; restore a backup made before the two diverged"
    )


def _broken(row: Recorded, what: str) -> SiteProblem:
    return SiteProblem(
        f"Kafka's record of {row.stream} version {row.version} ({row.topic}/{row.shard}) {what}"
    )
