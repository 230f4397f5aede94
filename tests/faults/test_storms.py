"""Codes and subscriptions asked for by many at once, through four processes: each happens once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from backend.catalog.plan_text import WrittenItem, WrittenLevel, WrittenPlans, plans_of
from backend.catalog.plans import Plans
from backend.cli.site import Site, open_site
from backend.kit.postgres import connect
from backend.kit.settings import load_settings
from backend.ledger.codes import Codes, IssueAsked
from schemas.ledger import CodeKind
from schemas.money import MicroPoints
from tests.conftest import Database, Server
from tests.embedded_site import open_folder
from tests.faults.roles import Role
from tests.faults.site import Account, open_people
from tests.given import POINT
from tests.integration.audited_site import audited, readable
from tests.integration.ledger_site import committed
from tests.valkey import ValkeyServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROCESSES = 4
ACCOUNTS = 100
ATTEMPTS = 100
"""Of each account."""
AT_ONCE = 128
"""Under way at the same moment; the others stand in the line."""
TIMEOUT_S = 120.0
WORTH_UPT = 66 * POINT

Answers = list[tuple[int, Any]]


class Four:
    """Four processes that answer, over one database."""

    def __init__(
        self, database: Database, roles: Sequence[Role], environment: dict[str, str]
    ) -> None:
        self.database = database
        self.urls = [role.url for role in roles]
        self.environment = environment
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=AT_ONCE),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        )

    async def post(self, number: int, path: str, key: str, body: Any, **headers: str) -> Any:
        """The answer of the number's process; asked again while it is too busy to look at it."""
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        while True:
            async with self.session.post(
                self.urls[number % PROCESSES] + path,
                json=body,
                headers={"authorization": f"Bearer {key}", **more},
            ) as answer:
                if answer.status != 503:
                    return answer.status, await answer.json(content_type=None)
            await asyncio.sleep(0.2)

    async def at_once(self, attempts: Sequence[Callable[[], Awaitable[Any]]]) -> Answers:
        gate = asyncio.Event()

        async def one(attempt: Callable[[], Awaitable[Any]]) -> Any:
            await gate.wait()
            return await attempt()

        tasks = [asyncio.create_task(one(attempt)) for attempt in attempts]
        await asyncio.sleep(0)
        gate.set()
        return list(await asyncio.gather(*tasks))

    async def events(self) -> Counter[str]:
        """How many there are of each type."""
        async with await connect(self.database.superuser_url, application="test") as connection:
            return Counter(row.type for row in await committed(connection))

    async def on_site(self, work: Callable[[Site], Awaitable[Any]]) -> Any:
        async with open_site(load_settings(self.environment)) as site:
            return await work(site)

    async def codes(self, kind: CodeKind, count: int, type_: str = "") -> tuple[str, ...]:
        async def issue(site: Site) -> tuple[str, ...]:
            codes = Codes(site.writer, site.pool, site.secret, site.randomness, site.clock)
            asked = IssueAsked(kind, MicroPoints(WORTH_UPT), count, type_)
            issued = await codes.issue(asked, actor="test", batch=codes.new_batch())
            return issued.codes

        return await self.on_site(issue)

    async def known(self, accounts: Sequence[Account]) -> None:
        """Every process has heard of these keys, and of the plans."""
        for url in self.urls:
            for account in accounts:
                headers = {"authorization": f"Bearer {account.key}"}
                async with asyncio.timeout(20):
                    while not await self._known(url, headers):  # noqa: ASYNC110 - other processes
                        await asyncio.sleep(0.02)

    async def _known(self, url: str, headers: dict[str, str]) -> bool:
        async with self.session.get(f"{url}/api/plans", headers=headers) as answer:
            return answer.status == 200 and bool((await answer.json())["levels"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def four(server: Server, shared_valkey: ValkeyServer) -> AsyncIterator[Four]:
    database = server.fresh()
    environment = {
        "DATABASE_URL": database.app_url,
        "DATABASE_OWNER_URL": database.owner_url,
        "REDIS_URL": shared_valkey.url,
        # Guesses are limited elsewhere; here everybody comes from one address at once.
        "ATTEMPTS_CODE_GUESSES": "1000000",
    }
    with open_folder() as folder, ExitStack() as ending:
        roles = [Role("api", folder / f"api{number}", environment) for number in range(PROCESSES)]
        for role in roles:
            ending.callback(role.end)
        await asyncio.gather(*(role.start() for role in roles))
        beside = {**roles[0].environment, "SUANPAN_DATA_DIR": str(folder / "beside")}
        four = Four(database, roles, beside)
        await four.on_site(_define_plans)
        yield four
        await four.session.close()
    server.drop(database)


async def _define_plans(site: Site) -> None:
    item = WrittenItem("chat", ("m",), 10)
    level = WrittenLevel(price="10", items=(item,))
    plans = plans_of(WrittenPlans({"basic": level, "pro": level}))
    await Plans(site.writer, site.pool).define(plans)


async def sound(four: Four) -> Counter[str]:
    """How many events of each type there are, in a log that the audit finds nothing wrong with."""
    url = four.database.superuser_url
    await readable(url)
    report = await audited(url)
    assert report.ok, report
    return await four.events()


async def test_a_code_that_a_hundred_accounts_want_a_hundred_times_each_is_credited_once(
    four: Four,
) -> None:
    accounts = await open_people(four.environment, (1,) * ACCOUNTS)
    (text,) = await four.codes(CodeKind.REDEEM, 1)
    await four.known(accounts)
    before = await four.events()

    def redeeming(number: int) -> Callable[[], Awaitable[Any]]:
        account = accounts[number % ACCOUNTS]
        return lambda: four.post(number, "/api/wallet/redeem", account.key, {"code": text})

    answers = await four.at_once([redeeming(number) for number in range(ACCOUNTS * ATTEMPTS)])
    good = [body for status, body in answers if status == 200]
    assert [body["points"] for body in good] == ["66"]
    assert Counter(status for status, _ in answers) == {200: 1, 404: ACCOUNTS * ATTEMPTS - 1}
    assert {body["detail"] for status, body in answers if status == 404} == {
        "This code is unknown, used or expired."
    }
    new = await sound(four) - before
    assert new == {"CodeRedeemed": 1, "PointsGranted": 1}


async def test_fifty_gift_codes_of_one_type_give_an_account_one_credit(
    four: Four,
) -> None:
    (anna,) = await open_people(four.environment, (1,))
    codes = await four.codes(CodeKind.GIFT, 50, "spring")
    await four.known((anna,))
    before = await four.events()

    def taking(number: int) -> Callable[[], Awaitable[Any]]:
        body = {"code": codes[number]}
        return lambda: four.post(number, "/api/wallet/gift", anna.key, body)

    answers = await four.at_once([taking(number) for number in range(50)])
    assert Counter(status for status, _ in answers) == {200: 1, 409: 49}
    assert {body["code"] for status, body in answers if status == 409} == {"gift_taken"}
    new = await sound(four) - before
    assert new == {"CodeRedeemed": 1, "GiftTaken": 1}


@pytest.mark.parametrize("headers", [{}, {"idempotency_key": "click"}], ids=["no key", "one key"])
async def test_a_subscription_clicked_many_times_is_bought_once(
    four: Four, headers: dict[str, str]
) -> None:
    (anna,) = await open_people(four.environment, (1_000 * POINT,))
    await four.known((anna,))
    before = await four.events()
    body = {"level": "basic", "months": 1}

    def clicking(number: int) -> Callable[[], Awaitable[Any]]:
        return lambda: four.post(number, "/api/wallet/subscribe", anna.key, body, **headers)

    answers = await four.at_once([clicking(number) for number in range(40)])
    assert {status for status, _ in answers} == {200}
    assert Counter(body["repeated"] for _, body in answers) == {False: 1, True: 39}
    assert len({(body["version"], body["due"], body["until_us"]) for _, body in answers}) == 1
    assert {body["available"] for _, body in answers} == {"900"}
    new = await sound(four) - before
    assert new == {"PlanBought": 1}
