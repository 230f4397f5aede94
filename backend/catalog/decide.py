"""Decisions about channels, prices and groups: pure functions to events or a refusal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from backend.catalog.channel import Channel
from backend.catalog.group import DefinedGroup
from backend.catalog.price import SCHEDULED_MAX, ModelPrice, timetable
from backend.catalog.price import apply as price_after
from backend.journal.commands import Accept, Decision, Refuse, Standing
from schemas.catalog import (
    ChannelAdded,
    ChannelChanged,
    ChannelDisabled,
    ChannelEnabled,
    ChannelSettings,
    GroupDefined,
    PriceListAccepted,
    PriceSet,
)
from schemas.plans import Group

SealAt = Callable[[int], bytes]
"""Seals a secret that is to lie at this version of its stream."""


class NoSuchChannel(msgspec.Struct, frozen=True):
    pass


class ChannelExists(msgspec.Struct, frozen=True):
    pass


class NothingToChange(msgspec.Struct, frozen=True):
    """It is so already; `version` of the stream that says so."""

    version: int


class PriceInThePast(msgspec.Struct, frozen=True):
    pass


class TooManyScheduled(msgspec.Struct, frozen=True):
    """More prices wait for their time than a stream may keep."""


class PriceChangedSince(msgspec.Struct, frozen=True):
    """The model's price is another one than when the list was reviewed."""

    model: str


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


def decide_set_price(price: Standing, wanted: PriceSet, at_us: int) -> Decision:
    """A new version, unless the newest one says the same for the same time."""
    if 0 < wanted.effective_us <= at_us:
        return Refuse(PriceInThePast())
    after = price_after(price.state, wanted, price.version + 1, at_us)
    if timetable(after, at_us) == timetable(price.state, at_us):
        return Refuse(NothingToChange(price.version))
    if len(after.earlier) >= SCHEDULED_MAX:
        return Refuse(TooManyScheduled())
    return Accept(((0, wanted),))


def changes_nothing(
    state: ModelPrice, version: int, wanted: Sequence[PriceSet], at_us: int
) -> bool:
    """Whether a model would cost the same from now on with these further versions."""
    after = state
    for number, price in enumerate(wanted, version + 1):
        after = price_after(after, price, number, at_us)
    return timetable(after, at_us) == timetable(state, at_us)


class ListedPrices(msgspec.Struct, frozen=True):
    """What a reviewed list says of one model: a price, and a later one where it names one."""

    model: str
    base_version: int
    """Of the model's price stream when the list was reviewed."""
    prices: tuple[PriceSet, ...]


def decide_accept_list(
    standings: tuple[Standing, ...],
    listed: tuple[ListedPrices, ...],
    accepted: PriceListAccepted,
    at_us: int,
) -> Decision:
    """The prices of a reviewed list, if they are still about what was reviewed.

    The first standing is the list's, then one per model. A model that has what was accepted is left
    out, so that a list can be accepted again after half of it landed.
    """
    events: list[tuple[int, PriceSet]] = []
    models: list[str] = []
    for index, (standing, entry) in enumerate(zip(standings[1:], listed, strict=True), 1):
        wanted = [_not_past(price, at_us) for price in entry.prices]
        if changes_nothing(standing.state, standing.version, wanted, at_us):
            continue
        if standing.version != entry.base_version:
            return Refuse(PriceChangedSince(entry.model))
        state: ModelPrice = standing.state
        if len(state.earlier) + len(wanted) > SCHEDULED_MAX:
            return Refuse(TooManyScheduled())
        models.append(entry.model)
        events += [(index, price) for price in wanted]
    if not events:
        return Refuse(NothingToChange(standings[0].version))
    fact = msgspec.structs.replace(accepted, models=tuple(models))
    return Accept(((0, fact), *events))


def _not_past(price: PriceSet, at_us: int) -> PriceSet:
    """A list's date may have come since it was reviewed: then the price counts at once."""
    return price if price.effective_us > at_us else msgspec.structs.replace(price, effective_us=0)


def decide_define_group(group: Standing, wanted: Group) -> Decision:
    """A new version, unless the newest one says the same."""
    state: DefinedGroup = group.state
    if state.group == wanted:
        return Refuse(NothingToChange(group.version))
    return Accept(((0, GroupDefined(wanted)),))
