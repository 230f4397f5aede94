"""Many want the same points; streams that belong together land whole or not at all."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID

import psycopg
import pytest

from backend.journal.append import AppendResult, append
from backend.journal.batch import Batch
from backend.journal.commands import (
    Accept,
    AlreadyDone,
    Command,
    Landed,
    LostRace,
    Refuse,
    Refused,
    Standing,
)
from backend.journal.heads import load_heads
from backend.journal.reader import site_of
from backend.kit.postgres import Connection, connect
from schemas.ids import PersonId
from schemas.ledger import AccountOpened, PointsHeld, RequestRefused
from tests.conftest import Database
from tests.embedded_site import ROOT
from tests.given import (
    CLOCK,
    FOLDS,
    POINT,
    granting,
    hold_asked,
    holding,
    moving,
    new_id,
    new_request,
    on_first,
    opening,
)
from tests.integration.hold_process import hold_many
from tests.integration.ledger_site import LedgerSite, assert_sound, ledger_on

REFUSALS_RECORDED_MAX = 60


async def batch_for(connection: Connection, *commands: Command) -> Batch:
    """A batch on what is committed now."""
    site_id, _, _ = await site_of(connection)
    streams = [stream for command in commands for stream in command.streams]
    heads = await load_heads(connection, FOLDS, site_id, streams)
    batch = Batch(FOLDS, {name: head for name, (head, _) in heads.items()}, CLOCK.now_us(), new_id)
    for command in commands:
        assert isinstance(batch.add(command), Accept)
    return batch


async def appended(connection: Connection, *commands: Command) -> AppendResult:
    return await append(connection, (await batch_for(connection, *commands)).laid_out())


@asynccontextmanager
async def several(database: Database, count: int) -> AsyncGenerator[list[LedgerSite]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(ledger_on(database.app_url)) for _ in range(count)]


async def assert_ten_held(site: LedgerSite, account: str, answers: Counter[str]) -> None:
    assert answers == {"held": 10, "refused": 190}
    types = Counter(type(event) for event in await site.events(account))
    assert types[PointsHeld] == 10
    assert types[RequestRefused] == REFUSALS_RECORDED_MAX
    state = await site.state(account)
    assert (state.available_upt, state.held_upt) == (0, 10 * POINT)
    assert len(await site.leases()) == 10


async def test_two_hundred_parallel_holds_on_ten_points_hold_exactly_ten(
    ledger: LedgerSite,
) -> None:
    account = await ledger.open_account(1, 10)
    await assert_ten_held(ledger, account, await hold_many(ledger, account, 200))


async def test_four_writers_hold_exactly_what_one_would(database: Database) -> None:
    async with several(database, 4) as sites:
        account = await sites[0].open_account(1, 10)
        answers = await asyncio.gather(*(hold_many(site, account, 50) for site in sites))
        await assert_ten_held(sites[0], account, sum(answers, Counter()))
    await assert_sound(database)


async def test_four_processes_hold_exactly_what_one_would(
    ledger: LedgerSite, database: Database
) -> None:
    account = await ledger.open_account(1, 10)
    processes = [await _holder(database, account) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 30) == b"ready\n"
    said = await asyncio.gather(*(asyncio.wait_for(p.communicate(b"\n"), 30) for p in processes))
    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    answers = sum((Counter[str](json.loads(out)) for out, _ in said), Counter[str]())
    await assert_ten_held(ledger, account, answers)


async def _holder(database: Database, account: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.hold_process", database.app_url, account, "50",
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def test_a_stale_writer_lands_nothing(database: Database) -> None:
    async with several(database, 2) as (one, other):
        await one.open_account(1, 10)
        assert isinstance(await other.writer.submit(granting(1, POINT)), Landed)
        stale = on_first(
            ("account:1",),
            lambda state, version, at_us: holding(1, hold_asked(new_request())).decide(
                (Standing("account:1", version, state),), at_us
            ),
            tries_once=True,
        )
        before = await one.rows()
        assert await one.writer.submit(stale) == Refused(LostRace())
        assert await one.rows() == before
        assert await one.leases() == {}
        assert isinstance(await one.writer.submit(holding(1, hold_asked(new_request()))), Landed)
    await assert_sound(database)


async def test_a_transaction_older_than_a_streams_last_event_lands_nothing(
    ledger: LedgerSite, database: Database
) -> None:
    """I7: readers go by transaction id, so a stream's events must not go back in it."""
    await ledger.open_account(1, 0)
    async with await connect(database.app_url, application="test") as connection:
        async with connection.transaction():
            await connection.execute("SELECT pg_current_xact_id()")
            assert isinstance(await ledger.writer.submit(granting(1, 1)), Landed)
            assert (await appended(connection, granting(1, 2))).landed == frozenset()
        assert (await appended(connection, granting(1, 4))).landed
    assert (await ledger.state("account:1")).issued_upt == 5


async def test_a_refusal_is_answered_only_from_state_read_for_it(database: Database) -> None:
    """The first writer believes the account empty; the second has just filled it."""
    async with several(database, 2) as (one, other):
        await one.open_account(1, 0)
        refused = on_first(
            ("account:1",),
            lambda state, _, __: (
                Refuse(state.issued_upt)
                if state.issued_upt < 3 * POINT
                else granting(1, 1).decide((Standing("account:1", 1, state),), 0)
            ),
        )
        assert await one.writer.submit(refused) == Refused(0)
        for _ in range(3):
            assert isinstance(await other.writer.submit(granting(1, POINT)), Landed)
        assert isinstance(await one.writer.submit(refused), Landed)


async def test_what_matches_lands_though_its_neighbours_do_not(
    ledger: LedgerSite, database: Database
) -> None:
    for account in (1, 2, 3):
        await ledger.open_account(account, 5)
    async with await connect(database.app_url, application="test") as connection:
        commands = [granting(account, 1) for account in (1, 2, 3)]
        batch = await batch_for(connection, *commands)
        assert (await appended(connection, granting(2, 7))).landed
        result = await append(connection, batch.laid_out())
    assert result.landed == {batch.unit_of("account:1"), batch.unit_of("account:3")}
    assert [(await ledger.state(f"account:{n}")).issued_upt - 5 * POINT for n in (1, 2, 3)] == [
        1, 7, 1,
    ]  # fmt: skip


async def test_streams_that_one_command_ties_together_land_whole_or_not_at_all(
    ledger: LedgerSite, database: Database
) -> None:
    for account in (1, 2):
        await ledger.open_account(account, 5)
    async with await connect(database.app_url, application="test") as connection:
        batch = await batch_for(connection, moving(1, 2, POINT), granting(2, 3))
        assert (await appended(connection, granting(2, 7))).landed
        before = await ledger.rows()
        assert (await append(connection, batch.laid_out())).landed == frozenset()
    assert await ledger.rows() == before
    assert await ledger.leases() == {}


async def test_writers_that_race_on_a_pair_of_streams_lose_no_half(database: Database) -> None:
    async with several(database, 3) as sites:
        for account in (1, 2):
            await sites[0].open_account(account, 20)
        moves = [
            site.writer.submit(moving(giver, 3 - giver, POINT))
            for _ in range(15)
            for site in sites
            for giver in (1, 2)
        ]
        outcomes = await asyncio.gather(*moves)
        landed = sum(isinstance(outcome, Landed) for outcome in outcomes)
        assert landed == 90, "what one gives the other has, so nobody runs out"
        states = [await sites[0].state(f"account:{account}") for account in (1, 2)]
        assert sum(state.held_upt for state in states) == landed * POINT
        assert sum(state.issued_upt for state in states) == (40 + landed) * POINT
    await assert_sound(database)


def opening_both(first: int, second: int, command_id: UUID | None = None) -> Command:
    """Opens two accounts as one unit."""

    def decide(standings: tuple[Standing, ...], at_us: int) -> Any:
        if any(standing.version for standing in standings):
            return Refuse("one of them is open")
        return Accept(((0, AccountOpened(PersonId(first))), (1, AccountOpened(PersonId(second)))))

    return Command(command_id or new_id(), (f"account:{first}", f"account:{second}"), decide)


async def test_writers_that_create_the_same_new_pair_land_one_of_each(database: Database) -> None:
    async with several(database, 4) as sites:
        for n in range(0, 60, 3):
            pairs = [(n, n + 1), (n + 1, n), (n + 1, n + 2), (n + 2, n)]
            outcomes = await asyncio.gather(
                *(s.writer.submit(opening_both(*p)) for s, p in zip(sites, pairs, strict=True))
            )
            assert sum(isinstance(outcome, Landed) for outcome in outcomes) == 1
    rows = await assert_sound(database)
    assert len(rows) == 20 * 2


async def test_a_unit_that_could_land_only_in_part_is_decided_again(
    ledger: LedgerSite, database: Database
) -> None:
    """Somebody's uncommitted creation of one stream is waited for, then nothing of ours is left."""
    async with await connect(database.app_url, application="test") as connection:
        async with connection.transaction():
            assert (await appended(connection, opening(1))).landed
            waiting = asyncio.create_task(ledger.writer.submit(opening_both(2, 1)))
            await until_waiting(database)
        assert await waiting == Refused("one of them is open")
    assert [row.stream for row in await ledger.rows()] == ["account:1"]


async def until_waiting(database: Database) -> None:
    """Until some backend of this database waits for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
    async with asyncio.timeout(10):
        connection = await psycopg.AsyncConnection.connect(database.superuser_url, autocommit=True)
        async with connection:
            while True:
                row = await (await connection.execute(query, (database.name,))).fetchone()
                if row is not None and row[0] > 0:
                    return
                await asyncio.sleep(0.005)


async def test_a_command_that_somebody_else_has_just_recorded_is_not_taken_for_ours(
    ledger: LedgerSite, database: Database
) -> None:
    """Same command id, other streams: a unit that fails in part is no sign that it was ours."""
    command_id = new_id()
    async with await connect(database.app_url, application="test") as connection:
        async with connection.transaction():
            assert (await appended(connection, opening_both(1, 3, command_id))).landed
            waiting = asyncio.create_task(ledger.writer.submit(opening_both(2, 1, command_id)))
            await until_waiting(database)
        outcome = await waiting
    assert isinstance(outcome, AlreadyDone), outcome
    assert {row.stream for row in await ledger.rows()} == {"account:1", "account:3"}


async def test_a_command_id_lands_once_and_answers_with_the_same_bytes(
    ledger: LedgerSite,
) -> None:
    await ledger.open_account(1, 0)
    command = granting(1, 5)
    assert isinstance(await ledger.writer.submit(command), Landed)
    stored = [row for row in await ledger.rows() if row.command_id == command.command_id]
    for again in (command, granting(1, 9, command.command_id)):
        assert await ledger.writer.submit(again) == AlreadyDone(b"", tuple(stored))
    assert (await ledger.state("account:1")).issued_upt == 5


async def test_twins_in_one_batch_and_in_two_writers_land_once(database: Database) -> None:
    async with several(database, 2) as sites:
        account = await sites[0].open_account(1, 0)
        for _ in range(10):
            command_id = new_id()
            outcomes = await asyncio.gather(
                *(
                    site.writer.submit(granting(1, 1, command_id))
                    for site in sites
                    for _ in range(5)
                )
            )
            kinds = Counter(type(outcome) for outcome in outcomes)
            assert kinds == {Landed: 1, AlreadyDone: 9}
        assert (await sites[0].state(account)).issued_upt == 10
    await assert_sound(database)


@pytest.mark.parametrize("side", ["before", "beside"])
async def test_twins_cost_their_neighbours_nothing(ledger: LedgerSite, side: str) -> None:
    """A repeated key must not send a whole batch one by one down the second connection."""
    for account in range(1, 41):
        await ledger.open_account(account, 0)
    command_id = new_id()
    twins = [granting(1, 1, command_id) for _ in range(2)]
    if side == "before":
        assert isinstance(await ledger.writer.submit(twins[0]), Landed)
    appends = ledger.writer.appends
    others = [granting(account, 1) for account in range(2, 41)]
    outcomes = await asyncio.gather(*(ledger.writer.submit(c) for c in (*twins, *others)))
    assert all(isinstance(outcome, Landed) for outcome in outcomes[2:])
    assert ledger.writer.appends - appends <= 3
