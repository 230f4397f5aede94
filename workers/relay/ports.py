"""What a relay call needs from the rest of the site, as narrow protocols."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from backend.kit.outbound import Transport
from schemas.ids import ChannelId
from schemas.plans import OfferedGroup, OfferedPlan
from schemas.prices import Price, PriceRef
from workers.providers.openai import ChannelTarget


class OfferedChannel(msgspec.Struct, frozen=True):
    """One enabled channel, seen for one model."""

    channel: ChannelId
    priority: int
    weight: int
    target: ChannelTarget
    transport: Transport


class Offer(msgspec.Struct, frozen=True):
    """A model that may be called: its price now, and who serves it (at least one channel)."""

    price: Price
    price_ref: PriceRef
    channels: tuple[OfferedChannel, ...]


class Offers(Protocol):
    @property
    def plans(self) -> Mapping[int, OfferedPlan]:
        """By level."""
        ...

    @property
    def groups(self) -> Mapping[str, OfferedGroup]:
        """By name; a group that was never defined is not in it."""
        ...

    def offer(self, model: str) -> Offer | None:
        """None for a model without a price or without an enabled channel."""
        ...
