"""Decisions about subscriptions: bought, renewed or changed with points, in the same decision.

No sequence of them gains or loses value beyond one micro-point: what is left of a level is credited
at the price that was paid for it. Pure.
"""

from __future__ import annotations

from typing import Any

from backend.journal.commands import Accept, Decision, Refuse
from backend.ledger.account import Account
from backend.ledger.refusals import (
    JustBought,
    MissingPoints,
    NoSuchAccount,
    NothingExpired,
    PlanNotOffered,
    TooFarAhead,
)
from backend.ledger.subscription import (
    AHEAD_MONTHS_MAX,
    DOUBLE_CLICK_US,
    Quote,
    Subscription,
    add_months,
    quote,
)
from schemas.ledger import PlanBought, PlanChanged, PlanExpired, PlanRenewed
from schemas.money import MicroPoints
from schemas.plans import TERMS_MONTHS, OfferedPlan


def decide_subscribe(
    state: Account,
    version: int,
    offered: OfferedPlan,
    months: int,
    at_us: int,
    *,
    deliberate: bool,
) -> Decision:
    """A first purchase, a renewal, or a change to another level, whichever the account needs.

    Refused (MissingPoints) where the points, with what is credited, do not reach. Not
    `deliberate`: the same purchase within seconds is a second click (JustBought).
    """
    if version == 0:
        return Refuse(NoSuchAccount())
    if not offered.plan.enabled or months not in TERMS_MONTHS:
        return Refuse(PlanNotOffered())
    current = state.subscription
    level = offered.ref.level
    if current is not None and not deliberate and _clicked(current, level, months, at_us):
        return Refuse(JustBought())
    quoted = quote(current, offered, months, at_us)
    ahead_us = add_months(at_us, AHEAD_MONTHS_MAX, offered.plan.time_zone)
    if quoted.segment.until_us > ahead_us:
        return Refuse(TooFarAhead())
    if quoted.due_upt > state.available_upt:
        return Refuse(MissingPoints(MicroPoints(quoted.due_upt - state.available_upt)))
    return Accept(tuple((0, event) for event in _events(current, offered, months, quoted, at_us)))


def decide_expire(state: Account, at_us: int) -> Decision:
    """Notes the end of a subscription whose time is over."""
    current = state.subscription
    if current is None or current.active(at_us):
        return Refuse(NothingExpired())
    return Accept(((0, PlanExpired(current.level)),))


def _events(
    current: Subscription | None, offered: OfferedPlan, months: int, quoted: Quote, at_us: int
) -> list[Any]:
    plan, segment = offered.ref, quoted.segment
    zone = offered.plan.time_zone
    bought = PlanBought(plan, months, segment, segment.from_us, zone)
    if current is None:
        return [bought]
    if not current.active(at_us):
        return [PlanExpired(current.level), bought]
    if current.level == plan.level:
        return [PlanRenewed(plan, months, segment)]
    kept = current.time_zone
    return [PlanChanged(plan, months, segment, kept, quoted.credit_upt, quoted.carry)]


def _clicked(current: Subscription, level: int, months: int, at_us: int) -> bool:
    last = current.purchase
    return (last.level, last.months) == (level, months) and at_us - last.at_us < DOUBLE_CLICK_US
