"""Who is let in and who pays: plans before points, quotas, groups and calls at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import msgspec
import pytest

from backend.journal.commands import Accept, Refuse
from backend.ledger.account import ACCOUNT, Account
from backend.ledger.admission import HoldAsked, decide_hold, group_of
from backend.ledger.decide import (
    SettleAsked,
    decide_extend,
    decide_late,
    decide_release,
    decide_settle,
)
from backend.ledger.decide_plans import decide_subscribe
from backend.ledger.refusals import KeyQuotaReached, NotForGroup, TooManyAtOnce
from backend.ledger.subscription import add_months
from schemas.identity import Reset
from schemas.ids import KeyId, RequestId
from schemas.ledger import (
    HoldSettled,
    PointsHeld,
    RefusalReason,
    ReleaseReason,
    RequestRefused,
    Served,
    ShortfallRecorded,
)
from schemas.money import MicroPoints
from schemas.plans import Group, OfferedGroup, OfferedPlan, Plan, PlanItem, PlanRef
from schemas.prices import Free, PerCall, PerToken, Price
from schemas.relay import KeyTerms
from schemas.usage import Basis, Usage
from tests.given import AT_US, MODEL, POINT, REF, hold_asked, with_upt

DAY_US = 86_400_000_000
CALL = PerCall(POINT * 1_000)


def plans(calls: int, **more: Any) -> Mapping[int, OfferedPlan]:
    items = (
        PlanItem("other", "Other", ("another",), -1),
        PlanItem("chat", "Chat", (MODEL,), calls),
    )
    plan = Plan("Basic", MicroPoints(10 * POINT), items, relay=True, **more)
    return {1: OfferedPlan(plan, PlanRef(1, 4))}


def subscriber(calls: int = 2, left_upt: int = 0) -> Account:
    state = with_upt(10 * POINT + left_upt)
    return after(
        state, decide_subscribe(state, 2, plans(calls)[1], 1, AT_US, deliberate=True), AT_US
    )


def after(state: Account, decision: Any, at_us: int = AT_US) -> Account:
    assert isinstance(decision, Accept), decision
    for _, event in decision.events:
        state = ACCOUNT.apply(state, event, 9, at_us)
    return state


def asked(name: str, price: Price = CALL, **more: Any) -> HoldAsked:
    return hold_asked(name, price, **more)


def first(decision: Any) -> Any:
    assert isinstance(decision, Accept), decision
    return decision.events[0][1]


def settle(name: str, price: Price = CALL, **usage: int) -> SettleAsked:
    return SettleAsked(
        RequestId(name), Usage(**usage), Basis.REPORTED, price, REF, Served(status=200)
    )


def test_a_subscriber_without_points_calls_on_the_plan() -> None:
    state = subscriber()
    assert state.available_upt == 0
    decision = decide_hold(state, 3, asked("r", plans=plans(2)), AT_US)
    held = first(decision)
    assert isinstance(held, PointsHeld)
    assert held.amount_upt == 0
    assert held.plan is not None
    assert (held.plan.plan, held.plan.item) == (PlanRef(1, 4), "chat")
    state = after(state, decision)
    ended = decide_settle(state, settle("r"))
    settled = first(ended)
    assert isinstance(settled, HoldSettled)
    assert (settled.amount_upt, settled.plan) == (0, held.plan)
    assert after(state, ended).charged_upt == 10 * POINT


def test_an_exhausted_item_falls_back_to_points_in_the_same_decision() -> None:
    state = subscriber(calls=1, left_upt=POINT)
    state = after(state, decide_hold(state, 3, asked("1", plans=plans(1)), AT_US))
    held = first(decide_hold(state, 4, asked("2", plans=plans(1)), AT_US))
    assert (held.amount_upt, held.plan) == (POINT, None)


def test_an_exhausted_item_without_points_is_refused() -> None:
    state = subscriber(calls=1)
    state = after(state, decide_hold(state, 3, asked("1", plans=plans(1)), AT_US))
    refused = first(decide_hold(state, 4, asked("2", plans=plans(1)), AT_US))
    assert isinstance(refused, RequestRefused)


def test_a_failed_call_gives_its_unit_back_exactly_once() -> None:
    state = subscriber(calls=1)
    state = after(state, decide_hold(state, 3, asked("1", plans=plans(1)), AT_US))
    release = decide_release(
        state, RequestId("1"), ReleaseReason.UPSTREAM_ERROR, Served(status=502)
    )
    state = after(state, release)
    again = decide_release(state, RequestId("1"), ReleaseReason.UPSTREAM_ERROR, Served())
    assert isinstance(again, Refuse)
    state = after(state, decide_hold(state, 3, asked("2", plans=plans(1)), AT_US))
    assert isinstance(
        first(decide_hold(state, 4, asked("3", plans=plans(1)), AT_US)), RequestRefused
    )


def test_a_unit_of_last_month_is_not_given_back_to_this_one() -> None:
    state = subscriber(calls=2, left_upt=10 * POINT)
    renewal = decide_subscribe(state, 3, plans(2)[1], 1, AT_US, deliberate=True)
    state, later = after(state, renewal), AT_US + 40 * DAY_US
    state = after(state, decide_hold(state, 3, asked("1", plans=plans(2)), AT_US))
    state = after(state, decide_hold(state, 3, asked("2", plans=plans(2)), later), later)
    release = decide_release(state, RequestId("1"), ReleaseReason.UPSTREAM_ERROR, Served())
    state = after(state, release, later)
    assert state.subscription is not None
    assert state.subscription.used == {"chat": 1}


def test_unlimited_calls_are_never_exhausted() -> None:
    state = subscriber(calls=-1)
    for number in range(50):
        state = after(state, decide_hold(state, 3, asked(str(number), plans=plans(-1)), AT_US))
    assert state.held_upt == 0


def test_the_relay_uses_a_plan_only_where_it_says_so() -> None:
    state = subscriber(left_upt=POINT)
    closed = {1: OfferedPlan(Plan("B", MicroPoints(1), plans(2)[1].plan.items), PlanRef(1, 1))}
    assert first(decide_hold(state, 3, asked("1", plans=closed), AT_US)).plan is None
    by_chat = asked("1", plans=closed, purpose="chat")
    assert first(decide_hold(state, 3, by_chat, AT_US)).plan is not None


def test_an_ended_subscription_pays_for_nothing() -> None:
    state = subscriber(left_upt=POINT)
    held = first(decide_hold(state, 3, asked("1", plans=plans(2)), AT_US + 40 * DAY_US))
    assert held.plan is None


def test_free_models_use_no_call_of_a_plan() -> None:
    held = first(decide_hold(subscriber(), 3, asked("1", Free(), plans=plans(2)), AT_US))
    assert held.plan is None


def test_a_keys_quota_holds_although_the_account_has_more() -> None:
    key = KeyTerms(KeyId(1), quota_upt=3 * POINT // 2, reset=Reset.DAILY)
    state = with_upt(10 * POINT)
    decision = decide_hold(state, 2, asked("1", key=key), AT_US)
    state = after(state, decision)
    refused = decide_hold(state, 3, asked("2", key=key), AT_US)
    assert first(refused) == RequestRefused(
        RequestId("2"), RefusalReason.KEY_QUOTA, KeyId(1), MODEL, REF, MicroPoints(POINT // 2)
    )
    other = decide_hold(state, 3, asked("3", key=KeyTerms(KeyId(2))), AT_US)
    assert isinstance(first(other), PointsHeld)
    state = after(state, decide_settle(state, settle("1")))
    assert isinstance(first(decide_hold(state, 4, asked("4", key=key), AT_US)), RequestRefused)
    tomorrow = AT_US + DAY_US
    assert isinstance(first(decide_hold(state, 4, asked("5", key=key), tomorrow)), PointsHeld)


def test_a_released_hold_is_not_spent_of_a_quota() -> None:
    key = KeyTerms(KeyId(1), quota_upt=POINT)
    state = with_upt(10 * POINT)
    state = after(state, decide_hold(state, 2, asked("1", key=key), AT_US))
    state = after(
        state, decide_release(state, RequestId("1"), ReleaseReason.UPSTREAM_ERROR, Served())
    )
    assert isinstance(first(decide_hold(state, 3, asked("2", key=key), AT_US)), PointsHeld)


def test_a_hold_is_extended_and_settled_within_the_keys_quota() -> None:
    price = PerToken(input_npt=1_000, output_npt=1_000)
    key = KeyTerms(KeyId(1), quota_upt=3_000)
    state = with_upt(POINT)
    state = after(
        state, decide_hold(state, 2, asked("1", price, key=key, output_limit=1_000), AT_US)
    )
    held_upt = state.held_upt
    assert first(decide_extend(state, RequestId("1"), POINT)).amount_upt == 3_000 - held_upt
    events = decide_settle(state, settle("1", price, output=9_000))
    assert isinstance(events, Accept)
    assert [type(event) for _, event in events.events][-2:] == [HoldSettled, ShortfallRecorded]
    assert after(state, events).charged_upt == 3_000


def test_a_spent_quota_is_a_value_of_its_own_once_refusals_are_capped() -> None:
    key = KeyTerms(KeyId(1), quota_upt=1)
    state = with_upt(10 * POINT)
    for _ in range(60):
        state = after(state, decide_hold(state, 2, asked("1", key=key), AT_US))
    decision = decide_hold(state, 2, asked("1", key=key), AT_US)
    assert decision == Refuse(KeyQuotaReached(MicroPoints(POINT - 1), Reset.NEVER))


@pytest.mark.parametrize(
    ("more", "scope"),
    [({"concurrency": 2}, "account"), ({"key": KeyTerms(KeyId(1), concurrency=2)}, "key")],
)
def test_calls_at_once_are_limited_exactly(more: dict[str, Any], scope: str) -> None:
    state = with_upt(10 * POINT)
    for name in ("1", "2"):
        state = after(state, decide_hold(state, 2, asked(name, **more), AT_US))
    assert decide_hold(state, 2, asked("3", **more), AT_US) == Refuse(TooManyAtOnce(scope, 2))
    state = after(state, decide_settle(state, settle("1")))
    assert isinstance(decide_hold(state, 2, asked("3", **more), AT_US), Accept)


def test_a_groups_multiplier_is_kept_with_hold_and_settle() -> None:
    groups = {"vip": OfferedGroup(Group(multiplier_ppm=500_000), 7)}
    key = KeyTerms(KeyId(1), group="vip")
    state = with_upt(10 * POINT)
    decision = decide_hold(state, 2, asked("1", key=key, groups=groups), AT_US)
    held = first(decision)
    assert held.amount_upt == POINT // 2
    terms = held.terms
    assert (terms.group, terms.group_version, terms.multiplier_ppm) == ("vip", 7, 500_000)
    settled = first(decide_settle(after(state, decision), settle("1")))
    assert (settled.amount_upt, settled.terms) == (POINT // 2, terms)


def test_a_group_may_call_its_own_models_only() -> None:
    groups = {"normal": OfferedGroup(Group(models=("another",)), 1)}
    decision = decide_hold(with_upt(POINT), 2, asked("1", groups=groups), AT_US)
    assert decision == Refuse(NotForGroup("normal"))


def test_the_group_is_the_keys_else_the_level_else_normal() -> None:
    state = subscriber()
    assert group_of(state, KeyTerms(KeyId(1), group="vip"), AT_US) == "vip"
    assert group_of(state, KeyTerms(KeyId(1)), AT_US) == "basic"
    assert group_of(state, KeyTerms(KeyId(1)), AT_US + 40 * DAY_US) == "normal"


def test_clocks_that_differ_do_not_begin_a_plans_month_twice() -> None:
    """At a month's end one process is in the new month already, and another is not."""
    state = after(
        with_upt(100 * POINT),
        decide_subscribe(with_upt(100 * POINT), 2, plans(1)[1], 3, AT_US, deliberate=True),
    )
    turn_us = add_months(AT_US, 1, "UTC")
    by_plan = 0
    for number in range(6):
        at_us = turn_us + (1_000_000 if number % 2 == 0 else -1_000_000)
        decision = decide_hold(state, 2, asked(f"r{number}", plans=plans(1)), at_us)
        by_plan += first(decision).plan is not None
        state = after(state, decision, at_us)
    assert by_plan == 1


def test_clocks_that_differ_do_not_begin_a_keys_day_twice() -> None:
    """What a process spends that is still in yesterday counts in the day that has begun."""
    state = with_upt(100 * POINT)
    key = KeyTerms(KeyId(1), quota_upt=3 * POINT, reset=Reset.DAILY)
    midnight_us = (AT_US // DAY_US + 1) * DAY_US
    spent = 0
    for number in range(6):
        at_us = midnight_us + (1_000_000 if number == 0 else -1_000_000)
        decision = decide_hold(state, 2, asked(f"r{number}", key=key), at_us)
        if not isinstance(first(decision), PointsHeld):
            continue
        state = after(state, decision, at_us)
        state = after(state, decide_settle(state, settle(f"r{number}", output=1)), at_us)
        spent += 1
    assert spent == 3


def test_what_is_charged_late_counts_in_the_keys_quota_and_stays_within_it() -> None:
    key = KeyTerms(KeyId(1), quota_upt=3 * POINT)
    state = with_upt(100 * POINT)
    state = after(state, decide_hold(state, 2, asked("1", key=key), AT_US))
    quota = state.holds[RequestId("1")].quota
    swept = decide_release(state, RequestId("1"), ReleaseReason.SWEPT, Served())
    state = after(state, swept)
    dear = msgspec.structs.replace(
        settle("1", PerCall(9 * POINT * 1_000)), key=KeyId(1), quota=quota
    )
    late = decide_late(state, 5, dear, UUID(int=1), 0)
    event = first(late)
    assert (event.amount_upt, event.shortfall_upt) == (3 * POINT, 6 * POINT)
    state = after(state, late)
    assert isinstance(first(decide_hold(state, 6, asked("2", key=key), AT_US)), RequestRefused)
