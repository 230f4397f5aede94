"""What a subscription is made of: plans, their items, groups, and the parts of both that events
keep.
"""

from __future__ import annotations

from typing import Final

import msgspec

from schemas.money import MicroPoints
from schemas.prices import PPM

NORMAL: Final = "normal"
LEVEL_NAMES: Final = (NORMAL, "basic", "standard", "pro")
"""Subscription levels 0 to 3, which are groups at the same time."""
TERMS_MONTHS: Final = (1, 3, 6, 12, 36)
UNLIMITED: Final = -1


class PlanItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Some models and how many calls a month they may have together."""

    id: str
    name: str
    models: tuple[str, ...]
    monthly_calls: int
    """-1: unlimited."""
    icon: str = ""


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a level offers, as its operator defined it."""

    name: str
    month_price_upt: MicroPoints
    """A plan of P CNY costs 10·P points a month."""
    items: tuple[PlanItem, ...]
    enabled: bool = True
    """May be bought; those who have it keep it in any case."""
    relay: bool = False
    """Whether calls of the relay API may use it."""
    discounts: tuple[tuple[int, int], ...] = ()
    """(months, parts per million of the price that are taken off) of longer terms."""
    time_zone: str = "UTC"
    """IANA name: months begin and end there."""


class PlanRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Names one immutable version of a plan."""

    level: int
    version: int


class OfferedPlan(msgspec.Struct, frozen=True):
    plan: Plan
    ref: PlanRef


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What all requests of a group share."""

    multiplier_ppm: int = PPM
    """Of every price."""
    models: tuple[str, ...] = ()
    """The only ones it may call; empty: every model."""


class OfferedGroup(msgspec.Struct, frozen=True):
    group: Group
    version: int


class Segment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Time that was paid for at once: [from, until), microseconds since 1970."""

    from_us: int
    until_us: int
    paid_upt: MicroPoints


class PlanUse(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One call of an item's, in the period that began then."""

    plan: PlanRef
    item: str
    period_us: int


class Quota(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a key may spend in the period that began then."""

    limit_upt: MicroPoints
    period_us: int
