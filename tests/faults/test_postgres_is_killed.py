"""`kill -9` of the embedded servers under load: the site's supervisor brings them back."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random

import psutil
import pytest

from tests.faults.books import check_audit, check_states, read_books, until_ended
from tests.faults.chance import rounds_of
from tests.faults.conftest import MakeRole
from tests.faults.load import Ending, Load
from tests.faults.roles import Role, database_url
from tests.faults.site import LOAD_MODELS, PLENTY, SCANT, open_accounts, until_served
from tests.upstream import FakeUpstream

pytestmark = pytest.mark.fault("F9")

WIDTH = 12
KILLS = rounds_of(2, weight=3)
KILLS_PER_START = 5
"""The supervisor gives a server up that falls again and again within a minute."""
RESTART_TIMEOUT_S = 30.0


async def kill_and_await_another(role: Role, name: str) -> None:
    """Kills an embedded server; returns when the supervisor has started its successor."""
    server = role.child(name)
    server.kill()
    async with asyncio.timeout(RESTART_TIMEOUT_S):
        while True:
            with contextlib.suppress(StopIteration, psutil.Error):
                if role.child(name).pid != server.pid:
                    return
            await asyncio.sleep(0.05)


async def test_after_postgres_is_killed_every_answer_is_charged_as_reported(
    upstream: FakeUpstream, make_role: MakeRole, chance: Random
) -> None:
    role = make_role("serve", {"RELAY_COOLDOWN_S": "1"})
    await role.start()
    accounts = await open_accounts(role.environment, upstream.url, (PLENTY, PLENTY, SCANT))
    await until_served(role.url, accounts)
    async with Load(role.url, accounts, LOAD_MODELS, chance, WIDTH) as load:
        for number in range(KILLS):
            if number and number % KILLS_PER_START == 0:
                load.up.clear()
                await load.until_idle()
                role.end()
                await role.start()
                load.up.set()
            await load.until_answered(chance.randint(4, 2 * WIDTH))
            await asyncio.sleep(chance.uniform(0, 0.05))
            await kill_and_await_another(role, "postgres")
        await load.until_answered(WIDTH)
    url = database_url(role)
    await until_ended(url)
    books = await read_books(url)
    unpaid = books.check(accounts, load.calls, upstream.reported())
    assert unpaid == [], "the process lived: it owes a settlement for every completed answer"
    assert {call.status for call in load.ended(Ending.REFUSED)} <= {402, 503}
    assert load.ended(Ending.BROKEN) == []
    assert load.ended(Ending.ERROR_FRAME) == []
    await check_states(url, books)
    await check_audit(role.environment)


async def test_the_relay_goes_on_while_valkey_is_gone(
    upstream: FakeUpstream, make_role: MakeRole, chance: Random
) -> None:
    role = make_role("serve", {})
    await role.start()
    accounts = await open_accounts(role.environment, upstream.url)
    await until_served(role.url, accounts)
    async with Load(role.url, accounts, ("quick", "long"), chance, 4) as load:
        await load.until_answered(4)
        await kill_and_await_another(role, "valkey-server")
        await load.until_answered(8)
    assert {call.ending for call in load.calls} == {Ending.ANSWERED}, load.calls
    books = await read_books(database_url(role))
    assert books.check(accounts, load.calls, upstream.reported()) == []
