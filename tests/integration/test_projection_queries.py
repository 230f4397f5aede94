"""What is read of the tables: pages, totals, how far behind they are, and how fresh."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from backend.journal.consumer import consume, place_in_kafka, place_in_table
from backend.journal.reader import read_page
from backend.kit.postgres import Pool
from backend.ledger.account import HOUR_US
from backend.ledger.record_filters import RequestFilter, StatementFilter, UsageFilter
from backend.ledger.record_pages import RequestPlace, StatementPlace
from backend.ledger.request_log import RequestEntry, find_request, list_requests
from backend.ledger.statements import find_balance, list_statement
from backend.ledger.usage_log import list_usage, usage_totals
from projections.declared import PROJECTIONS, live_consumers
from projections.health import Lag, alarms_of, list_lags, wait_for
from projections.tables import ensure_tables
from schemas.event import START, shard_of
from tests.integration.projection_ground import CLOCK, feed, open_pool, tail_to_the_end
from tests.projection_log import START_US, History, insert_log

DAY_US = 24 * HOUR_US


@pytest.fixture
async def pool(database: Any) -> AsyncIterator[Pool]:
    async with open_pool(database.app_url) as pool:
        await ensure_tables(pool)
        yield pool


async def test_an_account_nobody_knows_has_no_balance_and_empty_lists(pool: Pool) -> None:
    async with pool.connection() as connection:
        assert await find_balance(connection, "account:404") is None
        assert await list_statement(connection, StatementFilter("account:404"), 10) == []
        assert await list_requests(connection, RequestFilter("account:404"), 10) == []
        assert await list_usage(connection, UsageFilter("account:404"), "day") == []
        assert (await usage_totals(connection, UsageFilter("account:404"))).requests == 0


async def test_pages_of_a_statement_join_without_gap_or_repetition(pool: Pool) -> None:
    history = History(2)
    await feed(pool, history.everything(accounts=3, steps=200))
    async with pool.connection() as connection:
        wanted = StatementFilter("account:2")
        whole = await list_statement(connection, wanted, 1_000)
        paged = []
        before = StatementPlace()
        while page := await list_statement(connection, wanted, 7, before):
            paged += page
            before = StatementPlace(version=page[-1].version)
    assert paged == whole
    assert [entry.version for entry in whole] == sorted({e.version for e in whole}, reverse=True)
    assert whole[0].balance_upt == history.states["account:2"].posted_upt
    assert {entry.shard for entry in whole} == {shard_of("account:2")}


async def test_a_statement_can_be_asked_for_a_time(pool: Pool) -> None:
    history = History(2)
    await feed(pool, history.everything(accounts=1, steps=200))
    async with pool.connection() as connection:
        whole = await list_statement(connection, StatementFilter("account:1"), 1_000)
        since_us, until_us = whole[-3].at_us, whole[2].at_us
        wanted = StatementFilter("account:1", since_us, until_us)
        part = await list_statement(connection, wanted, 1_000)
    assert part == [entry for entry in whole if since_us <= entry.at_us < until_us]
    assert 0 < len(part) < len(whole)


async def test_pages_of_requests_join_for_an_account_and_for_all(pool: Pool) -> None:
    history = History(2)
    await feed(pool, history.everything(accounts=3, steps=200))
    for account in ("account:1", None):
        async with pool.connection() as connection:
            wanted = RequestFilter(account)
            whole = await list_requests(connection, wanted, 1_000)
            paged = await list_requests(connection, wanted, 9)
            while page := await list_requests(connection, wanted, 9, _place(paged[-1])):
                paged += page
        assert paged == whole
        assert {entry.account for entry in whole} == (
            {account} if account else {"account:1", "account:2", "account:3"}
        )
        assert [entry.started_us for entry in whole] == sorted(
            (entry.started_us for entry in whole), reverse=True
        )


def _place(entry: RequestEntry) -> RequestPlace:
    return RequestPlace(entry.started_us, entry.request_id)


async def test_a_request_is_found_for_its_own_account_only(pool: Pool) -> None:
    history = History()
    stream, other = history.open(1), history.open(2)
    request_id = history.hold(stream)
    await feed(pool, history.rows)
    async with pool.connection() as connection:
        found = await find_request(connection, stream, request_id)
        assert await find_request(connection, other, request_id) is None
    assert found is not None
    assert (found.outcome, found.held_upt, found.purpose) == ("open", 5_000, "relay.chat")


async def test_usage_adds_up_over_hours_and_days(pool: Pool) -> None:
    history = History()
    stream = history.open(1)
    history.settle(stream, history.hold(stream), 4_000)
    history.now_us += DAY_US
    history.settle(stream, history.hold(stream, model="claude"), 3_000, model="claude")
    history.settle(stream, history.hold(stream), 2_000)
    await feed(pool, history.rows)
    async with pool.connection() as connection:
        total = await usage_totals(connection, UsageFilter(stream))
        hour = UsageFilter(stream, START_US, START_US + HOUR_US)
        first = await usage_totals(connection, hour)
        days = await list_usage(connection, UsageFilter(stream), "day")
        hours = await list_usage(connection, UsageFilter(stream), "hour")
    assert (total.requests, total.charged_upt, total.duration_ms) == (3, 9_000, 2_850)
    assert (total.input_tokens, total.cached_tokens, total.output_tokens) == (375, 90, 240)
    assert (first.requests, first.charged_upt) == (1, 4_000)
    assert [(day.model, day.totals.charged_upt) for day in days] == [
        ("gpt", 4_000),
        ("claude", 3_000),
        ("gpt", 2_000),
    ]
    assert days[1].at_us - days[0].at_us == DAY_US
    assert all(day.at_us % DAY_US == 0 for day in days)
    assert [entry.totals for entry in hours] == [entry.totals for entry in days]
    assert all(entry.at_us % HOUR_US == 0 for entry in hours)


@pytest.mark.parametrize("place_of", [place_in_table, place_in_kafka])
async def test_lag_counts_rows_not_applied_and_names_how_old_they_are(
    database: Any, pool: Pool, place_of: Any
) -> None:
    history = History(2)
    history.everything(accounts=5, steps=60)
    insert_log(database.app_url, history.rows)
    async with pool.connection() as connection:
        lags = await list_lags(connection, PROJECTIONS)
        assert [lag.consumer for lag in lags] == sorted(p.name for p in PROJECTIONS)
        assert {lag.rows for lag in lags} == {len(history.rows)}
        assert all(lag.behind_ms > 0 for lag in lags)
        assert len(alarms_of(lags)) == len(PROJECTIONS)
    async with pool.connection() as connection:
        rows = await read_page(connection, START)
    balance = live_consumers()[0]
    await consume(pool, balance, rows[:-9], place_of)
    async with pool.connection() as connection:
        (lag,) = await list_lags(connection, [balance])
    assert (lag.rows, lag.events) == (9, len(rows) - 9)
    await consume(pool, balance, rows[-9:], place_of)
    async with pool.connection() as connection:
        (lag,) = await list_lags(connection, [balance])
    assert (lag.rows, lag.behind_ms, lag.parked) == (0, 0, 0)
    assert alarms_of([lag]) == ()


async def test_what_is_parked_is_counted_and_alarms(database: Any, pool: Pool) -> None:
    history = History()
    stream = history.open(1)
    request_id = history.hold(stream)
    history.settle(stream, request_id)
    history.settle(stream, request_id)
    insert_log(database.app_url, history.rows)
    await tail_to_the_end(pool)
    async with pool.connection() as connection:
        lags = await list_lags(connection, PROJECTIONS)
    assert {lag.consumer: lag.parked for lag in lags} == {
        projection.name: 0 if projection.name == "codes" else 1 for projection in PROJECTIONS
    }
    assert "balance: 1 parked" in alarms_of(lags)


def test_alarms_name_a_consumer_that_is_far_behind() -> None:
    behind = Lag("usage", 12, 75_500, 0, 0)
    assert alarms_of([behind]) == ("usage: 75 s behind",)
    assert alarms_of([behind], lag_ms_max=80_000) == ()


async def test_a_read_waits_for_its_write_and_then_is_fresh(pool: Pool) -> None:
    history = History()
    stream = history.open(1)
    wanted = history.rows[-1].version
    waiting = asyncio.create_task(wait_for(pool, CLOCK, "balance", stream, wanted))
    await consume(pool, live_consumers()[0], history.rows, place_in_table)
    found = await waiting
    assert (found.stale, found.applied) == (False, wanted)


async def test_a_read_whose_write_has_not_arrived_says_it_is_stale(pool: Pool) -> None:
    history = History()
    stream = history.open(1)
    await feed(pool, history.rows)
    started_s = CLOCK.monotonic_s()
    found = await wait_for(pool, CLOCK, "balance", stream, 99, timeout_ms=60_000)
    assert (found.stale, found.applied) == (True, len(history.rows))
    assert 0.25 < CLOCK.monotonic_s() - started_s < 3
