"""The sweep ends what nobody ends any more, once; a zombie that comes back is charged as late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from backend.catalog.price import PRICE
from backend.catalog.price_history import PriceHistory
from backend.journal.commands import Accept, Command, Landed, Standing
from backend.journal.fold import Folds
from backend.kit.postgres import connect
from backend.ledger.account import ACCOUNT
from backend.ledger.leases import Progress
from backend.ledger.spool import Spool
from schemas.catalog import PriceSet
from schemas.ids import RequestId, price_stream
from schemas.ledger import (
    HoldReleased,
    HoldSettled,
    ReleaseReason,
    Served,
    ShortfallRecorded,
    UsageLate,
)
from schemas.prices import PerCall, Price
from schemas.usage import Basis, Usage
from tests.conftest import Database
from tests.given import (
    MODEL,
    PER_TOKEN,
    POINT,
    charged,
    hold_asked,
    new_id,
    new_request,
    settle_asked,
)
from tests.integration.ledger_site import LedgerSite, ledger_on
from tests.integration.log_writing import until
from workers.sweeping import Sweeper

SET_PROGRESS = """
UPDATE leases SET progress = %s, generation = generation + 1 WHERE request_id = %s::uuid
"""
FOLDS = Folds([ACCOUNT, PRICE])


def pricing(model: str, price: Price) -> Command:
    def decide(standings: tuple[Standing, ...], at_us: int) -> Accept:
        return Accept(((0, PriceSet(price)),))

    return Command(new_id(), (price_stream(model),), decide)


class SweptSite:
    """A ledger whose model has its price in the catalogue, and a sweeper that is not started."""

    def __init__(self, ledger: LedgerSite, database: Database, folder: Path) -> None:
        self.ledger = ledger
        self.database = database
        self.spool = Spool(folder / "spool")
        self.sweeper = self.make_sweeper()

    def make_sweeper(self, every_s: float = 0.02) -> Sweeper:
        return Sweeper(
            self.ledger.pool,
            FOLDS,
            self.ledger.points,
            PriceHistory(self.ledger.pool),
            self.spool,
            every_s,
        )

    async def held(self, account: str, progress: Progress | None = None, **more: Any) -> RequestId:
        """A request of somebody who died; its lease has run out."""
        request = new_request()
        asked = hold_asked(request, PER_TOKEN, **{"lease_s": 0, **more})
        await self.ledger.points.hold(account, asked, new_id())
        if progress is not None:
            async with await connect(self.database.app_url, application="test") as connection:
                text = msgspec.json.encode(progress).decode()
                await connection.execute(SET_PROGRESS, (text, request))
        return request

    async def ends(self, account: str, request: str) -> list[Any]:
        return [
            event
            for event in await self.ledger.events(account)
            if isinstance(event, HoldSettled | HoldReleased | ShortfallRecorded | UsageLate)
            and event.request_id == request
        ]


@pytest_asyncio.fixture
async def swept(database: Database, tmp_path: Path) -> AsyncGenerator[SweptSite]:
    async with ledger_on(database.app_url, FOLDS) as ledger:
        assert isinstance(await ledger.writer.submit(pricing(MODEL, PER_TOKEN)), Landed)
        yield SweptSite(ledger, database, tmp_path)


async def test_a_request_that_never_began_is_released(swept: SweptSite) -> None:
    account = await swept.ledger.open_account(1, 10)
    request = await swept.held(account)
    assert await swept.sweeper.sweep() == 1
    (end,) = await swept.ends(account, request)
    assert isinstance(end, HoldReleased)
    assert end.reason is ReleaseReason.SWEPT
    state = await swept.ledger.state(account)
    assert (state.available_upt, state.holds) == (10 * POINT, {})
    assert await swept.ledger.leases() == {}


async def test_leases_of_requests_that_have_ended_are_forgotten(swept: SweptSite) -> None:
    account = await swept.ledger.open_account(1, 10)
    request = await swept.held(account)
    assert await swept.sweeper.sweep() == 1
    async with await connect(swept.database.app_url, application="test") as connection:
        # As a restored backup has it, when the end of the request has come back from Kafka.
        await connection.execute(
            "INSERT INTO leases (request_id, stream, until) VALUES (%s::uuid, %s, now())",
            (request, account),
        )
    assert await swept.sweeper.sweep() == 0
    assert await swept.ledger.leases() == {}
    assert len(await swept.ends(account, request)) == 1


async def test_a_request_that_began_is_settled_by_its_last_progress(swept: SweptSite) -> None:
    account = await swept.ledger.open_account(1, 10)
    request = await swept.held(account, Progress(30, 7, begun=True, upstream_model="up"))
    assert await swept.sweeper.sweep() == 1
    (end,) = await swept.ends(account, request)
    assert isinstance(end, HoldSettled)
    assert (end.swept, end.basis, end.usage) == (True, Basis.COUNTED, Usage(input=30, output=7))
    assert end.amount_upt == 30 * 100 + 7 * 200
    assert end.served == Served(upstream_model="up", error="interrupted")


async def test_progress_beyond_the_hold_takes_what_is_left_and_records_the_rest(
    swept: SweptSite,
) -> None:
    account = await swept.ledger.open_account(1, 1)
    request = await swept.held(account, Progress(0, 6_000, begun=True), output_limit=10)
    assert await swept.sweeper.sweep() == 1
    settled, shortfall = await swept.ends(account, request)
    assert (settled.amount_upt, shortfall.amount_upt) == (POINT, 200_000)
    assert (await swept.ledger.state(account)).available_upt == 0


async def test_nothing_that_lives_is_swept(swept: SweptSite) -> None:
    account = await swept.ledger.open_account(1, 10)
    await swept.held(account, lease_s=30)
    assert await swept.sweeper.sweep() == 0
    assert len((await swept.ledger.state(account)).holds) == 1


async def test_a_price_is_the_one_that_was_held_at(swept: SweptSite) -> None:
    account = await swept.ledger.open_account(1, 10)
    request = await swept.held(account, Progress(0, 10, begun=True))
    await swept.ledger.writer.submit(pricing(MODEL, PerCall(9 * 10**9)))
    assert await swept.sweeper.sweep() == 1
    (end,) = await swept.ends(account, request)
    assert (end.amount_upt, end.price.version) == (10 * 200, 1)


async def test_one_that_cannot_be_ended_does_not_keep_the_others(swept: SweptSite) -> None:
    """Its model has no price in the log: the oldest lease of all."""
    account = await swept.ledger.open_account(1, 10)
    stuck = await swept.held(account, Progress(1, 1, begun=True), model="gone")
    others = [await swept.held(account, Progress(1, 1, begun=True)) for _ in range(3)]
    assert await swept.sweeper.sweep() == 3
    assert list((await swept.ledger.state(account)).holds) == [stuck]
    assert all([await swept.ends(account, request) for request in others])


async def test_many_sweepers_end_each_request_once(swept: SweptSite) -> None:
    accounts = [await swept.ledger.open_account(n, 100) for n in range(1, 5)]
    requests = [
        (account, await swept.held(account, Progress(1, 1, begun=index % 2 == 0)))
        for index in range(6)
        for account in accounts
    ]
    sweepers = [swept.make_sweeper() for _ in range(4)]
    ended = 0
    async with asyncio.timeout(20):
        while await swept.ledger.leases():
            ended += sum(await asyncio.gather(*(sweeper.sweep() for sweeper in sweepers)))
    assert ended == len(requests)
    for account, request in requests:
        assert len(await swept.ends(account, request)) == 1


async def test_a_settle_and_a_sweep_that_race_leave_one_outcome(swept: SweptSite) -> None:
    account = await swept.ledger.open_account(1, 1_000)
    requests = [await swept.held(account, Progress(1, 1, begun=n % 2 == 0)) for n in range(40)]
    usage = Usage(input=1, output=100)
    cost_upt = 100 + 100 * 200
    async with ledger_on(swept.database.app_url, FOLDS) as dying:
        sweeping = asyncio.create_task(swept.sweeper.sweep())
        charges = await asyncio.gather(
            *(dying.points.settle(account, settle_asked(r, PER_TOKEN, usage)) for r in requests)
        )
        swept_count = await sweeping + await swept.sweeper.sweep()
    assert charges == [charged(cost_upt)] * 40
    late = 0
    for request in requests:
        events = await swept.ends(account, request)
        outcomes = [e for e in events if not isinstance(e, UsageLate)]
        assert len(outcomes) == 1
        late += len(events) - 1
        assert sum(e.amount_upt for e in events if not isinstance(e, HoldReleased)) == cost_upt
    assert late == swept_count
    state = await swept.ledger.state(account)
    assert (state.charged_upt, state.held_upt) == (40 * cost_upt, 0)


@pytest.mark.parametrize("begun", [True, False])
async def test_a_zombies_settle_is_late_usage_at_most_once(swept: SweptSite, begun: bool) -> None:
    account = await swept.ledger.open_account(1, 1)
    request = await swept.held(account, Progress(0, 10, begun=begun), output_limit=10)
    assert await swept.sweeper.sweep() == 1
    by_sweep = 2_000 if begun else 0
    asked = settle_asked(request, PER_TOKEN, Usage(output=6_000))
    charges = [await swept.ledger.points.settle(account, asked) for _ in range(3)]
    charges += await asyncio.gather(*(swept.ledger.points.settle(account, asked) for _ in "ab"))
    assert charges == [charged(POINT, 200_000)] * 5, "the same answer however often it is asked"
    _, late = await swept.ends(account, request)
    assert isinstance(late, UsageLate)
    assert (late.amount_upt, late.shortfall_upt) == (POINT - by_sweep, 200_000)
    rows = [row for row in await swept.ledger.rows() if row.event_id == late.sweep_event_id]
    assert [row.type for row in rows] == ["HoldSettled" if begun else "HoldReleased"]
    assert (await swept.ledger.state(account)).available_upt == 0


async def test_a_release_after_a_sweep_changes_nothing(swept: SweptSite) -> None:
    account = await swept.ledger.open_account(1, 10)
    request = await swept.held(account, Progress(0, 10, begun=True))
    await swept.sweeper.sweep()
    before = await swept.ledger.rows()
    await swept.ledger.points.release(account, request, ReleaseReason.CLIENT_LEFT, Served())
    assert await swept.ledger.points.extend(account, request, 5) == 0
    assert await swept.ledger.rows() == before


async def test_a_started_sweeper_goes_on_by_itself_and_replays_the_spool(
    swept: SweptSite,
) -> None:
    account = await swept.ledger.open_account(1, 10)
    dead = await swept.held(account)
    owed = await swept.held(account, lease_s=30)
    await swept.spool.put(account, settle_asked(owed, PER_TOKEN, Usage(output=3)))
    swept.sweeper.start()
    try:

        async def ended() -> bool:
            return not (await swept.ledger.state(account)).holds

        await until(ended, timeout_s=10)
    finally:
        await swept.sweeper.stop()
    assert [type(e) for e in await swept.ends(account, dead)] == [HoldReleased]
    (settled,) = await swept.ends(account, owed)
    assert settled.amount_upt == 600
    assert swept.spool.waiting() == 0
