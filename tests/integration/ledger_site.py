"""A ledger on a real database: a writer, its pool and points, and a check of all that it wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from uuid import UUID

from backend.journal.chain import genesis_hash, hash_of
from backend.journal.commands import Landed
from backend.journal.fold import Folds
from backend.journal.reader import read_stream, site_of
from backend.journal.view import load_states
from backend.journal.wake import LogWatch
from backend.journal.writer import Writer
from backend.kit.postgres import Connection, Pool, connect, fetch_all, make_pool
from backend.ledger.account import ACCOUNT, Account
from backend.ledger.points import Points
from schemas.event import Recorded
from schemas.ids import id_of
from schemas.ledger import HoldReleased, HoldSettled, LedgerEvent, PointsHeld, UsageLate
from schemas.registry import decode
from tests.conftest import Database
from tests.given import CLOCK, FOLDS, POINT, RANDOMNESS, granting, opening

LEASES = "SELECT request_id::text, generation, progress FROM leases ORDER BY request_id"
EXPIRE = "UPDATE leases SET until = clock_timestamp() - interval '1 second'"
COMMITTED = """
SELECT epoch, xid::text::bigint, seq, event_id, command_id, topic, shard::integer, stream, version,
    type, schema::integer, (extract(epoch FROM at) * 1000000)::bigint, payload, prev_hash, hash
FROM event_log ORDER BY epoch, xid, seq
"""
STREAMS = "SELECT stream, version, hash, state FROM streams"


class LedgerSite:
    """One process of a site, as far as points go."""

    def __init__(self, url: str, writer: Writer, watch: LogWatch, pool: Pool) -> None:
        self.url = url
        self.writer = writer
        self.watch = watch
        self.pool = pool
        self.points = Points(writer, pool)

    async def open_account(self, account: int, points: int) -> str:
        """Opens `account:<account>` with so many points; returns the stream."""
        assert isinstance(await self.writer.submit(opening(account)), Landed)
        if points:
            granted = await self.writer.submit(granting(account, points * POINT))
            assert isinstance(granted, Landed)
        return f"account:{account}"

    async def state(self, account: str) -> Account:
        async with self.pool.connection() as connection:
            states = await load_states(connection, FOLDS, [account])
        return states[account][1]

    async def events(self, account: str) -> list[LedgerEvent]:
        async with self.pool.connection() as connection:
            rows = await read_stream(connection, account, 1)
        return [_ledger_event(row) for row in rows]

    async def rows(self) -> list[Recorded]:
        async with self.pool.connection() as connection:
            return await committed(connection)

    async def leases(self) -> dict[str, tuple[int, str]]:
        """Generation and progress by request id."""
        async with self.pool.connection() as connection:
            return {name: (gen, text) for name, gen, text in await fetch_all(connection, LEASES)}

    async def expire_leases(self) -> None:
        async with self.pool.connection() as connection:
            await connection.execute(EXPIRE)


@asynccontextmanager
async def ledger_on(url: str, folds: Folds = FOLDS) -> AsyncGenerator[LedgerSite]:
    watch = LogWatch(url)
    writer = Writer(url, folds, CLOCK, RANDOMNESS, watch)
    async with make_pool(url, application="test", size_max=8) as pool:
        watch.start()
        writer.start()
        try:
            yield LedgerSite(url, writer, watch, pool)
        finally:
            await writer.stop()
            await watch.stop()


async def committed(connection: Connection) -> list[Recorded]:
    """Every row in reading order, whoever else holds readers back on this server."""
    return [Recorded(*row) for row in await fetch_all(connection, COMMITTED)]


async def assert_sound(database: Database) -> list[Recorded]:
    """I1 to I4, I7, I8, I9 over everything in the log; returns its rows.

    Every prefix of every account is folded, which refuses a balance below zero, a second outcome
    and a charge beyond its hold.
    """
    async with await connect(database.superuser_url, application="test") as connection:
        rows = await committed(connection)
        stored = {
            stream: (version, bytes(digest), bytes(state))
            for stream, version, digest, state in await fetch_all(connection, STREAMS)
        }
        site_id, _, _ = await site_of(connection)
    _assert_chained(rows, site_id)
    states: dict[str, tuple[int, bytes, Account]] = {}
    for row in rows:
        version, _, state = states.get(row.stream, (0, b"", ACCOUNT.empty))
        assert row.version == version + 1, f"I7: {row.stream} jumps from {version} to {row.version}"
        after = ACCOUNT.apply(state, _ledger_event(row), row.version, row.at_us)
        states[row.stream] = (row.version, row.hash, after)
    replayed = {
        stream: (version, digest, ACCOUNT.encode(state))
        for stream, (version, digest, state) in states.items()
    }
    assert replayed == stored, "I9: what is stored is what the events fold to"
    _assert_one_of_each(rows)
    return rows


def _assert_chained(rows: list[Recorded], site_id: UUID) -> None:
    heads: dict[str, bytes] = {}
    for row in rows:
        assert row.prev_hash == heads.get(row.stream, genesis_hash(site_id, row.stream)), "I8"
        assert row.hash == hash_of(row), "I8"
        heads[row.stream] = row.hash


def _assert_one_of_each(rows: list[Recorded]) -> None:
    holds: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    lates: Counter[str] = Counter()
    for row in rows:
        match _ledger_event(row):
            case PointsHeld(request_id):
                holds[request_id] += 1
            case HoldSettled(request_id) | HoldReleased(request_id):
                ends[request_id] += 1
            case UsageLate(request_id):
                lates[request_id] += 1
            case _:
                pass
    for counted in (holds, ends, lates):
        assert all(count == 1 for count in counted.values()), "I3"
    assert ends.keys() <= holds.keys(), "I3"


def _ledger_event(row: Recorded) -> LedgerEvent:
    event = decode(row)
    assert isinstance(event, LedgerEvent)
    assert id_of(row.stream)
    return event
