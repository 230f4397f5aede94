"""Subscriptions: their months, their periods, and that no sequence of purchases makes value."""

from __future__ import annotations

from datetime import datetime
from fractions import Fraction
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.journal.commands import Accept, Refuse
from backend.ledger.account import ACCOUNT, Account
from backend.ledger.decide_plans import decide_expire, decide_subscribe
from backend.ledger.refusals import (
    JustBought,
    MissingPoints,
    NothingExpired,
    PlanNotOffered,
    TooFarAhead,
)
from backend.ledger.subscription import CARRY, add_months, period_of, term_price_upt
from schemas.ledger import PlanBought, PlanChanged, PlanExpired, PlanRenewed
from schemas.money import MicroPoints
from schemas.plans import TERMS_MONTHS, OfferedPlan, Plan, PlanRef
from tests.given import POINT, with_upt

SHANGHAI, DUBLIN = "Asia/Shanghai", "Europe/Dublin"
DAY_US = 86_400_000_000


def at(text: str, zone: str = SHANGHAI) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()) * 1_000_000


def offered(level: int, month_upt: int, **more: object) -> OfferedPlan:
    plan = Plan(f"level {level}", MicroPoints(month_upt), (), time_zone=SHANGHAI)
    return OfferedPlan(msgspec.structs.replace(plan, **more), PlanRef(level, 1))


BASIC, PRO = offered(1, 320 * POINT), offered(3, 990 * POINT)
START = at("2026-01-31T10:00")


def after(state: Account, decision: Accept | Refuse, at_us: int) -> Account:
    assert isinstance(decision, Accept)
    for _, event in decision.events:
        state = ACCOUNT.apply(state, event, 9, at_us)
    return state


def subscribed(
    state: Account, plan: OfferedPlan, months: int, at_us: int, *, deliberate: bool = True
) -> Account:
    decision = decide_subscribe(state, 2, plan, months, at_us, deliberate=deliberate)
    return after(state, decision, at_us)


@pytest.mark.parametrize(
    ("start", "months", "end"),
    [
        ("2026-01-31T10:00", 1, "2026-02-28T10:00"),
        ("2026-01-31T10:00", 2, "2026-03-31T10:00"),
        ("2024-02-29T00:00", 12, "2025-02-28T00:00"),
        ("2024-02-29T00:00", 48, "2028-02-29T00:00"),
        ("2026-12-15T23:59", 1, "2027-01-15T23:59"),
    ],
)
def test_a_month_ends_on_the_same_day_or_on_the_months_last(
    start: str, months: int, end: str
) -> None:
    assert add_months(at(start), months, SHANGHAI) == at(end)


def test_a_month_over_a_change_of_clocks_ends_at_the_same_local_time() -> None:
    start = at("2026-03-10T08:30", DUBLIN)
    assert add_months(start, 1, DUBLIN) == at("2026-04-10T08:30", DUBLIN)
    assert add_months(start, 1, DUBLIN) - start == 31 * DAY_US - 3_600_000_000


@given(
    anchor=st.integers(1_500_000_000, 1_900_000_000),
    later=st.integers(0, 400_000_000),
    zone=st.sampled_from([SHANGHAI, DUBLIN, "UTC", "America/New_York", "Pacific/Apia"]),
)
def test_every_moment_lies_in_exactly_one_period(anchor: int, later: int, zone: str) -> None:
    anchor_us, at_us = anchor * 1_000_000, (anchor + later) * 1_000_000
    begin = period_of(anchor_us, zone, at_us)
    months = next(k for k in range(200) if add_months(anchor_us, k, zone) == begin)
    assert begin <= at_us < add_months(anchor_us, months + 1, zone)


def test_a_renewal_of_the_31st_keeps_the_31st() -> None:
    state = subscribed(with_upt(10_000 * POINT), BASIC, 1, START)
    state = subscribed(state, BASIC, 1, START + DAY_US)
    assert state.subscription is not None
    assert state.subscription.until_us == at("2026-03-31T10:00")


def test_a_plan_of_32_cny_takes_320_points_in_its_own_decision() -> None:
    decision = decide_subscribe(with_upt(320 * POINT), 2, BASIC, 1, START, deliberate=False)
    state = after(with_upt(320 * POINT), decision, START)
    assert (state.available_upt, state.charged_upt) == (0, 320 * POINT)
    assert isinstance(decision, Accept)
    assert isinstance(decision.events[0][1], PlanBought)


def test_too_few_points_are_refused_naming_the_gap() -> None:
    decision = decide_subscribe(with_upt(320 * POINT - 1), 2, BASIC, 1, START, deliberate=False)
    assert decision == Refuse(MissingPoints(MicroPoints(1)))


def test_a_longer_term_has_its_discount_rounded_up_to_a_micro_point() -> None:
    plan = offered(1, 33_333_333, discounts=((12, 250_000),)).plan
    assert term_price_upt(plan, 12) == -(-33_333_333 * 12 * 3 // 4)
    assert term_price_upt(plan, 3) == 3 * 33_333_333


def test_a_second_click_is_the_same_purchase_and_a_key_of_its_own_is_not() -> None:
    state = subscribed(with_upt(1_000 * POINT), BASIC, 1, START)
    again = decide_subscribe(state, 3, BASIC, 1, START + 2_000_000, deliberate=False)
    assert again == Refuse(JustBought())
    meant = decide_subscribe(state, 3, BASIC, 1, START + 2_000_000, deliberate=True)
    assert isinstance(meant, Accept)
    assert isinstance(meant.events[0][1], PlanRenewed)
    later = decide_subscribe(state, 3, BASIC, 1, START + 11_000_000, deliberate=False)
    assert isinstance(later, Accept)


def test_a_plan_that_is_not_offered_or_a_term_nobody_sells_is_refused() -> None:
    state = with_upt(10_000 * POINT)
    closed = offered(1, POINT, enabled=False)
    assert decide_subscribe(state, 2, closed, 1, START, deliberate=True) == Refuse(PlanNotOffered())
    assert decide_subscribe(state, 2, BASIC, 2, START, deliberate=True) == Refuse(PlanNotOffered())


def test_nobody_pays_for_more_than_ten_years() -> None:
    state = with_upt(10**15)
    for _ in range(3):
        state = subscribed(state, BASIC, 36, START)
    far = decide_subscribe(state, 9, BASIC, 36, START, deliberate=True)
    assert far == Refuse(TooFarAhead())


def test_an_upgrade_credits_unused_time_at_the_price_that_was_paid() -> None:
    state = subscribed(with_upt(2_000 * POINT), BASIC, 1, START)
    half = (START + at("2026-02-28T10:00")) // 2
    decision = decide_subscribe(state, 3, PRO, 1, half, deliberate=False)
    assert isinstance(decision, Accept)
    event = decision.events[0][1]
    assert isinstance(event, PlanChanged)
    assert event.credit_upt == 160 * POINT
    changed = after(state, decision, half)
    assert changed.available_upt == (2_000 - 320 + 160 - 990) * POINT


def test_a_downgrade_gives_points_back() -> None:
    state = subscribed(with_upt(990 * POINT), PRO, 1, START)
    lower = subscribed(state, BASIC, 1, START)
    assert lower.available_upt == (990 - 320) * POINT


def test_an_ended_plan_expires_once_and_is_bought_anew() -> None:
    state = subscribed(with_upt(2_000 * POINT), BASIC, 1, START)
    end = at("2026-02-28T10:00")
    assert decide_expire(state, end - 1) == Refuse(NothingExpired())
    expired = after(state, decide_expire(state, end), end)
    assert decide_expire(expired, end) == Refuse(NothingExpired())
    decision = decide_subscribe(state, 3, PRO, 1, end, deliberate=False)
    assert isinstance(decision, Accept)
    assert [type(event) for _, event in decision.events] == [PlanExpired, PlanBought]


@settings(max_examples=300)
@given(
    prices=st.tuples(*(st.integers(0, 10**9) for _ in range(3))),
    steps=st.lists(
        st.tuples(
            st.integers(1, 3),
            st.sampled_from(TERMS_MONTHS),
            st.integers(0, 40 * DAY_US),
        ),
        max_size=30,
    ),
)
def test_no_sequence_of_purchases_gains_or_loses_value(
    prices: tuple[int, int, int], steps: list[tuple[int, int, int]]
) -> None:
    """Points and unused time together change only by the time that passes, to one micro-point."""
    plans = {level: offered(level, prices[level - 1], discounts=((12, 1),)) for level in (1, 2, 3)}
    state, at_us, total = with_upt(10**14), START, Fraction(10**14)
    for level, months, wait_us in steps:
        worth = _worth(state, at_us)
        at_us += wait_us
        total -= worth - _worth(state, at_us)  # what the time that has passed was worth
        decision = decide_subscribe(state, 2, plans[level], months, at_us, deliberate=True)
        if isinstance(decision, Accept):
            state = after(state, decision, at_us)
        assert state.available_upt >= 0
        lost = total - (state.available_upt + _worth(state, at_us))
        assert -Fraction(1, CARRY) <= lost <= 1


def _worth(state: Account, at_us: int) -> Fraction:
    """What is left of a subscription, as an exact number of micro-points."""
    subscription = state.subscription
    if subscription is None or not subscription.active(at_us):
        return Fraction(0)
    worth = Fraction(subscription.carry, CARRY)
    for segment in subscription.segments:
        left_us = max(0, segment.until_us - max(at_us, segment.from_us))
        worth += Fraction(segment.paid_upt * left_us, segment.until_us - segment.from_us)
    return worth


def test_a_change_keeps_the_zone_that_months_are_counted_in() -> None:
    """In another zone months begin at another moment, and every change would bring new calls."""
    state = subscribed(with_upt(10**12), BASIC, 12, START)
    elsewhere = offered(3, 990 * POINT, time_zone=DUBLIN)
    changed = subscribed(state, elsewhere, 1, START + DAY_US).subscription
    assert changed is not None
    assert changed.time_zone == SHANGHAI
    assert changed.until_us == add_months(START + DAY_US, 1, SHANGHAI)
