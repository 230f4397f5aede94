"""Subscriptions on a real log: bought with points, noted as over when they are, shown, audited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from backend.catalog.plans import Plans
from backend.folds import ALL_FOLDS
from backend.grants import GrantAsked
from backend.journal.writer import Writer
from backend.ledger.codes import Codes, IssueAsked
from backend.ledger.subscriptions import Subscriptions
from projections.declared import find_projection
from projections.tables import ensure_tables
from projections.target import Schema
from schemas.errors import BadRequest, IdempotencyConflict, InsufficientPoints, NotFound
from schemas.ids import PersonId, account_stream
from schemas.ledger import CodeKind
from schemas.money import MicroPoints
from schemas.plans import OfferedPlan, Plan, PlanItem, PlanRef
from tests.conftest import Database
from tests.given import CLOCK, POINT, RANDOMNESS
from tests.integration.audited_site import audited, readable, tamper
from tests.integration.identity_site import Process, process_of
from tests.integration.projection_ground import query, tail_to_the_end
from workers.expiring import Expirer

CHAT = PlanItem("chat", "Chat", ("m",), 2)
BASIC = OfferedPlan(Plan("Basic", MicroPoints(10 * POINT), (CHAT,)), PlanRef(1, 1))
PRO = OfferedPlan(Plan("Pro", MicroPoints(30 * POINT), (CHAT,)), PlanRef(3, 1))
MONTH_US = 32 * 86_400_000_000


class JumpingClock:
    """Real time, and as much more as a test wants."""

    def __init__(self) -> None:
        self.ahead_us = 0

    def now_us(self) -> int:
        return CLOCK.now_us() + self.ahead_us

    def monotonic_s(self) -> float:
        return CLOCK.monotonic_s()


class Ground(msgspec.Struct):
    process: Process
    database: Database
    clock: JumpingClock
    subscriptions: Subscriptions

    async def person(self, points: int) -> PersonId:
        name = f"person {self.process.writer.new_id()}"
        person = (await self.process.opening.open_person(name, None)).person
        if points:
            asked = GrantAsked(person, MicroPoints(points * POINT), "test")
            await self.process.grants.grant(asked, actor="test")
        return person

    async def buy(self, person: PersonId, offered: OfferedPlan = BASIC, **more: Any) -> Any:
        return await self.subscriptions.subscribe(
            person, offered, more.pop("months", 1), actor="cli", **more
        )


@pytest.fixture
async def ground(database: Database) -> AsyncIterator[Ground]:
    async with process_of(database.app_url) as process:
        clock = JumpingClock()
        # Decisions are taken by the writer's clock.
        writer = Writer(database.app_url, ALL_FOLDS, clock, RANDOMNESS, process.watch)
        writer.start()
        subscriptions = Subscriptions(writer, process.pool, process.secret, clock)
        yield Ground(process, database, clock, subscriptions)
        await writer.stop()


async def test_a_purchase_says_what_it_cost_and_what_is_left(ground: Ground) -> None:
    person = await ground.person(35)
    quoted = await ground.subscriptions.quote(person, BASIC, 3)
    assert (quoted.kind, quoted.quote.due_upt, quoted.missing_upt) == ("bought", 30 * POINT, 0)
    bought = await ground.buy(person, months=3)
    assert (bought.kind, bought.due_upt, bought.available_upt) == ("bought", 30 * POINT, 5 * POINT)
    assert (bought.stream, bought.version) == (account_stream(person), 3)
    with pytest.raises(InsufficientPoints, match="5 more are needed"):
        await ground.buy(person, months=1, idempotency_key="more")
    up = await ground.subscriptions.quote(person, PRO, 1)
    assert up.kind == "changed"
    assert 29 * POINT < up.quote.credit_upt <= 30 * POINT


async def test_what_is_not_offered_or_nobodys_is_refused(ground: Ground) -> None:
    person = await ground.person(100)
    off = msgspec.structs.replace(BASIC, plan=msgspec.structs.replace(BASIC.plan, enabled=False))
    for offered, months in ((off, 1), (BASIC, 2)):
        with pytest.raises(BadRequest, match="not offered"):
            await ground.buy(person, offered, months=months)
        with pytest.raises(BadRequest, match="not offered"):
            await ground.subscriptions.quote(person, offered, months)
    with pytest.raises(NotFound):
        await ground.buy(PersonId(987_654))


async def test_nobody_buys_more_than_ten_years_ahead(ground: Ground) -> None:
    person = await ground.person(10_000)
    for number in range(3):
        await ground.buy(person, months=36, idempotency_key=f"k{number}")
    with pytest.raises(BadRequest, match="10 years ahead"):
        await ground.buy(person, months=36, idempotency_key="k4")


async def test_a_key_buys_once_and_not_something_else(ground: Ground) -> None:
    person = await ground.person(100)
    first = await ground.buy(person, idempotency_key="k")
    again = await asyncio.gather(*(ground.buy(person, idempotency_key="k") for _ in range(5)))
    assert all(one == msgspec.structs.replace(first, repeated=True) for one in again)
    with pytest.raises(IdempotencyConflict):
        await ground.buy(person, months=3, idempotency_key="k")
    with pytest.raises(IdempotencyConflict):
        await ground.buy(person, PRO, idempotency_key="k")


async def test_the_end_of_a_subscription_is_noted_once_and_only_when_it_has_come(
    ground: Ground,
) -> None:
    lapsing, lasting = await ground.person(100), await ground.person(100)
    await ground.buy(lapsing)
    await ground.buy(lasting, months=3)
    await _fill(ground)
    one, two = (Expirer(ground.subscriptions, ground.clock, RANDOMNESS) for _ in range(2))
    assert await one.expire() == 0
    ground.clock.ahead_us = MONTH_US
    assert sum(await asyncio.gather(one.expire(), two.expire())) == 1
    assert await one.expire() == 0, "the read table is behind, and the log knows better"
    await _fill(ground)
    rows = await query(
        ground.process.pool, "SELECT person, plan_level FROM read.balance ORDER BY person"
    )
    assert rows == sorted([(lapsing, None), (lasting, 1)])
    assert (await ground.buy(lapsing)).kind == "bought"


async def test_every_step_of_a_subscription_is_sound_to_the_audit(ground: Ground) -> None:
    plans = Plans(ground.process.writer, ground.process.pool)
    defined = await plans.define({1: BASIC.plan, 3: PRO.plan})
    basic, pro = defined.plans[1], defined.plans[3]
    person = await ground.person(500)
    for number, offered in enumerate((basic, basic, pro, basic, pro)):
        await ground.buy(person, offered, idempotency_key=f"k{number}")
        ground.clock.ahead_us += 86_400_000_000
    ground.clock.ahead_us += 2 * MONTH_US
    await ground.buy(person, pro)
    await _fill(ground)
    await readable(ground.database.superuser_url)
    report = await audited(ground.database.superuser_url)
    assert report.ok, report


async def _fill(ground: Ground, projection: str = "balance") -> None:
    await ensure_tables(ground.process.pool)
    await readable(ground.database.superuser_url)
    consumer = find_projection(projection).make(Schema.READ)
    await tail_to_the_end(ground.process.pool, consumer)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE read.codes SET person = 9 WHERE person > 0", "another row than the events make"),
        ("DELETE FROM read.codes WHERE voided_us > 0", "read.codes lacks the row"),
        ("UPDATE read.balance SET plan_level = 3", "another row than the events make"),
    ],
)
async def test_the_audit_compares_codes_and_plans_with_the_log(
    ground: Ground, statement: str, said: str
) -> None:
    process = ground.process
    codes = Codes(process.writer, process.pool, process.secret, RANDOMNESS, CLOCK)
    asked = IssueAsked(CodeKind.REDEEM, MicroPoints(POINT), 3)
    issued = await codes.issue(asked, actor="cli", batch=codes.new_batch())
    person = await ground.person(0)
    await codes.redeem(person, CodeKind.REDEEM, issued.codes[0])
    await codes.void(issued.codes[1], "cli")
    await _fill(ground, "codes")
    await _fill(ground)
    assert (await audited(ground.database.superuser_url)).ok
    tamper(ground.database.superuser_url, statement)
    first = (await audited(ground.database.superuser_url)).first
    assert first is not None
    assert said in first.what
