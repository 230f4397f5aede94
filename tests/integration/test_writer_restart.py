"""PostgreSQL goes down in the middle of a load and comes back: every command has one fate."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import pytest

from backend.journal.commands import Landed, Outcome
from backend.journal.migrate import migrate
from backend.kit.embedded import start_parts
from schemas.ledger import HoldSettled
from tests.conftest import Database
from tests.embedded_site import open_folder, site_settings
from tests.given import hold_asked, holding, new_request, settle_asked, settling
from tests.integration.ledger_site import LedgerSite, assert_sound, ledger_on
from tests.servers import REDIS_ELSEWHERE

ACCOUNTS = range(1, 9)


async def calls(site: LedgerSite, account: int, stop: asyncio.Event) -> list[Outcome]:
    outcomes: list[Outcome] = []
    while not stop.is_set():
        request = new_request()
        hold, settle = holding(account, hold_asked(request)), settle_asked(request)
        outcomes.append(await site.writer.submit(hold, timeout_s=30))
        outcomes.append(await site.writer.submit(settling(account, settle), timeout_s=30))
    return outcomes


@pytest.mark.parametrize("how", [signal.SIGQUIT, signal.SIGINT])
async def test_a_restart_under_load_loses_and_doubles_nothing(how: signal.Signals) -> None:
    with open_folder() as folder:
        settings = site_settings(folder, redis_url=REDIS_ELSEWHERE)
        running = await start_parts(settings)
        try:
            parts = running.parts
            await asyncio.to_thread(migrate, parts.database_owner_url, parts.database_url)
            async with ledger_on(parts.database_url) as site:
                server = running.pids()["postgres"]
                outcomes = await _loaded(site, lambda: os.kill(server, how))
            assert running.pids()["postgres"] != server, "it is another server process now"
            assert all(isinstance(outcome, Landed) for outcome in outcomes)
            url = parts.database_owner_url
            rows = await assert_sound(Database(parts.database_url, url, url, "suanpan"))
            settled = [row for row in rows if row.type == HoldSettled.__name__]
            assert len(settled) == len(outcomes) // 2
        finally:
            await running.stop()


async def _loaded(site: LedgerSite, break_it: Callable[[], None]) -> list[Outcome]:
    for account in ACCOUNTS:
        await site.open_account(account, 100_000)
    stop = asyncio.Event()
    tasks = [asyncio.create_task(calls(site, account, stop)) for account in ACCOUNTS]
    await _landed(site, 100)
    break_it()
    await _landed(site, 200)
    stop.set()
    return [outcome for done in await asyncio.gather(*tasks) for outcome in done]


async def _landed(site: LedgerSite, more: int) -> None:
    """Until this many more commands have landed."""
    goal = site.writer.commands_landed + more
    async with asyncio.timeout(40):
        while site.writer.commands_landed < goal:  # noqa: ASYNC110 - a counter has no event
            await asyncio.sleep(0.01)
