"""Channels and prices in memory, ready for admission. No I/O per call; secrets are open here."""

from __future__ import annotations

from typing import ClassVar, Final, assert_never

import msgspec
import structlog

from backend.catalog.channel import Channel
from backend.catalog.price import ModelPrice
from backend.kit.secrets import SealBroken, SiteSecret, aad_of
from schemas.ids import ChannelId, id_of, kind_of
from schemas.prices import Price, PriceRef

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
    """The newest price of a model, and its name in events."""

    price: Price
    ref: PriceRef


class CatalogView:
    """Listener of a `StateView` for `channel:` and `price:` streams."""

    kinds: ClassVar[tuple[str, ...]] = ("channel", "price")

    def __init__(self, secret: SiteSecret) -> None:
        self._secret: Final = secret
        self._channels: dict[str, ChannelEntry] = {}
        self._prices: dict[str, Priced] = {}
        self._by_model: dict[str, tuple[ChannelEntry, ...]] | None = None

    def channels_for(self, model: str) -> tuple[ChannelEntry, ...]:
        """Enabled channels that serve a model, highest priority first, then by id."""
        return self._indexed().get(model, ())

    def channel(self, channel: ChannelId) -> ChannelEntry | None:
        """An enabled channel, or None."""
        return self._channels.get(f"channel:{channel}")

    def price_of(self, model: str) -> Priced | None:
        return self._prices.get(model)

    def available(self, model: str) -> bool:
        """Whether an enabled channel serves it and it has a price."""
        return model in self._prices and model in self._indexed()

    def models(self) -> tuple[str, ...]:
        """Every available model, sorted."""
        return tuple(sorted(self._indexed().keys() & self._prices.keys()))

    def put(self, stream: str, version: int, state: Channel | ModelPrice) -> None:
        match state:
            case Channel():
                self._put_channel(stream, version, state)
            case ModelPrice(price):
                if price is not None:
                    model = id_of(stream)
                    self._prices[model] = Priced(price, PriceRef(model, version))
            case _:
                assert_never(state)

    def drop(self, stream: str) -> None:
        if kind_of(stream) == "price":
            self._prices.pop(id_of(stream), None)
        elif self._channels.pop(stream, None) is not None:
            self._by_model = None

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
