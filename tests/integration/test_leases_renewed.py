"""Leases: renewed with progress, and a sweep that lands only for the generation that it saw."""

from __future__ import annotations

import asyncio

from backend.journal.commands import Command, Landed, LeaseSweep, LostRace, Refused
from backend.kit.postgres import connect
from backend.ledger.decide import decide_release
from backend.ledger.leases import LeaseKeeper, Progress, find_expired
from schemas.ids import ChannelId, RequestId
from schemas.ledger import HoldReleased, ReleaseReason, Served
from tests.conftest import Database
from tests.given import CLOCK, granting, hold_asked, new_id, new_request, on_first
from tests.integration.ledger_site import LedgerSite
from tests.integration.log_writing import until


async def held(ledger: LedgerSite, account: str, lease_s: int = 30) -> RequestId:
    request = new_request()
    await ledger.points.hold(account, hold_asked(request, lease_s=lease_s), new_id())
    return request


def sweeping(account: str, request: RequestId, generation: int) -> Command:
    return on_first(
        (account,),
        lambda state, _, __: decide_release(
            state, request, ReleaseReason.SWEPT, Served(), LeaseSweep(request, generation)
        ),
        tries_once=True,
    )


async def test_a_renewal_moves_generation_and_progress_and_only_of_what_is_tracked(
    ledger: LedgerSite,
) -> None:
    account = await ledger.open_account(1, 10)
    mine, other = await held(ledger, account), await held(ledger, account)
    keeper = LeaseKeeper(ledger.pool, CLOCK, lease_s=30, renew_every_s=0.1)
    tokens = 0

    def progress() -> Progress:
        nonlocal tokens
        tokens += 1
        return Progress(7, tokens, begun=True, channel=ChannelId(3), upstream_model="up")

    keeper.track(mine, progress)
    keeper.start()
    try:

        async def renewed() -> bool:
            return (await ledger.leases())[mine][0] >= 3

        await until(renewed, timeout_s=10)
        keeper.drop(mine)
        assert keeper.open_count == 0
    finally:
        await keeper.stop()
    leases = await ledger.leases()
    assert leases[other] == (1, "")
    generation, text = leases[mine]
    assert text.startswith('{"input":7,"output":')
    await ledger.expire_leases()
    async with ledger.pool.connection() as connection:
        expired = {lease.request_id: lease for lease in await find_expired(connection, 10)}
    assert expired[mine].generation == generation
    assert expired[mine].account == account
    assert expired[mine].progress == Progress(7, tokens, True, ChannelId(3), "up")
    assert expired[other].progress == Progress()


async def test_a_lease_that_is_gone_is_not_brought_back_by_a_renewal(ledger: LedgerSite) -> None:
    account = await ledger.open_account(1, 10)
    request = await held(ledger, account)
    keeper = LeaseKeeper(ledger.pool, CLOCK, lease_s=30, renew_every_s=0.05)
    renewals = 0

    def progress() -> Progress:
        nonlocal renewals
        renewals += 1
        return Progress()

    keeper.track(request, progress)
    await ledger.points.release(account, request, ReleaseReason.CLIENT_LEFT, Served())
    keeper.start()
    try:

        async def tried() -> bool:
            return renewals >= 2

        await until(tried, timeout_s=10)
    finally:
        await keeper.stop()
    assert await ledger.leases() == {}


async def test_leases_run_out_by_the_databases_clock(ledger: LedgerSite) -> None:
    account = await ledger.open_account(1, 10)
    short, long = await held(ledger, account, 0), await held(ledger, account, 30)
    async with ledger.pool.connection() as connection:
        assert [lease.request_id for lease in await find_expired(connection, 10)] == [short]
    assert long in await ledger.leases()


async def test_progress_that_cannot_be_read_does_not_stop_the_others(
    ledger: LedgerSite, database: Database
) -> None:
    account = await ledger.open_account(1, 10)
    torn, other = await held(ledger, account, 0), await held(ledger, account, 0)
    async with await connect(database.app_url, application="test") as connection:
        await connection.execute(
            "UPDATE leases SET progress = '{torn' WHERE request_id = %s::uuid", (torn,)
        )
        found = {lease.request_id: lease.progress for lease in await find_expired(connection, 10)}
    assert found == {torn: Progress(), other: Progress()}


async def test_a_sweep_lands_only_for_the_generation_it_saw_and_only_once_it_ran_out(
    ledger: LedgerSite,
) -> None:
    account = await ledger.open_account(1, 10)
    request = await held(ledger, account)
    before = await ledger.rows()
    submit = ledger.writer.submit
    assert await submit(sweeping(account, request, 1)) == Refused(LostRace()), "not run out"
    await ledger.expire_leases()
    for generation in (0, 2):
        assert await submit(sweeping(account, request, generation)) == Refused(LostRace())
    assert await ledger.rows() == before
    assert isinstance(await submit(sweeping(account, request, 1)), Landed)
    assert await ledger.leases() == {}
    ends = [e for e in await ledger.events(account) if isinstance(e, HoldReleased)]
    assert [(end.request_id, end.reason) for end in ends] == [(request, ReleaseReason.SWEPT)]


async def test_a_guarded_sweep_that_loses_takes_no_neighbour_down_with_it(
    ledger: LedgerSite,
) -> None:
    """It shares a unit with whatever else its account does in that batch."""
    account = await ledger.open_account(1, 10)
    request = await held(ledger, account)
    keep, swept = await asyncio.gather(
        ledger.writer.submit(granting(1, 1)), ledger.writer.submit(sweeping(account, request, 1))
    )
    assert isinstance(keep, Landed)
    assert swept == Refused(LostRace())
