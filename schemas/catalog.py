"""Events of `channel:` and `price:` streams. A channel's secret travels sealed, here and nowhere
else.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

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


class PriceSet(CatalogFact, frozen=True):
    """A new immutable price version of one model; the stream's version is the version's number."""

    price: Price


CatalogEvent = ChannelAdded | ChannelChanged | ChannelEnabled | ChannelDisabled | PriceSet
