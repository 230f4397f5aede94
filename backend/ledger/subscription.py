"""What a subscription is worth, how long it lasts and what it still covers. Pure.

Months are calendar months in the plan's time zone, counted from a fixed moment, so that one bought
on the 31st ends on the last day of a shorter month and on the 31st again afterwards.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

import msgspec

from backend.ledger.quota import period_begun_us
from schemas.money import MicroPoints
from schemas.plans import UNLIMITED, OfferedPlan, Plan, PlanRef, PlanUse, Segment
from schemas.prices import PPM

CARRY: Final = 1_000_000_000
"""What rounding leaves over is kept in 10⁻⁹ of a micro-point."""
AHEAD_MONTHS_MAX: Final = 120
_S_US: Final = 1_000_000


class Purchase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last one: a second click within seconds is the same purchase."""

    at_us: int
    level: int
    months: int


class Subscription(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Of one account; over when its last segment is."""

    level: int
    plan_version: int
    segments: tuple[Segment, ...]
    anchor_us: int
    """Periods are counted from here, also over changes of level: a change brings no new calls."""
    time_zone: str
    term_us: int
    """Where the present level began; its end is so many months later."""
    term_months: int
    purchase: Purchase
    carry: int = 0
    period_us: int = 0
    """The beginning of the period that `used` counts."""
    used: dict[str, int] = {}
    """Calls by item id."""

    @property
    def until_us(self) -> int:
        return self.segments[-1].until_us

    def active(self, at_us: int) -> bool:
        return at_us < self.until_us


class Quote(msgspec.Struct, frozen=True):
    """What a purchase comes to: `due_upt` = price − credit; below zero, points come back."""

    price_upt: MicroPoints
    credit_upt: MicroPoints
    due_upt: int
    segment: Segment
    carry: int


def term_price_upt(plan: Plan, months: int) -> MicroPoints:
    """The price of a term, its discount taken off, rounded up."""
    discount_ppm = dict(plan.discounts).get(months, 0)
    return MicroPoints(-(-plan.month_price_upt * months * (PPM - discount_ppm) // PPM))


def quote(state: Subscription | None, offered: OfferedPlan, months: int, at_us: int) -> Quote:
    """A first purchase, a renewal of the same level, or a change to another."""
    price_upt = term_price_upt(offered.plan, months)
    zone = offered.plan.time_zone
    if state is None or not state.active(at_us):
        segment = Segment(at_us, add_months(at_us, months, zone), price_upt)
        return Quote(price_upt, MicroPoints(0), price_upt, segment, 0)
    if state.level == offered.ref.level:
        until_us = add_months(state.term_us, state.term_months + months, state.time_zone)
        segment = Segment(state.until_us, until_us, price_upt)
        return Quote(price_upt, MicroPoints(0), price_upt, segment, state.carry)
    credit_upt, carry = unused_value(state, at_us)
    # In the zone it was begun in: in another one its periods, and their calls, would begin anew.
    segment = Segment(at_us, add_months(at_us, months, state.time_zone), price_upt)
    return Quote(price_upt, credit_upt, price_upt - credit_upt, segment, carry)


def unused_value(state: Subscription, at_us: int) -> tuple[MicroPoints, int]:
    """Unused time × price paid for it: whole micro-points, and what remains in 10⁻⁹ of one."""
    value = state.carry
    for segment in state.segments:
        left_us = segment.until_us - max(at_us, segment.from_us)
        if left_us > 0:
            value += segment.paid_upt * CARRY * left_us // (segment.until_us - segment.from_us)
    whole_upt, carry = divmod(value, CARRY)
    return MicroPoints(whole_upt), carry


def plan_use(
    state: Subscription | None,
    plans: Mapping[int, OfferedPlan],
    model: str,
    at_us: int,
    *,
    by_relay: bool,
) -> PlanUse | None:
    """One call of the first item that covers the model and has one left; None: points pay."""
    if state is None or not state.active(at_us):
        return None
    offered = plans.get(state.level)
    if offered is None or (by_relay and not offered.plan.relay):
        return None
    period_us = period_now_us(state, at_us)
    used = state.used if period_us == state.period_us else {}
    for item in offered.plan.items:
        if model not in item.models:
            continue
        if item.monthly_calls == UNLIMITED or used.get(item.id, 0) < item.monthly_calls:
            return PlanUse(offered.ref, item.id, period_us)
    return None


def period_now_us(state: Subscription, at_us: int) -> int:
    """The beginning of the period that a call counts in now."""
    period_us = period_of(state.anchor_us, state.time_zone, at_us)
    return period_begun_us(period_us, state.period_us, at_us)


def with_use(state: Subscription, use: PlanUse) -> Subscription:
    """One call more; the first of a new period begins a new count."""
    used = state.used if use.period_us == state.period_us else {}
    counted = {**used, use.item: used.get(use.item, 0) + 1}
    return msgspec.structs.replace(state, period_us=use.period_us, used=counted)


def without_use(state: Subscription, use: PlanUse) -> Subscription:
    """Gives a call back, in the period that it was taken from."""
    taken = state.used.get(use.item, 0)
    if use.period_us != state.period_us or taken == 0:
        return state
    return msgspec.structs.replace(state, used={**state.used, use.item: taken - 1})


def begun(
    plan: PlanRef, months: int, segment: Segment, anchor_us: int, time_zone: str
) -> Subscription:
    """A subscription at its first purchase."""
    purchase = Purchase(segment.from_us, plan.level, months)
    return Subscription(
        level=plan.level,
        plan_version=plan.version,
        segments=(segment,),
        anchor_us=anchor_us,
        time_zone=time_zone,
        term_us=segment.from_us,
        term_months=months,
        purchase=purchase,
    )


def renewed(
    state: Subscription, plan: PlanRef, months: int, segment: Segment, at_us: int
) -> Subscription:
    """More time at the end; segments that are over are of no value any more."""
    return msgspec.structs.replace(
        state,
        plan_version=plan.version,
        segments=(*(old for old in state.segments if old.until_us > at_us), segment),
        term_months=state.term_months + months,
        purchase=Purchase(at_us, plan.level, months),
    )


def changed(
    state: Subscription,
    plan: PlanRef,
    months: int,
    segment: Segment,
    time_zone: str,
    carry: int,
) -> Subscription:
    """Another level from the segment's beginning; what was used in this period stays used."""
    return msgspec.structs.replace(
        state,
        level=plan.level,
        plan_version=plan.version,
        segments=(segment,),
        time_zone=time_zone,
        term_us=segment.from_us,
        term_months=months,
        purchase=Purchase(segment.from_us, plan.level, months),
        carry=carry,
    )


@lru_cache(maxsize=4_096)
def add_months(from_us: int, months: int, time_zone: str) -> int:
    """So many calendar months later at the same local time, or on the month's last day."""
    zone = ZoneInfo(time_zone)
    seconds, rest_us = divmod(from_us, _S_US)
    local = datetime.fromtimestamp(seconds, zone)
    year, month = divmod(local.year * 12 + local.month - 1 + months, 12)
    day = min(local.day, monthrange(year, month + 1)[1])
    moved = local.replace(year=year, month=month + 1, day=day)
    return int(moved.timestamp()) * _S_US + rest_us


def period_of(anchor_us: int, time_zone: str, at_us: int) -> int:
    """The beginning of the month, counted from the anchor, that a moment lies in."""
    zone = ZoneInfo(time_zone)
    anchor = datetime.fromtimestamp(anchor_us // _S_US, zone)
    local = datetime.fromtimestamp(at_us // _S_US, zone)
    months = (local.year - anchor.year) * 12 + local.month - anchor.month
    # The day and time of day, and the shift of a time zone, can put it one month earlier or later.
    for guess in (months + 1, months, months - 1):
        begin_us = add_months(anchor_us, guess, time_zone)
        if begin_us <= at_us:
            return begin_us
    raise AssertionError(f"no month before {at_us} counted from {anchor_us}")


DOUBLE_CLICK_US: Final = 10 * _S_US
"""The same purchase asked for again within this time, without a key of its own, is one."""
