"""Events of `channel:`, `price:`, `pricelist:`, `plan:`, `group:` and `limit:` streams.

A channel's secret travels sealed, here and nowhere else.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from schemas.plans import Group, Plan
from schemas.prices import Price


class CatalogFact(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What all catalogue events share: a released schema number that is never edited."""

    SCHEMA: ClassVar[int] = 1


class ChannelSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Everything an operator says of a channel but its secret."""

    name: str
    type: str
    """`openai`, or `demo` for the built-in model."""
    base_url: str
    models: tuple[str, ...]
    priority: int = 0
    """Higher is tried first."""
    weight: int = 1
    """Share of the traffic among channels of one priority; ≥ 1."""
    mapping: tuple[tuple[str, str], ...] = ()
    """(asked model, upstream model) pairs."""
    api_version: str | None = None


class ChannelAdded(CatalogFact, frozen=True):
    settings: ChannelSettings
    secret_sealed: bytes = b""


class ChannelChanged(CatalogFact, frozen=True):
    settings: ChannelSettings
    secret_sealed: bytes = b""


class ChannelEnabled(CatalogFact, frozen=True):
    pass


class ChannelDisabled(CatalogFact, frozen=True):
    reason: str


class PriceSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a price comes from: a list in a currency, at the rate of that day."""

    list_name: str
    currency: str
    points_per_unit: str
    """Points for one unit of the currency, a decimal string; 10 for CNY, always."""


class PriceSet(CatalogFact, frozen=True):
    """A new immutable price version of one model; the stream's version is the version's number."""

    SCHEMA: ClassVar[int] = 2
    price: Price
    effective_us: int = 0
    """From when it counts; 0: at once. Of all versions that count, the newest one does."""
    source: PriceSource | None = None
    """None: set by hand, in points."""


class PriceListAccepted(CatalogFact, frozen=True):
    """An operator reviewed a price list and took these models' prices from it, in one unit."""

    digest: bytes
    """SHA-256 of the list's bytes."""
    currency: str
    points_per_unit: str
    models: tuple[str, ...]
    actor: str


class PlanDefined(CatalogFact, frozen=True):
    plan: Plan


class GroupDefined(CatalogFact, frozen=True):
    group: Group


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How much at a time; None: no limit."""

    requests_per_minute: int | None = None
    requests_per_day: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    concurrency: int | None = None


class LimitSet(CatalogFact, frozen=True):
    limits: Limits


CatalogEvent = (
    ChannelAdded
    | ChannelChanged
    | ChannelEnabled
    | ChannelDisabled
    | PriceSet
    | PriceListAccepted
    | PlanDefined
    | GroupDefined
    | LimitSet
)
