"""What went wrong with codes and subscriptions elsewhere cannot here (docs/peers.md).

Four writers stand for four processes: each decides by what it has seen, and Postgres picks one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import msgspec
import pytest

from backend.catalog.plans import Plans
from backend.folds import ALL_FOLDS
from backend.kit.secrets import SiteSecret
from backend.ledger.codes import Codes, Credited, IssueAsked
from backend.ledger.subscriptions import Subscribed, Subscriptions
from schemas import ledger as recorded
from schemas.errors import CodeNotGood, GiftTaken, InsufficientPoints, SuanpanError
from schemas.ids import PersonId
from schemas.ledger import AccountOpened, CodeKind, PlanBought, PlanRenewed, PointsGranted
from schemas.money import MicroPoints
from schemas.plans import OfferedPlan, Plan
from tests.conftest import Database
from tests.given import CLOCK, POINT, RANDOMNESS
from tests.integration.audited_site import audited, readable
from tests.integration.identity_site import SECRET_TEXT
from tests.integration.ledger_site import LedgerSite, ledger_on

Answer = TypeVar("Answer")
PEOPLE = 100
WORTH = MicroPoints(7 * POINT)
MONTH = MicroPoints(10 * POINT)


class Process(msgspec.Struct, frozen=True):
    """What one of the four knows."""

    ledger: LedgerSite
    codes: Codes
    subscriptions: Subscriptions


@asynccontextmanager
async def four_on(database: Database) -> AsyncGenerator[list[Process]]:
    """Four processes; when they are done the audit finds nothing wrong."""
    secret = SiteSecret(SECRET_TEXT)
    async with AsyncExitStack() as stack:
        made: list[Process] = []
        for _ in range(4):
            ledger = await stack.enter_async_context(ledger_on(database.app_url, ALL_FOLDS))
            codes = Codes(ledger.writer, ledger.pool, secret, RANDOMNESS, CLOCK)
            bought = Subscriptions(ledger.writer, ledger.pool, secret, CLOCK)
            made.append(Process(ledger, codes, bought))
        yield made
    await readable(database.app_url)
    report = await audited(database.app_url)
    assert report.ok, report.first


async def opened(process: Process, people: int, points: int = 0) -> None:
    numbers = range(1, people + 1)
    await asyncio.gather(*(process.ledger.open_account(number, points) for number in numbers))


async def issued(process: Process, kind: CodeKind, count: int, type_: str = "") -> Sequence[str]:
    asked = IssueAsked(kind, WORTH, count, type_)
    return (await process.codes.issue(asked, actor="cli", batch="batch")).codes


async def refusal_or(attempt: Awaitable[Answer]) -> Answer | type[SuanpanError]:
    try:
        return await attempt
    except SuanpanError as error:
        return type(error)


def credited_of(answers: Sequence[Credited | type[SuanpanError]]) -> list[Credited]:
    return [answer for answer in answers if isinstance(answer, Credited)]


async def points_of(process: Process, people: int) -> list[int]:
    names = [f"account:{number}" for number in range(1, people + 1)]
    return [(await process.ledger.state(name)).available_upt for name in names]


async def test_a_code_that_a_hundred_people_redeem_at_once_credits_one_of_them(
    database: Database,
) -> None:
    async with four_on(database) as processes:
        await opened(processes[0], PEOPLE)
        (code,) = await issued(processes[0], CodeKind.REDEEM, 1)
        answers = await asyncio.gather(
            *(
                refusal_or(
                    processes[number % 4].codes.redeem(PersonId(number), CodeKind.REDEEM, code)
                )
                for number in range(1, PEOPLE + 1)
            )
        )
        assert Counter(a for a in answers if isinstance(a, type)) == {CodeNotGood: PEOPLE - 1}
        (winner,) = credited_of(answers)
        assert (winner.amount_upt, winner.available_upt) == (WORTH, WORTH)
        assert sum(await points_of(processes[0], PEOPLE)) == WORTH


async def test_a_code_that_one_person_redeems_a_hundred_times_at_once_credits_once(
    database: Database,
) -> None:
    async with four_on(database) as processes:
        await opened(processes[0], 1)
        (code,) = await issued(processes[0], CodeKind.REDEEM, 1)
        answers = await asyncio.gather(
            *(
                refusal_or(processes[number % 4].codes.redeem(PersonId(1), CodeKind.REDEEM, code))
                for number in range(100)
            )
        )
        assert len(credited_of(answers)) == 1
        events = await processes[0].ledger.events("account:1")
        assert [type(event) for event in events] == [AccountOpened, PointsGranted]


async def test_a_redemption_sent_again_under_its_key_is_answered_again_and_credited_once(
    database: Database,
) -> None:
    async with four_on(database) as processes:
        await opened(processes[0], 1)
        first, second = await issued(processes[0], CodeKind.REDEEM, 2)

        def redeem(number: int, code: str = first) -> Awaitable[Any]:
            codes = processes[number % 4].codes
            return refusal_or(codes.redeem(PersonId(1), CodeKind.REDEEM, code, "click"))

        answers = await asyncio.gather(*(redeem(number) for number in range(20)))
        assert {(a.amount_upt, a.stream, a.version) for a in answers} == {(WORTH, "account:1", 2)}
        assert sum(not answer.repeated for answer in answers) == 1
        # The same key with another code is no repetition: nothing is credited, and it is said.
        conflict = await redeem(1, second)
        assert issubclass(conflict, SuanpanError)
        assert conflict.code == "idempotency_conflict"
        assert await points_of(processes[0], 1) == [WORTH]


async def test_gifts_of_one_type_are_taken_once_by_a_person_and_each_by_one_person(
    database: Database,
) -> None:
    async with four_on(database) as processes:
        await opened(processes[0], 11)
        gifts = await issued(processes[0], CodeKind.GIFT, 20, "welcome")

        def take(number: int, person: int, gift: str) -> Awaitable[Any]:
            codes = processes[number % 4].codes
            return refusal_or(codes.redeem(PersonId(person), CodeKind.GIFT, gift))

        greedy = [take(number, 1, gift) for number, gift in enumerate(gifts[:19])]
        crowd = [take(number, number + 2, gifts[19]) for number in range(10)]
        answers = await asyncio.gather(*greedy, *crowd)
        assert len(credited_of(answers[:19])) == 1
        assert Counter(a for a in answers[:19] if isinstance(a, type)) == {GiftTaken: 18}
        assert len(credited_of(answers[19:])) == 1
        points = await points_of(processes[0], 11)
        assert (points[0], sorted(points[1:])) == (WORTH, [0] * 9 + [WORTH])
        events = await processes[0].ledger.events("account:1")
        assert sum(isinstance(event, recorded.GiftTaken) for event in events) == 1


async def offered(process: Process) -> OfferedPlan:
    plans = Plans(process.ledger.writer, process.ledger.pool)
    return (await plans.define({1: Plan("Basic", MONTH, ())})).plans[1]


async def test_purchases_at_once_are_paid_each_and_each_adds_its_months(
    database: Database,
) -> None:
    """Points for two of them: two are delivered, and nobody pays twice for one."""
    async with four_on(database) as processes:
        await opened(processes[0], 1, points=25)
        plan = await offered(processes[0])
        answers = await asyncio.gather(
            *(
                refusal_or(
                    processes[number % 4].subscriptions.subscribe(
                        PersonId(1), plan, 1, actor="person:1", idempotency_key=f"order-{number}"
                    )
                )
                for number in range(12)
            )
        )
        done = [answer for answer in answers if isinstance(answer, Subscribed)]
        assert Counter(a for a in answers if isinstance(a, type)) == {InsufficientPoints: 10}
        assert sorted(one.kind for one in done) == ["bought", "renewed"]
        events = await processes[0].ledger.events("account:1")
        bought, renewed = (e for e in events if isinstance(e, PlanBought | PlanRenewed))
        assert bought.segment.until_us == renewed.segment.from_us, "the second begins at the end"
        state = await processes[0].ledger.state("account:1")
        assert state.subscription is not None
        assert state.subscription.until_us == max(one.until_us for one in done)
        assert state.available_upt == 25 * POINT - 2 * MONTH


@pytest.mark.parametrize("key", [None, "order"])
async def test_a_purchase_that_is_clicked_many_times_is_one(
    database: Database, key: str | None
) -> None:
    async with four_on(database) as processes:
        await opened(processes[0], 1, points=100)
        plan = await offered(processes[0])
        answers = await asyncio.gather(
            *(
                processes[number % 4].subscriptions.subscribe(
                    PersonId(1), plan, 3, actor="person:1", idempotency_key=key
                )
                for number in range(12)
            )
        )
        assert len({(answer.version, answer.until_us) for answer in answers}) == 1
        assert sum(not answer.repeated for answer in answers) == 1
        state = await processes[0].ledger.state("account:1")
        assert state.available_upt == 100 * POINT - 3 * MONTH
