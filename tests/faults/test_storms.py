"""Codes and subscriptions asked for by many at once, through four processes: each happens once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from backend.catalog.plan_text import WrittenItem, WrittenLevel, WrittenPlans, plans_of
from backend.catalog.plans import Plans
from backend.cli.site import Site, open_site
from backend.kit.postgres import connect
from backend.kit.settings import load_settings
from backend.ledger.codes import Codes, IssueAsked
from schemas.ledger import CodeKind
from schemas.money import MicroPoints
from tests.conftest import Database
from tests.faults.conftest import MakeRole
from tests.faults.roles import Role
from tests.faults.site import Account, open_people
from tests.given import POINT
from tests.integration.audited_site import audited, readable
from tests.integration.ledger_site import committed
from tests.valkey import ValkeyServer

PROCESSES = 4
ACCOUNTS = 100
ATTEMPTS = 100
"""Of each account."""
AT_ONCE = 400
TIMEOUT_S = 60.0
WORTH_UPT = 66 * POINT

Answers = list[tuple[int, Any]]


class Four:
    """Four processes that answer, over one database."""

    def __init__(self, roles: Sequence[Role], environment: dict[str, str]) -> None:
        self.urls = [role.url for role in roles]
        self.environment = environment
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=AT_ONCE),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        )

    async def post(self, number: int, path: str, key: str, body: Any, **headers: str) -> Any:
        """The answer of the number's process."""
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.post(
            self.urls[number % PROCESSES] + path,
            json=body,
            headers={"authorization": f"Bearer {key}", **more},
        ) as answer:
            return answer.status, await answer.json(content_type=None)

    async def at_once(self, attempts: Sequence[Callable[[], Awaitable[Any]]]) -> Answers:
        gate = asyncio.Event()

        async def one(attempt: Callable[[], Awaitable[Any]]) -> Any:
            await gate.wait()
            return await attempt()

        tasks = [asyncio.create_task(one(attempt)) for attempt in attempts]
        await asyncio.sleep(0)
        gate.set()
        return list(await asyncio.gather(*tasks))

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


@pytest.fixture
async def four(
    database: Database, valkey: ValkeyServer, make_role: MakeRole, tmp_path: Path
) -> AsyncIterator[Four]:
    environment = {
        "DATABASE_URL": database.app_url,
        "DATABASE_OWNER_URL": database.owner_url,
        "REDIS_URL": valkey.url,
        # Guesses are limited elsewhere; here everybody comes from one address at once.
        "ATTEMPTS_CODE_GUESSES": "1000000",
    }
    roles = [make_role("api", environment) for _ in range(PROCESSES)]
    await asyncio.gather(*(role.start() for role in roles))
    beside = {**roles[0].environment, "SUANPAN_DATA_DIR": str(tmp_path)}
    four = Four(roles, beside)
    await four.on_site(_define_plans)
    yield four
    await four.session.close()


async def _define_plans(site: Site) -> None:
    item = WrittenItem("chat", ("m",), 10)
    level = WrittenLevel(price="10", items=(item,))
    plans = plans_of(WrittenPlans({"basic": level, "pro": level}))
    await Plans(site.writer, site.pool).define(plans)


async def sound(database: Database) -> Counter[str]:
    """How many events of each type there are, in a log that the audit finds nothing wrong with."""
    await readable(database.superuser_url)
    report = await audited(database.superuser_url)
    assert report.ok, report
    async with await connect(database.superuser_url, application="test") as connection:
        return Counter(row.type for row in await committed(connection))


async def test_a_code_that_a_hundred_accounts_want_a_hundred_times_each_is_credited_once(
    database: Database, four: Four
) -> None:
    accounts = await open_people(four.environment, (1,) * ACCOUNTS)
    (text,) = await four.codes(CodeKind.REDEEM, 1)
    await four.known(accounts)

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
    types = await sound(database)
    assert (types["CodeRedeemed"], types["PointsGranted"]) == (1, ACCOUNTS + 1)


async def test_fifty_gift_codes_of_one_type_give_an_account_one_credit(
    database: Database, four: Four
) -> None:
    (anna,) = await open_people(four.environment, (1,))
    codes = await four.codes(CodeKind.GIFT, 50, "spring")
    await four.known((anna,))

    def taking(number: int) -> Callable[[], Awaitable[Any]]:
        body = {"code": codes[number]}
        return lambda: four.post(number, "/api/wallet/gift", anna.key, body)

    answers = await four.at_once([taking(number) for number in range(50)])
    assert Counter(status for status, _ in answers) == {200: 1, 409: 49}
    assert {body["code"] for status, body in answers if status == 409} == {"gift_taken"}
    types = await sound(database)
    assert (types["CodeRedeemed"], types["GiftTaken"]) == (1, 1)


@pytest.mark.parametrize("headers", [{}, {"idempotency_key": "click"}], ids=["no key", "one key"])
async def test_a_subscription_clicked_many_times_is_bought_once(
    database: Database, four: Four, headers: dict[str, str]
) -> None:
    (anna,) = await open_people(four.environment, (1_000 * POINT,))
    await four.known((anna,))
    body = {"level": "basic", "months": 1}

    def clicking(number: int) -> Callable[[], Awaitable[Any]]:
        return lambda: four.post(number, "/api/wallet/subscribe", anna.key, body, **headers)

    answers = await four.at_once([clicking(number) for number in range(40)])
    assert {status for status, _ in answers} == {200}
    assert Counter(body["repeated"] for _, body in answers) == {False: 1, True: 39}
    assert len({(body["version"], body["due"], body["until_us"]) for _, body in answers}) == 1
    assert {body["available"] for _, body in answers} == {"900"}
    types = await sound(database)
    assert (types["PlanBought"], types["PlanRenewed"]) == (1, 0)
