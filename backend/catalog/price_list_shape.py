"""The shape of a price list's rows, with the currency taken off the names of their fields."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A field that is not known may be a price: a row that has one is not understood."""


class Amounts(_Strict, frozen=True, kw_only=True):
    """Per million tokens."""

    input_per_million: Decimal | None = None
    output_per_million: Decimal | None = None
    cached_input_per_million: Decimal | None = None
    cache_write_per_million: Decimal | None = None
    cache_write_1h_per_million: Decimal | None = None


class TierRow(Amounts, frozen=True, kw_only=True):
    above_input_tokens: int


class NextRow(Amounts, frozen=True, kw_only=True):
    since: str = msgspec.field(name="from")


class PeakRow(_Strict, frozen=True, kw_only=True):
    timezone: str = "UTC"
    windows: tuple[tuple[str, str], ...] = ()
    weekdays: tuple[int, ...] = ()
    excludes: str = ""


class NativeRow(_Strict, frozen=True, kw_only=True):
    """What the provider asks for at home, per million tokens."""

    currency: str
    input: Decimal | None = None
    output: Decimal | None = None
    cached: Decimal | None = None
    per_call: Decimal | None = None
    peak: Any = None
    off_peak: Any = None


class ModelRow(Amounts, frozen=True, kw_only=True):
    name: str
    provider: str = ""
    mode: str = "chat"
    context: int | None = None
    max_output: int | None = None
    aliases: tuple[str, ...] = ()
    valid_from: str | None = None
    valid_until: str | None = None
    next_price: NextRow | None = None
    tiers: tuple[TierRow, ...] = ()
    per_image: dict[str, Decimal] | None = None
    per_second: Decimal | None = None
    per_million_characters: Decimal | None = None
    off_peak: Amounts | None = None
    peak_window: PeakRow | None = None
    native: NativeRow | None = None
    thinking_output_per_million: Decimal | None = None
    image_input_per_million: Decimal | None = None
    image_output_per_million: Decimal | None = None
    text_output_per_million: Decimal | None = None
    confidence: str = ""
    source: str = ""
    note: str = ""
