"""Every way to add up an account says the same, over histories of every kind of event."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import msgspec
import psycopg
import pytest
from msgspec.structs import asdict

from backend.kit.postgres import Pool
from backend.ledger import request_log, statements
from backend.ledger.account import ACCOUNT
from backend.ledger.export_pages import pages_of
from backend.ledger.exports import Export, ExportFormat, ExportKind
from backend.ledger.log_entries import find_entry, list_entries, list_stream_entries
from backend.ledger.planned import fetch_planned
from backend.ledger.record_filters import (
    FIRST_REQUEST,
    KINDS,
    NEWEST_VERSION,
    EntryFilter,
    RecordQuery,
    RequestFilter,
    StatementFilter,
    UsageFilter,
)
from backend.ledger.record_pages import StatementPlace, log_position
from backend.ledger.record_texts import ledger_line_of, movement_of, request_line_of
from backend.ledger.request_log import list_requests, request_totals
from backend.ledger.statements import (
    StatementEntry,
    find_balance,
    find_posted_at,
    fold_to,
    list_statement,
    statement_totals,
)
from backend.ledger.usage_log import list_usage, usage_totals
from projections.tables import ensure_tables
from schemas.errors import BadRequest
from schemas.event import LEDGER
from schemas.ids import PersonId
from schemas.registry import decode
from tests.integration.projection_ground import feed, open_pool
from tests.projection_log import History, insert_log

FILL_STATEMENT = b"""
INSERT INTO read.statement (stream, version, kind, amount_upt, balance_upt, at_us, event_id,
    command_id, shard, model, price_model, price_version, basis, swept)
SELECT 'account:' || mod(n, 20), n, 'settle', -1500, 1000000, 1700000000000000 + n,
    gen_random_uuid(), gen_random_uuid(), 3, 'gpt', 'gpt', 3, 'reported', false
FROM generate_series(1, 20000) n
"""
FILL_REQUESTS = b"""
INSERT INTO read.requests SELECT 'account:' || mod(n, 20), gen_random_uuid(), 'settled', 7, 'gpt',
    'gpt', 3, 'relay.chat', true, 1, 1, 0, 0, 1, 1, 1, 1, 1, 'reported', 8, 'gpt', 200, NULL, NULL,
    1, false, 1700000000000000 + n, 1, 1, 1, n, '', 1, NULL, NULL, NULL, 0, 0, 0, 0, 0
FROM generate_series(1, 20000) n
"""
ACCOUNTS = ("account:1", "account:2", "account:3", "account:4")
HOUR_US = 3_600_000_000


@pytest.fixture
async def pool(database: Any) -> AsyncIterator[Pool]:
    async with open_pool(database.app_url) as pool:
        await ensure_tables(pool)
        yield pool


@pytest.mark.parametrize("seed", range(4))
async def test_statement_requests_usage_and_balance_agree(pool: Pool, seed: int) -> None:
    history = History(seed)
    await feed(pool, history.everything(accounts=4, steps=500))
    kinds: set[str] = set()
    async with pool.connection() as connection:
        for account in (*ACCOUNTS, None):
            lines = await statement_totals(connection, StatementFilter(account))
            asked = await request_totals(connection, RequestFilter(account))
            used = await usage_totals(connection, UsageFilter(account))
            assert lines.charged_upt == asked.charged_upt == used.charged_upt
            assert asked.output_tokens == used.output_tokens
            assert asked.input_tokens + asked.cache_write_tokens == used.input_tokens
            assert asked.cache_write_tokens == used.cache_write_tokens
            assert asked.plan_requests == used.plan_requests
            open_ = await request_totals(connection, RequestFilter(account, outcomes=["open"]))
            assert asked.requests - open_.requests == used.requests
            hours = await list_usage(connection, UsageFilter(account), "hour")
            assert sum(hour.totals.charged_upt for hour in hours) == used.charged_upt
            if account is None:
                continue
            state = history.states[account]
            balance = await find_balance(connection, account)
            assert balance is not None
            entries = await list_statement(connection, StatementFilter(account), 1_000)
            kinds |= {entry.kind for entry in entries}
            moved_upt = sum(entry.amount_upt for entry in entries)
            assert lines.in_upt - lines.out_upt == moved_upt == state.posted_upt
            assert balance.posted_upt == entries[0].balance_upt == state.posted_upt
            assert lines.charged_upt + lines.plans_upt == state.charged_upt
            assert asked.shortfall_upt == state.shortfall_upt
            assert lines.entries == len(entries)
    assert kinds == set(KINDS)


async def test_every_filter_parts_the_lists_and_the_sums_alike(pool: Pool) -> None:
    history = History(7)
    await feed(pool, history.everything(accounts=4, steps=600))
    async with pool.connection() as connection:
        whole = await list_statement(connection, StatementFilter(), 1_000)
        assert len(whole) < 1_000
        some = next(entry for entry in whole if entry.request_id is not None)
        for wanted, keep in statement_cases(whole, some):
            found = await list_statement(connection, wanted, 1_000)
            expected = [entry for entry in whole if keep(entry)]
            assert sorted(found, key=repr) == sorted(expected, key=repr), wanted
            assert 0 < len(found) < len(whole), wanted
            sums = await statement_totals(connection, wanted)
            assert sums.entries == len(found)
            assert sums.in_upt - sums.out_upt == sum(entry.amount_upt for entry in found)
        for model in ("gpt", "claude"):
            charged = await statement_totals(connection, StatementFilter(model=model))
            asked = await request_totals(connection, RequestFilter(model=model))
            used = await usage_totals(connection, UsageFilter(model=model))
            assert charged.charged_upt == asked.charged_upt == used.charged_upt > 0


def statement_cases(whole: list[StatementEntry], some: StatementEntry) -> list[tuple[Any, Any]]:
    middle_us = whole[len(whole) // 2].at_us
    return [
        (StatementFilter("account:2"), lambda e: e.account == "account:2"),
        (StatementFilter(since_us=middle_us), lambda e: e.at_us >= middle_us),
        (StatementFilter(until_us=middle_us), lambda e: e.at_us < middle_us),
        (StatementFilter(kinds=["gift", "late"]), lambda e: e.kind in ("gift", "late")),
        (StatementFilter(key=1), lambda e: e.key == 1),
        (StatementFilter(model="claude"), lambda e: e.model == "claude"),
        (StatementFilter(channel=8), lambda e: e.channel == 8),
        (
            StatementFilter(request_id=some.request_id),
            lambda e: e.request_id == some.request_id,
        ),
        (StatementFilter(basis="counted"), lambda e: e.basis == "counted"),
        (StatementFilter(sign=1), lambda e: e.amount_upt > 0),
        (StatementFilter(sign=-1), lambda e: e.amount_upt < 0),
        (
            StatementFilter(least_upt=500, most_upt=4_000),
            lambda e: 500 <= abs(e.amount_upt) <= 4_000,
        ),
    ]


async def test_requests_are_found_by_each_of_their_filters(pool: Pool) -> None:
    history = History(9)
    await feed(pool, history.everything(accounts=3, steps=400))
    async with pool.connection() as connection:
        whole = await list_requests(connection, RequestFilter(), 1_000)
        middle_us = whole[len(whole) // 2].started_us
        cases: list[tuple[Any, Any]] = [
            (RequestFilter("account:1"), lambda r: r.account == "account:1"),
            (RequestFilter(since_us=middle_us), lambda r: r.started_us >= middle_us),
            (RequestFilter(until_us=middle_us), lambda r: r.started_us < middle_us),
            (RequestFilter(outcomes=["refused", "open"]), lambda r: r.outcome in "refused open"),
            (RequestFilter(model="gpt"), lambda r: r.model == "gpt"),
            (RequestFilter(channel=7), lambda r: r.channel == 7),
            (RequestFilter(basis="counted"), lambda r: r.basis == "counted"),
            (RequestFilter(least_upt=1), lambda r: r.charged_upt >= 1),
            (RequestFilter(most_upt=0), lambda r: r.charged_upt == 0),
            (
                RequestFilter(request_id=whole[5].request_id),
                lambda r: r.request_id == whole[5].request_id,
            ),
        ]
        for wanted, keep in cases:
            found = await list_requests(connection, wanted, 1_000)
            assert found == [entry for entry in whole if keep(entry)], wanted
            assert 0 < len(found) < len(whole), wanted
            sums = await request_totals(connection, wanted)
            assert sums.requests == len(found)
            assert sums.charged_upt == sum(entry.charged_upt for entry in found)


async def test_the_balance_at_every_moment_is_what_the_events_fold_to(
    database: Any, pool: Pool
) -> None:
    history = History(3)
    history.everything(accounts=2, steps=220)
    insert_log(database.app_url, history.rows)
    await feed(pool, history.rows)
    stream = "account:1"
    rows = [row for row in history.rows if row.stream == stream]
    state, states = ACCOUNT.empty, {rows[0].at_us - 1: (0, ACCOUNT.empty)}
    for row in rows:
        state = ACCOUNT.apply(state, decode(row), row.version, row.at_us)
        states[row.at_us] = (row.version, state)
    async with pool.connection() as connection:
        for at_us, (version, expected) in states.items():
            exact = await fold_to(connection, stream, at_us)
            assert exact.version == version
            assert (exact.posted_upt, exact.held_upt, exact.available_upt) == (
                expected.posted_upt, expected.held_upt, expected.available_upt,
            )  # fmt: skip
            posted = await find_posted_at(connection, stream, at_us)
            assert posted.posted_upt == expected.posted_upt
            assert posted.version <= version
        after = await fold_to(connection, stream, rows[-1].at_us + HOUR_US)
        assert after.posted_upt == state.posted_upt
        nobody = await fold_to(connection, "account:404", rows[-1].at_us)
        assert (nobody.posted_upt, nobody.version) == (0, 0)
        with pytest.raises(BadRequest, match="too long"):
            await fold_to(connection, stream, rows[-1].at_us, events_max=100)


async def test_a_writer_whose_clock_is_behind_does_not_hide_a_movement(pool: Pool) -> None:
    history = History(1)
    stream = history.open(1, 1_000)
    history.now_us -= 5_000_000
    late = history.gift(stream, 30)
    await feed(pool, history.rows)
    async with pool.connection() as connection:
        found = await find_posted_at(connection, stream, late.at_us + 6_000_000)
    assert (found.posted_upt, found.version) == (1_030, late.version)


async def test_pages_of_everybodys_movements_stay_right_while_more_arrive(pool: Pool) -> None:
    history = History(5)
    await feed(pool, history.everything(accounts=3, steps=200))
    async with pool.connection() as connection:
        whole = await list_statement(connection, StatementFilter(), 1_000)
    paged = list[StatementEntry]()
    place = StatementPlace()
    while True:
        async with pool.connection() as connection:
            page = await list_statement(connection, StatementFilter(), 11, place)
        paged += page
        if len(page) < 11:
            break
        last = page[-1]
        place = StatementPlace(last.at_us, last.account, last.version)
        await feed(pool, [history.gift("account:2", 5), history.gift("account:3", 5)])
    assert paged == whole


async def test_an_export_holds_what_the_lists_hold_in_historys_order(
    database: Any, pool: Pool
) -> None:
    history = History(6)
    history.everything(accounts=3, steps=300)
    insert_log(database.app_url, history.rows)
    await feed(pool, history.rows)
    async with pool.connection() as connection:
        statement = await list_statement(connection, StatementFilter("account:2"), 1_000)
        requests = await list_requests(connection, RequestFilter(), 1_000)
    assert await exported(pool, ExportKind.STATEMENT, 2) == [
        movement_of(entry) for entry in reversed(statement)
    ]
    assert await exported(pool, ExportKind.REQUESTS, None) == [
        request_line_of(entry) for entry in reversed(requests)
    ]
    everybodys = await exported(pool, ExportKind.STATEMENT, None)
    by_account: dict[str, int] = defaultdict(int)
    for line in everybodys:
        assert line.version > by_account[line.account]
        by_account[line.account] = line.version
    ledger = [row for row in history.rows if row.topic == LEDGER]
    assert [line.event_id for line in await exported(pool, ExportKind.LEDGER, None)] == [
        row.event_id for row in ledger
    ]
    assert await exported(pool, ExportKind.LEDGER, 1, RecordQuery(type="HoldSettled")) == [
        ledger_line_of(row)
        for row in ledger
        if row.stream == "account:1" and row.type == "HoldSettled"
    ]


async def exported(
    pool: Pool, kind: ExportKind, person: int | None, filters: RecordQuery | None = None
) -> list[Any]:
    export = Export(
        UUID(int=1), PersonId(1), None if person is None else PersonId(person), kind,
        ExportFormat.JSONL, filters or RecordQuery(), "running", 1, 0, 0, False, None, 0, None,
        None,
    )  # fmt: skip
    return [line async for page in pages_of(pool, export, 17) for line in page]


async def test_pages_are_read_by_index_whatever_is_not_asked_for(database: Any, pool: Pool) -> None:
    with psycopg.connect(database.superuser_url, autocommit=True) as connection:
        connection.execute(FILL_STATEMENT)
        connection.execute(FILL_REQUESTS)
        connection.execute(b"ANALYZE read.statement, read.requests")
        own, every = StatementFilter("account:5"), StatementFilter()
        at = StatementPlace(stream="account:5", version=9_000)
        place = {"started_us": 1_700_000_000_009_000, "at_request": FIRST_REQUEST}
        for query, arguments in (
            (statements.LIST_OF_ACCOUNT, {**asdict(own), **asdict(StatementPlace())}),
            (statements.LIST_OF_ALL, {**asdict(every), **asdict(StatementPlace())}),
            (statements.LIST_ONWARD, {**asdict(own), **asdict(at)}),
            (statements.LIST_ONWARD, {**asdict(every), **asdict(at)}),
            (request_log.LIST_NEWEST, {**asdict(RequestFilter("account:5")), **place}),
            (request_log.LIST_NEWEST, {**asdict(RequestFilter()), **place}),
            (request_log.LIST_ONWARD, {**asdict(RequestFilter()), **place}),
        ):
            plan = connection.execute(
                b"EXPLAIN " + query.encode(), {**arguments, "limit": 50}
            ).fetchall()
            text = "\n".join(str(line) for (line,) in plan)
            assert "Sort" not in text, text
            assert "Seq Scan" not in text, text
            assert "Index" in text


async def test_a_question_that_takes_too_long_is_refused_and_not_an_outage(pool: Pool) -> None:
    async with pool.connection() as connection:
        await connection.execute("SET statement_timeout = 30")
        with pytest.raises(BadRequest, match="too much at once"):
            await fetch_planned(connection, "SELECT pg_sleep(%(wait_s)s)", {"wait_s": 5})
        await connection.execute("RESET statement_timeout")


async def test_the_log_is_explored_by_stream_and_as_a_whole(database: Any, pool: Pool) -> None:
    history = History(8)
    history.everything(accounts=3, steps=150)
    insert_log(database.app_url, history.rows, rows_per_transaction=10)
    newest = list(reversed(history.rows))
    async with pool.connection() as connection:
        paged, cursor = [], None
        while page := await list_entries(connection, EntryFilter(), 13, log_position(cursor)):
            paged += page
            last = page[-1].position
            cursor = f"{last.epoch}.{last.xid}.{last.seq}"
        assert [row.event_id for row in paged] == [row.event_id for row in newest]
        own = await list_stream_entries(connection, EntryFilter("account:1"), 1_000, NEWEST_VERSION)
        expected = [row for row in newest if row.stream == "account:1"]
        assert [row.hash for row in own] == [row.hash for row in expected]
        middle = expected[10]
        since = EntryFilter("account:1", since_us=middle.at_us, types=["PointsHeld"])
        found = await list_stream_entries(connection, since, 1_000, NEWEST_VERSION)
        assert [row.version for row in found] == [
            row.version
            for row in expected
            if row.at_us >= middle.at_us and row.type == "PointsHeld"
        ]
        one = await find_entry(connection, middle.event_id)
        assert one is not None
        assert one.payload == middle.payload
        assert await find_entry(connection, middle.event_id, "account:2") is None
        assert msgspec.json.decode(one.payload) == ledger_line_of(middle).payload
