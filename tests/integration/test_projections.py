"""Events become rows, whatever way they arrive: twice, mixed, after a crash, around a poison."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest

from backend.journal.consumer import Arrived, PoisonEvent, consume, place_in_table
from backend.journal.parking import list_parked, retry_parked
from backend.kit.postgres import Pool
from backend.ledger.account import ACCOUNT
from backend.ledger.statements import find_balance
from projections.declared import PROJECTIONS, live_consumers
from projections.tables import ensure_tables
from projections.target import Schema
from schemas.ledger import ReleaseReason
from tests.integration.projection_ground import (
    Wrapped,
    drop_tables,
    dump,
    feed,
    forget_everything,
    open_pool,
    query,
    tail_to_the_end,
)
from tests.projection_log import History, insert_log, shuffled


@pytest.fixture
async def pool(database: Any) -> AsyncIterator[Pool]:
    async with open_pool(database.app_url) as pool:
        await ensure_tables(pool)
        yield pool


async def test_the_life_of_an_account_is_seen_in_every_table(pool: Pool) -> None:
    history = History()
    stream = history.open(42, 10_000)
    paid = history.hold(stream, 5_000)
    history.settle(stream, paid, 4_000)
    failed = history.hold(stream, 6_000)
    history.release(stream, failed, ReleaseReason.UPSTREAM_ERROR)
    refused = history.refuse(stream)
    waiting = history.hold(stream, 1_500)
    await feed(pool, history.rows)

    async with pool.connection() as connection:
        balance = await find_balance(connection, stream)
    assert balance is not None
    assert (balance.posted_upt, balance.held_upt, balance.available_upt) == (6_000, 1_500, 4_500)
    assert (balance.issued_upt, balance.charged_upt, balance.open_holds) == (10_000, 4_000, 1)
    assert balance.version == len(history.rows)
    assert await query(
        pool, "SELECT kind, amount_upt, balance_upt FROM read.statement ORDER BY version"
    ) == [("grant", 10_000, 10_000), ("settle", -4_000, 6_000)]
    assert await query(
        pool, "SELECT request_id::text, outcome FROM read.requests ORDER BY request_id"
    ) == [(paid, "settled"), (failed, "released"), (refused, "refused"), (waiting, "open")]
    assert await query(
        pool, "SELECT sum(requests)::int, sum(errors)::int, sum(refused)::int FROM read.usage"
    ) == [(3, 1, 1)]


@pytest.mark.parametrize("seed", range(3))
async def test_duplicates_and_mixed_streams_leave_the_same_rows(database: Any, seed: int) -> None:
    history = History(seed)
    history.everything(accounts=5, steps=300)
    async with open_pool(database.app_url) as pool:
        await ensure_tables(pool)
        await feed(pool, history.rows, batch_rows=10_000)
        expected = await dump(pool)
        await feed(pool, history.rows[-40:])
        assert await dump(pool) == expected

        await forget_everything(pool)
        await feed(pool, shuffled(history.rows, seed), batch_rows=17)
        assert await dump(pool) == expected


async def test_the_balance_is_the_fold_of_the_stream(pool: Pool) -> None:
    history = History(9)
    history.everything(accounts=4, steps=300)
    await feed(pool, history.rows, batch_rows=50)
    found = await query(pool, "SELECT stream, state, available_upt FROM read.balance")
    assert {stream: state for stream, state, _ in found} == {
        stream: ACCOUNT.encode(state).decode() for stream, state in history.states.items()
    }
    for stream, _, available_upt in found:
        assert available_upt == history.states[stream].available_upt


@pytest.mark.parametrize("batch_rows", [1, 100])
async def test_late_usage_leaves_no_empty_row_where_it_was_counted_before(
    pool: Pool, batch_rows: int
) -> None:
    history = History()
    stream = history.open(1)
    request_id = history.hold(stream)
    sweep = history.settle(stream, request_id, 2_000, swept=True)
    history.late(stream, request_id, sweep, 500)
    await feed(pool, history.rows, batch_rows)
    assert await query(
        pool, "SELECT channel, requests, charged_upt, output_tokens FROM read.usage"
    ) == [(8, 1, 2_500, 150)]
    assert await query(pool, "SELECT count(*)::int FROM read.usage_waiting") == [(0,)]


class Crash(RuntimeError):
    """The process dies here."""


@pytest.mark.parametrize("after_the_effect", [False, True])
async def test_a_crash_around_the_effect_and_a_redelivery_change_nothing(
    database: Any, after_the_effect: bool
) -> None:
    history = History(4)
    history.everything(accounts=5, steps=200)
    async with open_pool(database.app_url) as pool:
        await ensure_tables(pool)
        await feed(pool, history.rows)
        expected = await dump(pool)
        await forget_everything(pool)
        crashes = 0

        def crash_every_other_time(batch: Sequence[Arrived], after: bool) -> None:
            nonlocal crashes
            if after is after_the_effect:
                crashes += 1
                if crashes % 2:
                    raise Crash

        for first in range(0, len(history.rows), 60):
            batch = history.rows[first : first + 60]
            for consumer in live_consumers():
                wrapped = Wrapped(consumer, crash_every_other_time)
                with pytest.raises(Crash):
                    await consume(pool, wrapped, batch, place_in_table)
                await consume(pool, wrapped, batch, place_in_table)
        assert crashes > 10
        assert await dump(pool) == expected


async def test_an_impossible_event_parks_its_stream_and_the_others_go_on(
    pool: Pool, database: Any
) -> None:
    history = History()
    broken, whole = history.open(1), history.open(2)
    request_id = history.hold(broken)
    first_end = history.settle(broken, request_id)
    second_end = history.settle(broken, request_id)
    history.settle(whole, history.hold(whole))
    history.open(3)
    insert_log(database.app_url, history.rows)
    await feed(pool, history.rows)

    async with pool.connection() as connection:
        parked = await list_parked(connection)
        good, stopped = (
            await find_balance(connection, whole),
            await find_balance(connection, broken),
        )
    assert [(p.consumer, p.stream, p.version) for p in parked] == [
        (name, broken, second_end.version)
        for name in sorted({projection.name for projection in PROJECTIONS} - {"codes"})
    ]
    assert all("I3" in p.reason for p in parked)
    assert good is not None
    assert good.charged_upt == 4_000
    assert stopped is not None
    assert stopped.version == first_end.version
    with pytest.raises(PoisonEvent):
        await retry_parked(pool, live_consumers()[0], broken)


async def test_a_retry_goes_on_where_the_stream_was_parked(database: Any) -> None:
    history = History(6)
    history.everything(accounts=4, steps=200)
    bad = next(r for r in history.rows if r.version == 9)
    insert_log(database.app_url, history.rows)
    async with open_pool(database.app_url) as pool:
        await ensure_tables(pool)
        await tail_to_the_end(pool)
        expected = await dump(pool)
        await forget_everything(pool)

        def refuse_one(batch: Sequence[Arrived], after: bool) -> None:
            if any(arrived.row.event_id == bad.event_id for arrived in batch):
                raise PoisonEvent("a defect of this version")

        refusing = [Wrapped(consumer, refuse_one) for consumer in live_consumers()]
        await tail_to_the_end(pool, *refusing)
        assert await dump(pool) != expected
        for consumer in live_consumers():
            waiting = sum(1 for r in history.rows if r.stream == bad.stream and r.version >= 9)
            assert await retry_parked(pool, consumer, bad.stream) == waiting
        assert await dump(pool) == expected
        async with pool.connection() as connection:
            assert await list_parked(connection) == []


async def test_dropped_tables_are_made_and_filled_again_with_the_same_rows(
    database: Any, pool: Pool
) -> None:
    history = History(8)
    insert_log(database.app_url, history.everything(accounts=6, steps=300))
    await tail_to_the_end(pool)
    expected = await dump(pool)
    assert await ensure_tables(pool) == ()
    assert await dump(pool) == expected

    await drop_tables(pool)
    assert await ensure_tables(pool) == ("balance", "statement", "requests", "usage", "codes")
    assert await query(pool, "SELECT count(*)::int FROM read.statement") == [(0,)]
    await tail_to_the_end(pool)
    assert await dump(pool) == expected


async def test_one_dropped_table_starts_only_its_projection_over(pool: Pool) -> None:
    history = History(8)
    await feed(pool, history.everything(accounts=3, steps=60))
    expected = await dump(pool)
    async with pool.connection() as connection:
        await connection.execute("DROP TABLE read.usage_waiting")
    assert await ensure_tables(pool) == ("usage",)
    await feed(pool, history.rows)
    assert await dump(pool) == expected


async def test_tables_of_another_shape_start_over(pool: Pool) -> None:
    async with pool.connection() as connection:
        await connection.execute(
            "UPDATE read.projection_shapes SET shape = 'older' WHERE projection = 'requests'"
        )
    assert await ensure_tables(pool) == ("requests",)
    assert await ensure_tables(pool) == ()


async def test_events_of_other_streams_and_topics_are_passed_over(pool: Pool) -> None:
    history = History()
    stream = history.open(1)
    other = msgspec.structs.replace(
        history.rows[0], stream="channel:1", topic="suanpan.catalog", seq=99
    )
    await feed(pool, [*history.rows, other])
    assert await query(pool, "SELECT stream FROM read.balance") == [(stream,)]


def test_a_rebuild_has_a_consumer_name_of_its_own() -> None:
    for projection in PROJECTIONS:
        assert projection.make(Schema.READ).name == projection.name
        assert projection.make(Schema.REBUILD).name == f"{projection.name}:rebuild"
