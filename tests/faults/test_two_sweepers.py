"""Two processes sweep the requests of a third that died: each request is ended once."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from backend.folds import ALL_FOLDS
from backend.kit.clock import SystemClock
from backend.ledger.leases import LeaseKeeper, Progress, find_expired
from backend.ledger.points import Points
from backend.ledger.spool import Spool
from schemas.ids import ChannelId, RequestId
from schemas.ledger import ReleaseReason
from schemas.prices import cost_of
from schemas.usage import Basis, Usage
from tests.conftest import Database
from tests.faults.books import check_states, open_leases, read_books, until_begun
from tests.faults.figures import Report, scenario
from tests.faults.site import PER_TOKEN, PLENTY, Account, open_accounts, outside_database
from tests.given import hold_asked, new_request
from tests.integration.identity_site import Process, process_of
from workers.sweeping import Sweeper

pytestmark = pytest.mark.fault("F30")

HOLDS = 60
LEASE_S = 1
RACES_TIMEOUT_S = 20.0
SPOKEN = Progress(input=40, output=7, begun=True, channel=ChannelId(1))


async def died(
    process: Process, accounts: tuple[Account, ...], database_url: str
) -> dict[RequestId, bool]:
    """Holds of a process that then says no more; whether each had begun to answer."""
    points = Points(process.writer, process.pool)
    keeper = LeaseKeeper(process.pool, SystemClock(), LEASE_S, 0.1)
    newest = await process.catalog.newest_price("quick")
    assert newest is not None
    ref, price = newest
    begun: dict[RequestId, bool] = {}
    for number in range(HOLDS):
        request = new_request()
        asked = hold_asked(
            request, price, model=ref.model, price_ref=ref, lease_s=LEASE_S, output_limit=100
        )
        account = accounts[number % len(accounts)]
        await points.hold(account.stream, asked, process.writer.new_id())
        begun[request] = number % 2 == 0
        progress = SPOKEN if begun[request] else Progress(input=40)
        keeper.track(request, lambda progress=progress: progress)
    keeper.start()
    await until_begun(database_url, {request for request, spoke in begun.items() if spoke})
    await keeper.stop()
    return begun


async def until_expired(process: Process) -> None:
    """Waits until Postgres says that every lease has run out."""
    async with asyncio.timeout(RACES_TIMEOUT_S), process.pool.connection() as connection:
        expired = 0
        while expired < HOLDS:
            await asyncio.sleep(0.02)
            expired = len(await find_expired(connection, HOLDS))


async def test_two_sweepers_end_each_request_once(
    database: Database, tmp_path: Path, report: Report
) -> None:
    environment = outside_database(database.app_url, database.owner_url)
    environment |= {"SUANPAN_DATA_DIR": str(tmp_path / "data")}
    accounts = await open_accounts(environment, "http://127.0.0.1:1/v1", (PLENTY,) * 3)
    async with AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(process_of(database.app_url)) for _ in "ab"]
        begun = await died(processes[0], accounts, database.app_url)
        sweepers = [
            Sweeper(
                process.pool,
                ALL_FOLDS,
                Points(process.writer, process.pool),
                process.catalog.prices,
                Spool(tmp_path / f"spool{number}"),
                every_s=60,
            )
            for number, process in enumerate(processes)
        ]
        assert await open_leases(database.app_url) == set(begun)
        await until_expired(processes[0])
        # Both find the same leases and race for every one of them; a race that is lost is run
        # again by whoever sweeps next.
        async with asyncio.timeout(RACES_TIMEOUT_S):
            while await open_leases(database.app_url):
                await asyncio.gather(*(sweeper.sweep() for sweeper in sweepers))
    books = await read_books(database.app_url)
    books.check(accounts, [], {})
    assert sum(sweeper.swept for sweeper in sweepers) == HOLDS
    owed_upt = cost_of(PER_TOKEN, Usage(input=40, output=7))
    for request, spoke in begun.items():
        ended = books.requests[request]
        if spoke:
            assert [(e.basis, e.amount_upt) for e in ended.settled] == [(Basis.COUNTED, owed_upt)]
        else:
            assert [e.reason for e in ended.released] == [ReleaseReason.SWEPT]
    await check_states(database.app_url, books)
    note = f"{HOLDS} holds, each ended once"
    report.rows.append(
        scenario("F30", "two sweepers race for every hold of a dead process", 1, note)
    )
