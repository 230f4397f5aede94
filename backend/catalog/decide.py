"""Decisions about channels and prices: pure functions to events or a refusal."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from backend.catalog.channel import Channel
from backend.catalog.price import ModelPrice
from backend.journal.commands import Accept, Decision, Refuse, Standing
from schemas.catalog import (
    ChannelAdded,
    ChannelChanged,
    ChannelDisabled,
    ChannelEnabled,
    ChannelSettings,
    PriceSet,
)
from schemas.prices import Price

SealAt = Callable[[int], bytes]
"""Seals a secret that is to lie at this version of its stream."""


class NoSuchChannel(msgspec.Struct, frozen=True):
    pass


class ChannelExists(msgspec.Struct, frozen=True):
    pass


class NothingToChange(msgspec.Struct, frozen=True):
    """It is so already; `version` of the stream that says so."""

    version: int


def decide_add_channel(channel: Standing, added: ChannelAdded) -> Decision:
    if channel.version > 0:
        return Refuse(ChannelExists())
    return Accept(((0, added),))


def decide_change_channel(
    channel: Standing, settings: ChannelSettings, seal_at: SealAt | None
) -> Decision:
    """New settings, and a new secret where `seal_at` is given; else the old one stays."""
    state: Channel = channel.state
    if channel.version == 0:
        return Refuse(NoSuchChannel())
    if seal_at is None and settings == state.settings:
        return Refuse(NothingToChange(channel.version))
    sealed = b"" if seal_at is None else seal_at(channel.version + 1)
    return Accept(((0, ChannelChanged(settings, sealed)),))


def decide_enable_channel(channel: Standing) -> Decision:
    state: Channel = channel.state
    if channel.version == 0:
        return Refuse(NoSuchChannel())
    if state.enabled:
        return Refuse(NothingToChange(channel.version))
    return Accept(((0, ChannelEnabled()),))


def decide_disable_channel(channel: Standing, reason: str) -> Decision:
    state: Channel = channel.state
    if channel.version == 0:
        return Refuse(NoSuchChannel())
    if not state.enabled:
        return Refuse(NothingToChange(channel.version))
    return Accept(((0, ChannelDisabled(reason)),))


def decide_set_price(price: Standing, wanted: Price) -> Decision:
    """A new version, unless the newest one says the same."""
    state: ModelPrice = price.state
    if state.price == wanted:
        return Refuse(NothingToChange(price.version))
    return Accept(((0, PriceSet(wanted)),))
