"""Postgres goes away between an answer and its settlement: the usage waits on disk, and is charged
once.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import Database
from tests.embedded_site import eventually
from tests.faults.books import check_audit, open_leases, read_books, until_ended
from tests.faults.calling import DUE, DUE_UPT, GATED, Calling, answered_once
from tests.faults.conftest import MakeRole
from tests.faults.figures import Report, scenario
from tests.faults.gateway import Gateway
from tests.faults.load import Ending
from tests.faults.roles import Role
from tests.faults.site import open_accounts, outside_database, until_served
from tests.upstream import FakeUpstream

pytestmark = pytest.mark.fault("F9")

SETTLE_TIMEOUT_S = 10.0
"""How long a stream waits for its settlement before it ends with an error (DESIGN: 10 s)."""
LONG_LEASES = {"LEASE_SECONDS": "60", "LEASE_RENEW_SECONDS": "20"}


def spooled(role: Role) -> int:
    return len(list((role.data_dir / "spool").glob("*.json")))


async def test_usage_that_postgres_could_not_take_is_charged_once_whoever_died_meanwhile(
    database: Database, upstream: FakeUpstream, make_role: MakeRole, report: Report
) -> None:
    upstream.by_model["gated"] = GATED
    direct = outside_database(database.app_url, database.owner_url)
    async with Gateway(database.app_url) as gateway:
        behind = direct | {"DATABASE_URL": gateway.through(database.app_url)}
        dying = make_role("api", behind | LONG_LEASES)
        living = make_role("api", behind)
        sweeping = make_role("worker", direct)
        accounts = await open_accounts(dying.environment | direct, upstream.url)
        await asyncio.gather(dying.start(), living.start(), sweeping.start())
        await asyncio.gather(*(until_served(one.url, accounts) for one in (dying, living)))
        by_dying = Calling(dying, accounts[0], upstream)
        by_living = Calling(living, accounts[0], upstream)
        for calling in (by_dying, by_living):
            await calling.open(streamed=True)
            await calling.open(streamed=False)
        await gateway.cut()
        began_s = asyncio.get_running_loop().time()
        await asyncio.gather(by_dying.let_go(), by_living.let_go())
        await asyncio.gather(by_dying.ended(), by_living.ended())
        took_s = asyncio.get_running_loop().time() - began_s
        assert SETTLE_TIMEOUT_S - 1 < took_s < SETTLE_TIMEOUT_S + 5
        for calling in (by_dying, by_living):
            endings = [call.ending for call in calling.calls]
            assert endings == [Ending.ERROR_FRAME, Ending.REFUSED], calling.calls
            assert calling.calls[1].status == 503
        assert spooled(dying) == spooled(living) == 2
        dying.kill()
        await until_ended(database.app_url, {seen.request_id for seen in by_living.seen})
        await gateway.restore()
        await eventually(lambda: spooled(living) == 0)
        assert spooled(dying) == 2
        await dying.start()
        await eventually(lambda: spooled(dying) == 0)
        books = await read_books(database.app_url)
        assert books.check(accounts, [], upstream.reported()) == []
        for seen in by_dying.seen:
            request = books.requests[seen.request_id]
            assert not request.swept
            assert request.late == []
        for seen in by_living.seen:
            assert books.requests[seen.request_id].swept, "someone else swept it meanwhile"
            assert len(books.requests[seen.request_id].late) == 1
        charged = {request.charged_upt for request in books.requests.values()}
        assert charged == {DUE_UPT}
    await check_audit(dying.environment | direct)
    note = "4 settlements waited on disk, each charged once"
    report.rows.append(scenario("F9", "Postgres gone between answer and settlement", 1, note))


async def test_an_append_whose_answer_was_lost_is_found_and_not_repeated(
    database: Database, upstream: FakeUpstream, make_role: MakeRole, report: Report
) -> None:
    upstream.by_model["gated"] = GATED
    direct = outside_database(database.app_url, database.owner_url)
    async with Gateway(database.app_url) as gateway:
        role = make_role("api", direct | {"DATABASE_URL": gateway.through(database.app_url)})
        accounts = await open_accounts(role.environment | direct, upstream.url)
        await role.start()
        await until_served(role.url, accounts)
        await answered_once(role, accounts[0])
        calling = Calling(role, accounts[0], upstream)
        opening = asyncio.create_task(calling.open(streamed=True))
        gateway.deafen()
        async with asyncio.timeout(10):
            while not await open_leases(database.app_url):  # noqa: ASYNC110 - Postgres has no event
                await asyncio.sleep(0.02)
        await gateway.cut()
        await gateway.restore()
        seen = await opening
        assert len(await open_leases(database.app_url)) == 1, "the hold was found, not repeated"
        # The account's state is in memory again: what is sent next is the settlement itself.
        await answered_once(role, accounts[0])
        gateway.deafen()
        await calling.let_go()
        await until_ended(database.app_url)
        await gateway.cut()
        await gateway.restore()
        await calling.ended()
        assert calling.calls[0].ending is Ending.ANSWERED
        assert calling.calls[0].points == DUE
        assert calling.calls[0].request_id == seen.request_id
        assert spooled(role) == 0
        books = await read_books(database.app_url)
        assert books.check(accounts, calling.calls, upstream.reported()) == []
        assert len(books.requests) == 3
    note = "hold and settlement were found by their command, not made again"
    report.rows.append(scenario("F27", "an append lands and its answer is lost", 2, note))
