"""What went wrong with monthly calls elsewhere cannot here (docs/peers.md), through the relay."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from backend.catalog.plans import Plans
from backend.ledger.account import Account
from backend.ledger.subscriptions import Subscriptions
from schemas.ledger import HoldReleased, HoldSettled, LedgerEvent, PointsHeld, RequestRefused
from schemas.money import MicroPoints
from schemas.plans import OfferedPlan, Plan, PlanItem
from schemas.prices import PerCall
from tests.conftest import Database, Server
from tests.given import POINT
from tests.integration.audited_site import audited
from tests.site import (
    Customer,
    RunningSite,
    balances,
    bearer,
    chat,
    outcomes,
    role_process,
    running_site,
    shared_site,
)
from tests.upstream import FakeUpstream, Script
from tests.valkey import ValkeyServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

COVERED, UNCOVERED = "covered", "uncovered"
CALLS = 3
"""A month, of the covered model."""
ONE_A_CALL = PerCall(1_000_000_000)
FAILURES = (
    Script(status=500),
    Script(status=400),
    Script(status=429),
    Script(cut_before_head=True),
    Script(cut_after=0),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(
    server: Server, tmp_path_factory: pytest.TempPathFactory, upstream: FakeUpstream
) -> AsyncIterator[RunningSite]:
    folder = tmp_path_factory.mktemp("site")
    async with shared_site(server, folder, relay_cooldown_s=0.05) as running:
        await running.serves(upstream.url, COVERED, UNCOVERED, price=ONE_A_CALL)
        await offering(running, CALLS)
        yield running
        report = await audited(running.database.app_url)
        assert report.ok, report.first


async def offering(site: RunningSite, calls: int) -> OfferedPlan:
    """A plan whose relay switch is on; it covers one model."""
    items = (PlanItem("chat", "Chat", (COVERED,), calls),)
    plan = Plan("Basic", MicroPoints(10 * POINT), items, relay=True)
    defined = await Plans(site.base.writer, site.base.pool).define({1: plan})
    await site.refresh()
    return defined.plans[1]


async def subscriber(site: RunningSite, points: str) -> Customer:
    """Somebody who has so many points left once the plan is bought."""
    customer = await site.customer("10")
    base = site.base
    plan = (await Plans(base.writer, base.pool).list_plans())[1]
    doors = Subscriptions(base.writer, base.pool, base.secret, base.clock)
    await doors.subscribe(customer.person, plan, 1, actor="test")
    if points != "0":
        await site.grant(customer, points)
    return customer


async def used(site: RunningSite, customer: Customer) -> int:
    state = await site.account(customer)
    assert state.subscription is not None
    return state.subscription.used.get("chat", 0)


async def charged(site: RunningSite, customer: Customer) -> int:
    """Points that calls have cost, without the plan's own price."""
    return (await site.account(customer)).charged_upt - 10 * POINT


async def test_with_plans_switched_on_a_model_that_none_covers_costs_its_points(
    site: RunningSite,
) -> None:
    anna = await subscriber(site, "2")
    assert (await site.ask(anna.key, chat(UNCOVERED))).headers["x-suanpan-points"] == "1"
    assert (await used(site, anna), await charged(site, anna)) == (0, POINT)
    assert (await site.ask(anna.key, chat(COVERED))).headers["x-suanpan-points"] == "0"
    assert (await used(site, anna), await charged(site, anna)) == (1, POINT)
    # Whoever has no plan pays for both; whoever has one and no points is not served for nothing.
    bert, carl = await site.customer("2"), await subscriber(site, "0")
    for model in (COVERED, UNCOVERED):
        assert (await site.ask(bert.key, chat(model))).headers["x-suanpan-points"] == "1"
    assert (await site.ask(carl.key, chat(UNCOVERED))).status == 402


async def test_errors_on_calls_that_points_pay_for_leave_the_months_count_alone(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    anna = await subscriber(site, "5")
    for _ in range(2):
        assert (await site.ask(anna.key, chat(COVERED))).status == 200
    await _fails_in_every_way(site, upstream, anna, UNCOVERED)
    assert (await used(site, anna), await charged(site, anna)) == (2, 0)
    # Nor where the item is used up and points pay for the very model that it covers.
    assert (await site.ask(anna.key, chat(COVERED))).status == 200
    await _fails_in_every_way(site, upstream, anna, COVERED)
    assert (await used(site, anna), await charged(site, anna)) == (CALLS, 0)
    assert (await site.ask(anna.key, chat(COVERED))).headers["x-suanpan-points"] == "1"


async def _fails_in_every_way(
    site: RunningSite, upstream: FakeUpstream, customer: Customer, model: str
) -> None:
    for script in FAILURES:
        upstream.by_model[model] = script
        assert (await site.ask(customer.key, chat(model, stream=True))).status >= 400
    del upstream.by_model[model]


async def test_errors_on_calls_that_were_never_let_in_leave_the_months_count_alone(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    anna = await subscriber(site, "0")
    assert (await site.ask(anna.key, chat(COVERED))).status == 200
    for refused in (chat(UNCOVERED), chat("no-such-model"), {"model": COVERED}, b"{"):
        assert (await site.ask(anna.key, refused)).status in (400, 402, 404)
    assert await used(site, anna) == 1


async def test_an_error_after_part_of_an_answer_keeps_the_plans_call(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    """Else an answer that breaks off would be a free one; one that never began is given back."""
    anna = await subscriber(site, "0")
    upstream.play(Script(cut_after=2), Script(error_frame_after=1))
    for number in (1, 2):
        reply = await site.ask(anna.key, chat(COVERED, stream=True))
        assert b'"error"' in reply.body
        assert await used(site, anna) == number
    upstream.play(Script(status=500))
    assert (await site.ask(anna.key, chat(COVERED, stream=True))).status == 502
    assert await used(site, anna) == 2
    kinds = [type(end) for end in await site.ended(anna, 3)]
    assert kinds == [HoldSettled, HoldSettled, HoldReleased]
    assert await charged(site, anna) == 0


async def test_the_months_calls_are_exact_for_parallel_calls_of_two_processes_and_a_wiped_valkey(
    database: Database, tmp_path: Path, valkey: ValkeyServer, upstream: FakeUpstream
) -> None:
    async with (
        running_site(database, tmp_path / "here", redis_url=valkey.url) as site,
        role_process("api", database, tmp_path / "api", REDIS_URL=valkey.url) as api,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        await site.serves(upstream.url, COVERED, price=ONE_A_CALL)
        await offering(site, 20)
        anna = await subscriber(site, "0")

        async def ask(url: str) -> int:
            async with session.post(
                f"{url}/v1/chat/completions", headers=bearer(anna.key), json=chat(COVERED)
            ) as response:
                await response.read()
                return response.status

        await _knows_plan(ask, api.url)
        statuses = [200]
        for _ in range(3):
            statuses += await asyncio.gather(
                *(ask(site.url) for _ in range(7)), *(ask(api.url) for _ in range(7))
            )
            valkey.wipe()
        assert Counter(statuses) == {200: 20, 402: 23}
        await site.ended(anna, 20)
        assert (await used(site, anna), await charged(site, anna)) == (20, 0)
        assert_only_plan_calls(await site.account(anna), await site.events(anna))


async def _knows_plan(ask: Callable[[str], Awaitable[int]], url: str) -> None:
    """A process learns of a plan within a moment; the first call that it pays for is counted."""
    async with asyncio.timeout(10):
        while await ask(url) != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def assert_only_plan_calls(state: Account, events: Sequence[LedgerEvent]) -> None:
    held = [event for event in events if isinstance(event, PointsHeld)]
    assert all(event.plan is not None and event.amount_upt == 0 for event in held)
    assert len(held) == len(outcomes(events)) == 20
    assert any(isinstance(event, RequestRefused) for event in events)
    assert min(balances(events)[-1]) >= 0
    assert not state.holds
