"""A process that sleeps past its leases and wakes, and one that is asked to end under load."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from schemas.money import format_points
from tests.conftest import Database
from tests.faults.books import (
    check_audit,
    check_states,
    open_leases,
    read_books,
    until_begun,
    until_ended,
)
from tests.faults.calling import DUE, DUE_UPT, GATED, Calling
from tests.faults.conftest import MakeRole
from tests.faults.figures import Report, scenario
from tests.faults.load import Load
from tests.faults.site import open_accounts, outside_database, until_served
from tests.upstream import FakeUpstream

pytestmark = pytest.mark.fault("F8")

WIDTH = 12
ROOMY_LEASES = {"LEASE_SECONDS": "4", "LEASE_RENEW_SECONDS": "1"}
"""A busy machine must not end a lease before the test does."""


async def test_usage_of_a_process_that_slept_past_its_leases_is_late_and_not_a_second_outcome(
    database: Database, upstream: FakeUpstream, make_role: MakeRole, report: Report
) -> None:
    upstream.by_model["gated"] = GATED
    environment = outside_database(database.app_url, database.owner_url) | ROOMY_LEASES
    sleeper, sweeper = make_role("api", environment), make_role("worker", environment)
    accounts = await open_accounts(sleeper.environment, upstream.url)
    await asyncio.gather(sleeper.start(), sweeper.start())
    await until_served(sleeper.url, accounts)
    calling = Calling(sleeper, accounts[0], upstream)
    begun = await calling.open(streamed=True)
    begun.allow(2)
    await begun.until("chunks:2")
    unbegun = await calling.open(streamed=True)
    whole = await calling.open(streamed=False)
    await until_begun(database.app_url, {begun.request_id})
    sleeper.pause()
    await until_ended(database.app_url)
    await calling.let_go()
    sleeper.resume()
    await calling.ended()
    books = await read_books(database.app_url)
    assert books.check(accounts, calling.calls, upstream.reported()) == []
    assert {call.points for call in calling.calls} == {DUE}
    for seen, released in ((begun, 0), (unbegun, 1), (whole, 1)):
        request = books.requests[seen.request_id]
        assert request.swept
        assert len(request.released) == released
        assert [late.amount_upt > 0 for late in request.late] == [True]
        assert request.charged_upt == DUE_UPT, format_points(request.charged_upt)
    await check_states(database.app_url, books)
    await check_audit(sleeper.environment)
    note = "3 late settlements, each charged its difference"
    report.rows.append(scenario("F8", "API asleep while all its calls are swept", 1, note))


async def test_a_process_whose_clients_hung_up_ends_soon_and_settles_what_they_owe(
    database: Database, upstream: FakeUpstream, make_role: MakeRole, chance: Random
) -> None:
    role = make_role("api", outside_database(database.app_url, database.owner_url))
    accounts = await open_accounts(role.environment, upstream.url)
    await role.start()
    await until_served(role.url, accounts)
    async with Load(role.url, accounts, ("long", "quick"), chance, WIDTH) as load:
        await load.until_answered(WIDTH)
        await load.hang_up()
        began_s = asyncio.get_running_loop().time()
        role.ask_to_stop()
        assert await role.ended() == 0
        assert asyncio.get_running_loop().time() - began_s < 10
    assert await open_leases(database.app_url) == set()
    books = await read_books(database.app_url)
    books.check(accounts, load.calls, upstream.reported())
