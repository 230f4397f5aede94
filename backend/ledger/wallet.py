"""What an account has, as its owner wants to see it: points, group, subscription, key. Pure.

From the very state that decisions are based on.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo

import msgspec

from backend.ledger.account import Account
from backend.ledger.admission import group_of
from backend.ledger.quota import quota_period_us
from backend.ledger.subscription import Subscription, add_months, period_now_us
from schemas.money import MicroPoints
from schemas.plans import OfferedPlan, PlanItem, Quota
from schemas.relay import KeyTerms

_S_US: Final = 1_000_000


class ItemUse(msgspec.Struct, frozen=True):
    """An item and its calls in the present period."""

    item: PlanItem
    used: int


class SubscriptionView(msgspec.Struct, frozen=True):
    """Of an account whose subscription is not over. Times in microseconds since 1970."""

    level: int
    plan_version: int
    until_us: int
    time_zone: str
    period_us: int
    """Since when calls are counted, and until when."""
    period_end_us: int
    items: tuple[ItemUse, ...]


class KeyQuotaView(msgspec.Struct, frozen=True):
    """What a key may spend in the present period."""

    limit_upt: int
    left_upt: int
    period_us: int
    """0: it never begins anew."""


class WalletView(msgspec.Struct, frozen=True):
    posted_upt: int
    held_upt: int
    available_upt: int
    group: str
    """That requests with this key belong to."""
    subscription: SubscriptionView | None
    quota: KeyQuotaView | None
    """None: the key may spend all that there is."""


def wallet_of(
    state: Account, key: KeyTerms, plans: Mapping[int, OfferedPlan], at_us: int
) -> WalletView:
    """An account as it is at `at_us`, to the holder of one of its keys."""
    current = state.subscription
    subscription = None
    if current is not None and current.active(at_us):
        subscription = _subscription(current, plans.get(current.level), at_us)
    return WalletView(
        posted_upt=state.posted_upt,
        held_upt=state.held_upt,
        available_upt=state.available_upt,
        group=group_of(state, key, at_us),
        subscription=subscription,
        quota=_quota(state, key, at_us),
    )


def _subscription(state: Subscription, offered: OfferedPlan | None, at_us: int) -> SubscriptionView:
    period_us = period_now_us(state, at_us)
    used = state.used if period_us == state.period_us else {}
    items = () if offered is None else offered.plan.items
    return SubscriptionView(
        level=state.level,
        plan_version=state.plan_version if offered is None else offered.ref.version,
        until_us=state.until_us,
        time_zone=state.time_zone,
        period_us=period_us,
        period_end_us=_period_end_us(state, period_us),
        items=tuple(ItemUse(item, used.get(item.id, 0)) for item in items),
    )


def _period_end_us(state: Subscription, period_us: int) -> int:
    zone = ZoneInfo(state.time_zone)
    anchor = datetime.fromtimestamp(state.anchor_us // _S_US, zone)
    begin = datetime.fromtimestamp(period_us // _S_US, zone)
    months = (begin.year - anchor.year) * 12 + begin.month - anchor.month
    return add_months(state.anchor_us, months + 1, state.time_zone)


def _quota(state: Account, key: KeyTerms, at_us: int) -> KeyQuotaView | None:
    if key.quota_upt is None:
        return None
    period_us = quota_period_us(key.reset, at_us)
    left_upt = state.quota_left_upt(key.key, Quota(MicroPoints(key.quota_upt), period_us))
    return KeyQuotaView(key.quota_upt, max(0, left_upt), period_us)
