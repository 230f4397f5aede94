"""A database that hangs up, refuses, waits or is read-only: nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import psycopg
import pytest

from backend.journal.commands import (
    Accept,
    AlreadyDone,
    Command,
    Landed,
    LeaseOpen,
    Outcome,
    Refuse,
    Refused,
)
from backend.journal.fold import Fold, Folds
from backend.journal.wake import LogWatch
from backend.journal.writer import QUEUE_MAX, Writer
from backend.kit.postgres import connect
from backend.ledger.account import ACCOUNT, Account
from schemas.errors import Unavailable
from schemas.ids import RequestId
from schemas.ledger import HoldSettled, PointsHeld
from tests.conftest import Database
from tests.given import (
    CLOCK,
    FOLDS,
    POINT,
    RANDOMNESS,
    granted_event,
    granting,
    hold_asked,
    holding,
    new_id,
    new_request,
    on_first,
    opening,
    settle_asked,
    settling,
)
from tests.integration.ledger_site import LedgerSite, assert_sound, ledger_on

WRITERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = %s AND application_name = 'suanpan writer'
"""
LOCK_STREAM = "SELECT 1 FROM streams WHERE stream = %s FOR UPDATE"
READ_ONLY = "UPDATE site SET read_only_reason = %s"


async def calls(site: LedgerSite, account: int, count: int) -> list[Outcome]:
    """Holds and settles, one after another, each awaited."""
    outcomes: list[Outcome] = []
    for _ in range(count):
        request = new_request()
        outcomes.append(await site.writer.submit(holding(account, hold_asked(request))))
        outcomes.append(await site.writer.submit(settling(account, settle_asked(request))))
    return outcomes


async def hang_up(database: Database, stop: asyncio.Event, ended: list[Any]) -> None:
    """Ends the writer's backends at random moments; `ended` grows with each."""
    chance = random.Random(7)
    connection = await psycopg.AsyncConnection.connect(database.superuser_url, autocommit=True)
    async with connection:
        while not stop.is_set():
            cursor = await connection.execute(WRITERS, (database.name,))
            ended += await cursor.fetchall()
            try:
                async with asyncio.timeout(chance.uniform(0.02, 0.12)):
                    await stop.wait()
            except TimeoutError:
                continue


async def test_a_writer_that_is_hung_up_on_loses_and_doubles_nothing(
    ledger: LedgerSite, database: Database
) -> None:
    accounts = range(1, 13)
    for account in accounts:
        await ledger.open_account(account, 1_000)
    stop, ended, rounds = asyncio.Event(), list[Any](), 0
    ending = asyncio.create_task(hang_up(database, stop, ended))
    outcomes: list[Outcome] = []
    while len(ended) < 3:
        done = await asyncio.gather(*(calls(ledger, account, 12) for account in accounts))
        outcomes += [outcome for part in done for outcome in part]
        rounds += 1
    stop.set()
    await ending
    assert all(isinstance(outcome, Landed) for outcome in outcomes)
    events = [event for account in accounts for event in await ledger.events(f"account:{account}")]
    counts = Counter(type(event) for event in events)
    assert counts[PointsHeld] == counts[HoldSettled] == rounds * 12 * len(accounts)
    assert await ledger.leases() == {}


async def test_what_landed_unheard_is_known_for_ours_though_it_would_now_be_refused(
    database: Database,
) -> None:
    """An account is opened, the answer is lost, and opening it again would be refused."""
    async with ledger_on(database.app_url) as site:
        stop = asyncio.Event()
        ending = asyncio.create_task(hang_up(database, stop, []))
        numbers = iter(range(1, 100_000))

        async def open_many() -> list[Outcome]:
            outcomes: list[Outcome] = []
            while not stop.is_set():
                outcomes.append(await site.writer.submit(opening(next(numbers))))
            return outcomes

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(open_many()) for _ in range(8)]
            await asyncio.sleep(1.5)
            stop.set()
        await ending
        outcomes = [outcome for task in tasks for outcome in task.result()]
        assert len(outcomes) > 20
        assert all(isinstance(outcome, Landed) for outcome in outcomes)
    await assert_sound(database)


async def test_a_command_refused_now_that_landed_before_is_already_done(
    ledger: LedgerSite,
) -> None:
    command = opening(1)
    assert isinstance(await ledger.writer.submit(command), Landed)
    assert isinstance(await ledger.writer.submit(command), AlreadyDone)
    assert isinstance(await ledger.writer.submit(opening(1)), Refused)


def poison(account: int) -> Command:
    """PostgreSQL refuses the statement: a lease's request id is no UUID."""
    decision = Accept(((0, granted_event(1)),), (LeaseOpen(RequestId("no uuid"), 1),))
    return on_first((f"account:{account}",), lambda *_: decision)


def nul(account: int) -> Command:
    """JSON text with NUL is no `text` for PostgreSQL."""
    decision = Accept(((0, granted_event(1)),), (LeaseOpen(RequestId("\x00"), 1),))
    return on_first((f"account:{account}",), lambda *_: decision)


def of_no_kind(account: int) -> Command:
    """A stream of a kind that this process does not know."""
    return Command(new_id(), (f"account:{account}", "nobody:1"), lambda _, __: Refuse("no"))


def unprintable(account: int) -> Command:
    """A stream whose name is no text."""
    return Command(new_id(), (f"account:{account}", "account:\ud800"), lambda _, __: Refuse("no"))


@pytest.mark.parametrize("bad", [poison, nul, of_no_kind, unprintable])
async def test_one_bad_command_fails_alone_and_its_neighbours_land(
    ledger: LedgerSite, bad: Any
) -> None:
    accounts = range(1, 21)
    for account in accounts:
        await ledger.open_account(account, 0)
    commands = [granting(account, 5) for account in accounts]
    commands[7:7] = [bad(3), bad(4)]
    outcomes = await asyncio.gather(
        *(ledger.writer.submit(command, timeout_s=5) for command in commands),
        return_exceptions=True,
    )
    bad_ones = [outcomes.pop(7), outcomes.pop(7)]
    assert all(isinstance(outcome, Landed) for outcome in outcomes)
    assert all(isinstance(outcome, Exception) for outcome in bad_ones)
    assert not any("does not answer" in str(outcome) for outcome in bad_ones)
    states = [await ledger.state(f"account:{account}") for account in accounts]
    assert [state.issued_upt for state in states] == [5] * 20
    assert isinstance(await ledger.writer.submit(granting(1, 1)), Landed)


async def test_an_account_whose_state_cannot_be_read_stops_alone(
    ledger: LedgerSite, database: Database
) -> None:
    for account in (1, 2):
        await ledger.open_account(account, 5)
    async with (
        ledger_on(database.app_url) as other,
        await connect(database.superuser_url, application="test") as connection,
    ):
        cursor = await connection.execute("SELECT state FROM streams WHERE stream = 'account:1'")
        row = await cursor.fetchone()
        assert row is not None
        await connection.execute(
            "UPDATE streams SET state = 'torn'::bytea WHERE stream = 'account:1'"
        )
        outcomes = await asyncio.gather(
            *(other.writer.submit(granting(account, 1), timeout_s=5) for account in (1, 2)),
            return_exceptions=True,
        )
        assert isinstance(outcomes[0], msgspec.DecodeError)
        assert isinstance(outcomes[1], Landed)
        await connection.execute(
            "UPDATE streams SET state = %s WHERE stream = 'account:1'", (row[0],)
        )
        assert isinstance(await other.writer.submit(granting(1, 1)), Landed)


async def test_a_decision_that_raises_fails_its_own_command_only(ledger: LedgerSite) -> None:
    await ledger.open_account(1, 5)

    def broken(*_: object) -> Any:
        raise ZeroDivisionError

    outcomes = await asyncio.gather(
        ledger.writer.submit(granting(1, 1)),
        ledger.writer.submit(on_first(("account:1",), broken)),
        ledger.writer.submit(granting(1, 2)),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [Landed, ZeroDivisionError, Landed]


@asynccontextmanager
async def unstarted(database: Database) -> AsyncGenerator[Writer]:
    """A writer that takes commands and does not yet record them."""
    watch = LogWatch(database.app_url)
    yield Writer(database.app_url, FOLDS, CLOCK, RANDOMNESS, watch)


async def test_a_full_queue_refuses_newcomers_while_settles_still_get_in(
    ledger: LedgerSite, database: Database
) -> None:
    await ledger.open_account(1, 10)
    request = new_request()
    await ledger.points.hold("account:1", hold_asked(request), new_id())
    async with unstarted(database) as writer:
        waiting = [
            asyncio.create_task(
                writer.submit(Command(new_id(), ("account:1",), lambda _, __: Refuse("no")))
            )
            for _ in range(QUEUE_MAX)
        ]
        await asyncio.sleep(0)
        assert writer.waiting == QUEUE_MAX
        with pytest.raises(Unavailable) as refused:
            await writer.submit(granting(1, 1))
        assert refused.value.retry_after_s == 1
        settle = asyncio.create_task(writer.submit(settling(1, settle_asked(request))))
        await asyncio.sleep(0)
        assert writer.waiting == QUEUE_MAX + 1
        writer.start()
        assert isinstance(await settle, Landed)
        assert set(await asyncio.gather(*waiting)) == {Refused("no")}
        await writer.stop()


async def test_a_command_that_is_not_answered_in_time_is_unavailable_and_its_id_tells(
    ledger: LedgerSite, database: Database
) -> None:
    await ledger.open_account(1, 0)
    command = granting(1, 5)
    async with (
        await connect(database.superuser_url, application="test") as connection,
        connection.transaction(),
    ):
        await connection.execute(LOCK_STREAM, ("account:1",))
        began_s = CLOCK.monotonic_s()
        with pytest.raises(Unavailable):
            await ledger.writer.submit(command, timeout_s=0.3)
        assert CLOCK.monotonic_s() - began_s < 2
    assert isinstance(await ledger.writer.submit(command), AlreadyDone | Landed)
    assert (await ledger.state("account:1")).issued_upt == 5


async def test_a_command_whose_caller_left_before_it_was_sent_is_not_recorded(
    ledger: LedgerSite, database: Database
) -> None:
    await ledger.open_account(1, 0)
    async with unstarted(database) as writer:
        task = asyncio.create_task(writer.submit(granting(1, 5)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        writer.start()
        await writer.submit(granting(1, 1))
        await writer.stop()
    assert (await ledger.state("account:1")).issued_upt == 1


async def test_a_read_only_site_says_why_and_records_nothing(
    ledger: LedgerSite, database: Database
) -> None:
    account = await ledger.open_account(1, 5)
    before = await ledger.rows()
    async with await connect(database.owner_url, application="test") as connection:
        await connection.execute(READ_ONLY, ("a restore is not complete",))
        with pytest.raises(Unavailable, match="a restore is not complete"):
            await ledger.writer.submit(granting(1, 5))
        with pytest.raises(Unavailable):
            await ledger.points.hold(account, hold_asked(new_request()), new_id())
        refused = Command(new_id(), (account,), lambda _, __: Refuse("no"))
        assert await ledger.writer.submit(refused) == Refused("no")
        assert await ledger.rows() == before
        assert await ledger.leases() == {}
        await connection.execute(READ_ONLY, (None,))
    assert isinstance(await ledger.writer.submit(granting(1, 5)), Landed)


async def test_a_stopping_writer_commits_what_was_queued(database: Database) -> None:
    async with unstarted(database) as writer:
        tasks = [asyncio.create_task(writer.submit(opening(n))) for n in range(1, 601)]
        await asyncio.sleep(0)
        writer.start()
        await asyncio.sleep(0)
        await writer.stop()
        outcomes = await asyncio.gather(*tasks)
        assert all(isinstance(outcome, Landed) for outcome in outcomes)
    assert len(await assert_sound(database)) == 600


async def test_a_writer_that_is_stopped_leaves_nobody_waiting(database: Database) -> None:
    async with unstarted(database) as writer:
        task = asyncio.create_task(writer.submit(opening(1), timeout_s=60))
        await asyncio.sleep(0)
        await writer.stop()
        async with asyncio.timeout(1):
            with pytest.raises(Unavailable):
                await task


async def test_the_heads_that_a_writer_keeps_are_only_a_guess(
    ledger: LedgerSite, database: Database
) -> None:
    """Whatever it remembers, what lands was decided on what is committed."""
    await ledger.open_account(1, 1)
    wrong = Folds([Fold("account", Account(), ACCOUNT.apply)])
    async with ledger_on(database.app_url, wrong) as other:
        await other.writer.submit(granting(1, POINT))
        await ledger.writer.submit(granting(1, POINT))
        held = [await other.writer.submit(holding(1, hold_asked(new_request()))) for _ in range(4)]
        kinds = [
            type(outcome.events[0]).__name__ for outcome in held if isinstance(outcome, Landed)
        ]
    assert kinds == ["PointsHeld"] * 3 + ["RequestRefused"]
