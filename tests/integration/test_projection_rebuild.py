"""A projection is made again while a writer appends, the live one follows and people read."""
# Ids and amounts are written as plain values here.
# pyright: reportArgumentType=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from backend.journal.commands import Command, Landed
from backend.journal.consumer import consume, place_in_kafka, place_in_table
from backend.journal.fold import Folds
from backend.journal.reader import head, read_all
from backend.journal.tail import TableTail
from backend.journal.wake import LogWatch
from backend.journal.writer import Writer
from backend.kit.clock import SystemClock, SystemRandomness
from backend.kit.postgres import Pool
from backend.ledger.account import ACCOUNT
from backend.ledger.admission import HoldAsked, decide_hold
from backend.ledger.decide import (
    SettleAsked,
    decide_grant,
    decide_open,
    decide_release,
    decide_settle,
)
from backend.ledger.statements import find_balance
from projections.declared import PROJECTIONS, find_projection, live_consumers
from projections.health import list_lags
from projections.rebuild import (
    Progress,
    RebuildRunning,
    places_in_kafka,
    places_in_table,
    rebuild,
)
from projections.tables import ensure_tables
from schemas.event import EVENT_TOPICS, LEDGER, SHARDS, START
from schemas.ids import outcome_command_id
from schemas.ledger import AccountOpened, GrantKind, ReleaseReason, Served
from schemas.prices import PerCall, PriceRef
from schemas.relay import KeyTerms
from schemas.usage import Basis, Usage
from tests.integration.projection_ground import (
    CLOCK,
    dump,
    feed,
    forget_everything,
    ignored,
    open_pool,
    query,
    rebuild_all,
    tail_to_the_end,
    until,
)
from tests.projection_log import History, insert_log

PRICE = PerCall(1_000_000)
REF = PriceRef("gpt", 1)


@pytest.fixture
async def pool(database: Any) -> AsyncIterator[Pool]:
    async with open_pool(database.app_url) as pool:
        await ensure_tables(pool)
        yield pool


class Traffic:
    """Accounts that make calls, through the real writer, until told to stop."""

    def __init__(self, url: str, watch: LogWatch) -> None:
        self.writer = Writer(url, Folds([ACCOUNT]), SystemClock(), SystemRandomness(), watch)
        self.calls = 0
        self.stopping = False

    async def open(self, number: int) -> str:
        stream = f"account:{number}"
        await self._do(stream, lambda s, at: decide_open(s[0].state, s[0].version, number))
        await self._do(
            stream,
            lambda s, at: decide_grant(s[0].state, s[0].version, 10**9, GrantKind.OPERATOR, "cli"),
        )
        return stream

    async def run(self, stream: str) -> None:
        while not self.stopping:
            await self.call(stream, released=self.calls % 5 == 0)

    async def call(self, stream: str, *, released: bool) -> None:
        request = self.writer.new_id()
        name = str(request)
        asked = HoldAsked(
            name, "relay.chat", KeyTerms(1), "gpt", PRICE, REF, False, 100, None, 1, (7,), 30
        )
        await self._do(
            stream,
            lambda s, at: decide_hold(s[0].state, s[0].version, asked, at),
            request,
        )
        settle = SettleAsked(name, Usage(10, 0, 0, 10), Basis.REPORTED, PRICE, REF, Served(7))
        await self._do(
            stream,
            lambda s, at: (
                decide_release(s[0].state, name, ReleaseReason.UPSTREAM_ERROR, Served())
                if released
                else decide_settle(s[0].state, settle)
            ),
            outcome_command_id(name),
        )
        self.calls += 1

    async def _do(self, stream: str, decide: Any, command_id: Any = None) -> None:
        landed = await self.writer.submit(
            Command(command_id or self.writer.new_id(), (stream,), decide)
        )
        assert isinstance(landed, Landed), landed


@asynccontextmanager
async def traffic(url: str, pool: Pool) -> AsyncGenerator[Traffic]:
    """A writer under load and the live consumers behind it; both have caught up at the end."""
    watch = LogWatch(url)
    made = Traffic(url, watch)
    tail = TableTail(pool, watch, SystemRandomness(), live_consumers())
    watch.start()
    made.writer.start()
    tail.start()
    streams = [await made.open(number) for number in range(1, 9)]
    tasks = [asyncio.create_task(made.run(stream)) for stream in streams]
    try:
        yield made
        made.stopping = True
        await asyncio.gather(*tasks)
        await until(lambda: caught_up(pool))
        assert tail.alarms == {}
    finally:
        for task in tasks:
            task.cancel()
        await tail.stop()
        await made.writer.stop()
        await watch.stop()


async def caught_up(pool: Pool) -> bool:
    async with pool.connection() as connection:
        lags = await list_lags(connection, live_consumers())
    return all(lag.rows == 0 for lag in lags)


async def read_until(pool: Pool, stopping: asyncio.Event) -> int:
    """Reads like a person: what was there a moment ago never goes away. Returns how often."""
    seen = reads = 0
    while not stopping.is_set():
        async with pool.connection() as connection:
            balance = await find_balance(connection, "account:1")
        version = 0 if balance is None else balance.version
        assert version >= seen
        seen = version
        reads += 1
        await asyncio.sleep(0.001)
    return reads


async def test_a_rebuild_under_load_ends_with_the_same_rows_as_the_live_ones(
    database: Any, pool: Pool
) -> None:
    seen: list[Progress] = []
    async with traffic(database.app_url, pool) as made:
        await until(lambda: done(made, 300))
        stopping = asyncio.Event()
        reader = asyncio.create_task(read_until(pool, stopping))
        for projection in PROJECTIONS:
            before = made.calls
            rebuilt = await rebuild(pool, projection, places_in_table(), CLOCK, seen.append)
            assert rebuilt.events > 0
            await until(lambda before=before: done(made, before + 50))
        stopping.set()
        assert await reader > 10
    live = await dump(pool)
    assert seen[-1].done <= seen[-1].total
    assert [p.events_per_s > 0 for p in seen]
    assert await query(pool, "SELECT count(*)::int FROM parked") == [(0,)]
    assert await query(
        pool, "SELECT count(*)::int FROM pg_tables WHERE schemaname = 'rebuild'"
    ) == [(0,)]
    assert await query(
        pool, "SELECT count(*)::int FROM consumer_places WHERE consumer LIKE '%%:rebuild'"
    ) == [(0,)]
    await forget_everything(pool)
    await tail_to_the_end(pool)
    assert await dump(pool) == live
    assert len(live["requests"]) == made.calls


async def done(made: Traffic, calls: int) -> bool:
    return made.calls >= calls


async def test_what_lands_just_before_the_swap_is_in_the_new_tables(
    database: Any, pool: Pool
) -> None:
    history = History(3)
    rows = history.everything(accounts=6, steps=300)
    insert_log(database.app_url, rows[:-50])
    await tail_to_the_end(pool)
    late = rows[-50:]

    def land(progress: Progress) -> None:
        insert_log(database.app_url, late)
        late.clear()

    for projection in PROJECTIONS:
        rebuilt = await rebuild(pool, projection, places_in_table(), CLOCK, land)
        assert rebuilt.duration_ms > 0
    rebuilt_rows = await dump(pool)
    await tail_to_the_end(pool)
    assert await dump(pool) == rebuilt_rows
    (last,) = await query(
        pool, "SELECT max(version) FROM read.balance WHERE stream = %(s)s", s=rows[-1].stream
    )
    assert last == (rows[-1].version,)


async def test_a_rebuild_makes_what_it_replaces_whole_again(database: Any, pool: Pool) -> None:
    history = History(3)
    insert_log(database.app_url, history.everything(accounts=6, steps=300))
    await tail_to_the_end(pool)
    expected = await dump(pool)
    async with pool.connection() as connection:
        await connection.execute("UPDATE read.balance SET available_upt = 0")
        await connection.execute("DELETE FROM read.statement WHERE version % 2 = 0")
        await connection.execute("DELETE FROM read.requests")
        await connection.execute("UPDATE read.usage SET charged_upt = charged_upt + 1")
    assert await dump(pool) != expected
    await rebuild_all(pool)
    assert await dump(pool) == expected
    await tail_to_the_end(pool)
    assert await dump(pool) == expected


async def test_a_consumer_goes_on_after_a_rebuild_from_the_place_it_left(
    database: Any, pool: Pool
) -> None:
    history = History(3)
    history.everything(accounts=6, steps=200)
    half = len(history.rows) // 2
    insert_log(database.app_url, history.rows)
    async with pool.connection() as connection:
        rows = [row async for page in read_all(connection, START) for row in page]
        end = await head(connection)
    await feed(pool, rows[:half])
    await rebuild_all(pool)
    whole = await dump(pool)
    assert await query(
        pool, "SELECT DISTINCT epoch, xid::text::bigint, seq FROM consumer_places"
    ) == [(end.epoch, end.xid, end.seq)]
    await feed(pool, rows[half - 50 :])
    assert await dump(pool) == whole


async def test_a_rebuild_in_the_kafka_shape_lets_late_records_be_dropped(
    database: Any, pool: Pool
) -> None:
    history = History(5)
    history.everything(accounts=6, steps=200)
    insert_log(database.app_url, history.rows)
    async with pool.connection() as connection:
        rows = [row async for page in read_all(connection, START) for row in page]
    behind = rows[: len(rows) // 3]
    for consumer in live_consumers():
        await consume(pool, consumer, behind, place_in_kafka)
    for projection in PROJECTIONS:
        places = places_in_kafka(projection.topics)
        await rebuild(pool, projection, places, CLOCK, ignored)
    whole = await dump(pool)
    assert await query(
        pool, "SELECT consumer, count(*)::int FROM consumer_places GROUP BY 1 ORDER BY 1"
    ) == [(name, SHARDS) for name in sorted(p.name for p in PROJECTIONS)]
    for consumer in live_consumers():
        assert await consume(pool, consumer, rows[len(behind) :], place_in_kafka) == 0
    assert await dump(pool) == whole
    await forget_everything(pool)
    await tail_to_the_end(pool)
    assert await dump(pool) == whole


async def test_the_leftovers_of_a_rebuild_that_was_killed_are_cleaned_up(
    database: Any, pool: Pool
) -> None:
    history = History(3)
    insert_log(database.app_url, history.everything(accounts=6, steps=100))
    await tail_to_the_end(pool)
    expected = await dump(pool)
    async with pool.connection() as connection:
        await connection.execute("CREATE TABLE rebuild.balance (left_over integer)")
        await connection.execute(
            "INSERT INTO consumer_streams SELECT 'balance:rebuild', stream, 1, hash"
            " FROM consumer_streams WHERE consumer = 'balance'"
        )
        await connection.execute(
            "INSERT INTO parked (consumer, stream, version, reason)"
            " VALUES ('balance:rebuild', 'account:1', 1, 'left over')"
        )
    await rebuild_all(pool)
    assert await dump(pool) == expected
    assert await query(pool, "SELECT count(*)::int FROM parked") == [(0,)]


class Stopped(RuntimeError):
    """The one who watches ends it."""


async def test_a_rebuild_that_fails_leaves_the_old_tables_and_nothing_of_its_own(
    database: Any, pool: Pool
) -> None:
    history = History(3)
    insert_log(database.app_url, history.everything(accounts=6, steps=100))
    await tail_to_the_end(pool)
    expected = await dump(pool)

    def stop(progress: Progress) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        await rebuild(pool, PROJECTIONS[0], places_in_table(), CLOCK, stop)
    assert await dump(pool) == expected
    assert await query(
        pool, "SELECT count(*)::int FROM pg_tables WHERE schemaname = 'rebuild'"
    ) == [(0,)]
    await rebuild_all(pool)
    assert await dump(pool) == expected


async def test_a_second_rebuild_of_the_same_projection_is_refused(
    database: Any, pool: Pool
) -> None:
    history = History(3)
    insert_log(database.app_url, history.everything(accounts=6, steps=100))
    balance = find_projection("balance")
    answers = await asyncio.gather(
        *(rebuild(pool, balance, places_in_table(), CLOCK, ignored) for _ in range(2)),
        rebuild(pool, find_projection("usage"), places_in_table(), CLOCK, ignored),
        return_exceptions=True,
    )
    refused = [answer for answer in answers if isinstance(answer, BaseException)]
    assert [type(answer) for answer in refused] == [RebuildRunning]
    assert "running already" in str(refused[0])
    assert (await rebuild(pool, balance, places_in_table(), CLOCK, ignored)).events > 0


async def test_a_rebuild_waits_for_a_reader_that_holds_the_old_table(
    database: Any, pool: Pool
) -> None:
    history = History(3)
    insert_log(database.app_url, history.everything(accounts=6, steps=100))
    await tail_to_the_end(pool)
    expected = await dump(pool)
    async with pool.connection() as reader, reader.transaction():
        await reader.execute("SELECT count(*) FROM read.balance")
        task = asyncio.create_task(rebuild(pool, PROJECTIONS[0], places_in_table(), CLOCK, ignored))
        await until(lambda: swap_waits(pool))
    await task
    assert await dump(pool) == expected


async def swap_waits(pool: Pool) -> bool:
    rows = await query(
        pool,
        "SELECT count(*)::int FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    return rows[0][0] > 0


async def test_a_parked_stream_is_tried_again_by_a_rebuild(database: Any, pool: Pool) -> None:
    history = History()
    broken = history.open(1)
    request_id = history.hold(broken)
    history.settle(broken, request_id)
    end = history.settle(broken, request_id)
    insert_log(database.app_url, history.rows)
    await tail_to_the_end(pool)
    async with pool.connection() as connection:
        await connection.execute(
            "INSERT INTO parked (consumer, stream, version, reason)"
            " VALUES ('balance', 'account:9', 1, 'cured since')"
        )
    await rebuild_all(pool)
    assert await query(pool, "SELECT stream, version FROM parked WHERE consumer = 'balance'") == [
        (broken, end.version)
    ]


def test_the_places_of_each_transport_are_named() -> None:
    assert places_in_table() == (place_in_table(History().add("account:1", opened())),)
    kafka = places_in_kafka(EVENT_TOPICS)
    assert len(kafka) == len(set(kafka)) == SHARDS * len(EVENT_TOPICS)
    assert place_in_kafka(History().add("account:1", opened())) in places_in_kafka([LEDGER])


def opened() -> Any:
    return AccountOpened(1)
