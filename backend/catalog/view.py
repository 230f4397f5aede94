"""Channels, prices, groups and plans in memory, ready for admission. No I/O per call; secrets are
open here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Final, TypeVar, assert_never

import msgspec
import structlog

from backend.catalog.channel import Channel
from backend.catalog.group import DefinedGroup
from backend.catalog.plan import DefinedPlan
from backend.catalog.price import ModelPrice
from backend.kit.clock import Clock
from backend.kit.secrets import SealBroken, SiteSecret, aad_of
from schemas.ids import ChannelId, id_of, kind_of
from schemas.plans import OfferedGroup, OfferedPlan, PlanRef
from schemas.prices import Price, PriceRef

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

_log = structlog.get_logger("catalog.view")


class ChannelEntry(msgspec.Struct, frozen=True):
    """One enabled channel, ready to be called."""

    channel: ChannelId
    name: str
    type: str
    """`openai`, or `demo` for the built-in model."""
    base_url: str
    secret: str
    """Empty: none."""
    api_version: str | None
    priority: int
    """Higher is tried first."""
    weight: int
    models: frozenset[str]
    mapping: dict[str, str]
    version: int
    """Of the channel's stream."""

    def upstream_model(self, model: str) -> str:
        """What the provider calls the model that was asked for."""
        return self.mapping.get(model, model)

    def __repr__(self) -> str:
        return f"ChannelEntry(channel={self.channel}, name={self.name!r})"


class Priced(msgspec.Struct, frozen=True):
    """A price version of a model, and its name in events."""

    price: Price
    ref: PriceRef


_Schedule = tuple[tuple[int, Priced], ...]
"""(from when, price), the newest first: the first one that has begun counts."""


class CatalogView:
    """Listener of a `StateView` for `channel:`, `price:`, `group:` and `plan:` streams.

    `groups` (by name) and `plans` (by level) never change: a change puts new ones in their place.
    """

    kinds: ClassVar[tuple[str, ...]] = ("channel", "price", "group", "plan")

    def __init__(self, secret: SiteSecret, clock: Clock) -> None:
        self._secret: Final = secret
        self._clock: Final = clock
        self._channels: dict[str, ChannelEntry] = {}
        self._prices: dict[str, _Schedule] = {}
        self._by_model: dict[str, tuple[ChannelEntry, ...]] | None = None
        self.groups: Mapping[str, OfferedGroup] = MappingProxyType({})
        self.plans: Mapping[int, OfferedPlan] = MappingProxyType({})

    def channels_for(self, model: str) -> tuple[ChannelEntry, ...]:
        """Enabled channels that serve a model, highest priority first, then by id."""
        return self._indexed().get(model, ())

    def channel(self, channel: ChannelId) -> ChannelEntry | None:
        """An enabled channel, or None."""
        return self._channels.get(f"channel:{channel}")

    def price_of(self, model: str, at_us: int) -> Priced | None:
        """The version that counts at that moment; the same object as long as it does."""
        for from_us, priced in self._prices.get(model, ()):
            if from_us <= at_us:
                return priced
        return None

    def available(self, model: str) -> bool:
        """Whether an enabled channel serves it and a price of it has begun."""
        return model in self._indexed() and self._has_price(model)

    def models(self) -> tuple[str, ...]:
        """Every available model, sorted."""
        return tuple(sorted(model for model in self._indexed() if self._has_price(model)))

    def put(
        self, stream: str, version: int, state: Channel | ModelPrice | DefinedGroup | DefinedPlan
    ) -> None:
        match state:
            case Channel():
                self._put_channel(stream, version, state)
            case ModelPrice():
                self._put_price(id_of(stream), version, state)
            case DefinedGroup(group):
                if group is not None:
                    name = id_of(stream)
                    self.groups = _with(self.groups, name, OfferedGroup(group, version))
            case DefinedPlan(plan):
                if plan is not None:
                    level = int(id_of(stream))
                    self.plans = _with(
                        self.plans, level, OfferedPlan(plan, PlanRef(level, version))
                    )
            case _:
                assert_never(state)

    def drop(self, stream: str) -> None:
        name = id_of(stream)
        match kind_of(stream):
            case "price":
                self._prices.pop(name, None)
            case "group":
                self.groups = _without(self.groups, name)
            case "plan":
                self.plans = _without(self.plans, int(name))
            case _:
                if self._channels.pop(stream, None) is not None:
                    self._by_model = None

    def _has_price(self, model: str) -> bool:
        return self.price_of(model, self._clock.now_us()) is not None

    def _put_price(self, model: str, version: int, state: ModelPrice) -> None:
        # What stays in force stays the same object, so that what was made from it stays too.
        kept = {priced: priced for _, priced in self._prices.get(model, ())}
        schedule: list[tuple[int, Priced]] = []
        for one in reversed(state.schedule(version)):
            priced = Priced(one.price, PriceRef(model, one.version))
            schedule.append((one.from_us, kept.get(priced, priced)))
        if schedule:
            self._prices[model] = tuple(schedule)

    def _put_channel(self, stream: str, version: int, state: Channel) -> None:
        entry = self._entry(stream, version, state) if state.enabled else None
        if entry is None:
            self.drop(stream)
            return
        self._channels[stream] = entry
        self._by_model = None

    def _entry(self, stream: str, version: int, state: Channel) -> ChannelEntry | None:
        try:
            secret = self._opened(stream, state)
        except SealBroken as error:
            _log.error("channel unusable", stream=stream, reason=error.code)
            return None
        settings = state.settings
        return ChannelEntry(
            channel=ChannelId(int(id_of(stream))),
            name=settings.name,
            type=settings.type,
            base_url=settings.base_url,
            secret=secret,
            api_version=settings.api_version,
            priority=settings.priority,
            weight=settings.weight,
            models=frozenset(settings.models),
            mapping=dict(settings.mapping),
            version=version,
        )

    def _opened(self, stream: str, state: Channel) -> str:
        if not state.secret_sealed:
            return ""
        return self._secret.open(state.secret_sealed, aad_of(stream, state.secret_version)).decode()

    def _indexed(self) -> dict[str, tuple[ChannelEntry, ...]]:
        if self._by_model is None:
            found: dict[str, list[ChannelEntry]] = {}
            for entry in sorted(self._channels.values(), key=lambda e: (-e.priority, e.channel)):
                for model in entry.models:
                    found.setdefault(model, []).append(entry)
            self._by_model = {model: tuple(entries) for model, entries in found.items()}
        return self._by_model


def _with(mapping: Mapping[_Key, _Value], key: _Key, value: _Value) -> Mapping[_Key, _Value]:
    return MappingProxyType({**mapping, key: value})


def _without(mapping: Mapping[_Key, _Value], key: _Key) -> Mapping[_Key, _Value]:
    return MappingProxyType({k: v for k, v in mapping.items() if k != key})
