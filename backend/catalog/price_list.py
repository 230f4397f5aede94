"""Reads a list of prices in a currency and turns it into prices in points. Pure; applies nothing.

What a price version cannot say is left out with its reason, never guessed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Context, Decimal
from typing import Any, Final, cast

import msgspec

from backend.catalog.price_checks import check_priced_model
from backend.catalog.price_text import parse_window
from schemas.catalog import PriceSource
from schemas.errors import BadRequest
from schemas.money import (
    POINTS_PER_CNY,
    MoneyError,
    parse_price_per_1k,
    parse_price_per_unit,
)
from schemas.prices import PPM, Free, PerCall, PerToken, PerUnit, Price, Rates, Tier, Units, Window

LIST_BYTES_MAX: Final = 8 * 1024 * 1024
MODELS_MAX: Final = 10_000
CNY: Final = "CNY"
USD: Final = "USD"
PER_MILLION: Final = "per 1,000,000 tokens"

_EXACT: Final = Context(prec=60)
_RATES: Final = ("input", "output", "cached_input", "cache_write", "cache_write_1h")
_NATIVE_RATES: Final = ("input", "output", "cached", "cache_write", "cache_write_1h")
_FACTS: Final = frozenset(
    "name provider mode context max_output aliases valid_from valid_until next_price tiers note "
    "confidence source native off_peak peak_window".split()
)
_CANNOT_SAY: Final = {
    "thinking_output_per_million": "its output costs more while it thinks",
    "image_input_per_million": "tokens of pictures cost other than tokens of text",
    "image_output_per_million": "tokens of pictures cost other than tokens of text",
    "text_output_per_million": "tokens of pictures cost other than tokens of text",
}
_DECODER: Final = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal)


class DatedPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    price: Price
    effective_us: int = 0
    """0: at once."""


class ListedModel(msgspec.Struct, frozen=True):
    model: str
    prices: tuple[DatedPrice, ...]
    source: PriceSource
    remarks: tuple[str, ...]
    """What the person who reviews it should know."""


class Unsupported(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: str
    reason: str


class PriceList(msgspec.Struct, frozen=True):
    name: str
    as_of: str
    digest: bytes
    """SHA-256 of the list's bytes."""
    currency: str
    points_per_unit: str
    models: tuple[ListedModel, ...]
    unsupported: tuple[Unsupported, ...]


class _CannotSay(ValueError):
    """Why no price version can hold what a row says."""


_Row = dict[str, Any]


class _Money(msgspec.Struct, frozen=True):
    """One currency at its rate."""

    currency: str
    points: Decimal
    """Per unit of the currency."""

    def per_token(self, amount: object) -> int:
        """Nano-points per token of an amount per million tokens, rounded up."""
        return parse_price_per_1k(self._points(amount, -3))

    def per_unit(self, amount: object, *, of_million: bool = False) -> int:
        return parse_price_per_unit(self._points(amount, -6 if of_million else 0))

    def source(self, list_name: str) -> PriceSource:
        return PriceSource(list_name, self.currency, f"{self.points.normalize(_EXACT):f}")

    def _points(self, amount: object, shift: int) -> str:
        if isinstance(amount, bool) or not isinstance(amount, int | Decimal):
            raise _CannotSay("one of its prices is no number")
        product = _EXACT.multiply(Decimal(amount), self.points)
        return f"{_EXACT.scaleb(product, shift).normalize(_EXACT):f}"


def read_list(data: bytes, name: str, cny_per_usd: str | None, now_us: int) -> PriceList:
    """The list's models in points. `cny_per_usd` is needed where the list is in USD.

    Raises BadRequest where it is no list of prices.
    """
    head = _head(data)
    currency, as_of = head["currency"], str(head.get("as_of", ""))[:32]
    cny = _Money(CNY, Decimal(POINTS_PER_CNY))
    money = cny if currency == CNY else _Money(USD, _rate(cny_per_usd))
    source_name = f"{name} {as_of}".strip()
    models: dict[str, ListedModel] = {}
    unsupported: list[Unsupported] = []
    for row in head["models"]:
        reader = _Reader(row, money, cny, now_us)
        for model in reader.names():
            try:
                if model in models:
                    raise _CannotSay("the list names it twice")
                models[model] = reader.listed(model, source_name)
            except (_CannotSay, MoneyError) as error:
                unsupported.append(Unsupported(model, str(error)))
            except BadRequest as error:
                unsupported.append(Unsupported(model, error.sentence))
    return PriceList(
        name=name,
        as_of=as_of,
        digest=hashlib.sha256(data).digest(),
        currency=currency,
        points_per_unit=money.source("").points_per_unit,
        models=tuple(models.values()),
        unsupported=tuple(unsupported),
    )


def _head(data: bytes) -> _Row:
    if len(data) > LIST_BYTES_MAX:
        raise BadRequest(f"A price list has at most {LIST_BYTES_MAX} bytes.")
    try:
        head = _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ArithmeticError) as error:
        raise BadRequest("The price list is no JSON object.") from error
    if head.get("currency") not in (USD, CNY) or head.get("unit") != PER_MILLION:
        raise BadRequest(f'A price list says "currency": USD or CNY, and "unit": "{PER_MILLION}".')
    rows = head.get("models")
    if not isinstance(rows, list) or not 1 <= len(cast("list[Any]", rows)) <= MODELS_MAX:
        raise BadRequest(f"A price list names 1 to {MODELS_MAX} models.")
    if not all(isinstance(row, dict) for row in cast("list[Any]", rows)):
        raise BadRequest("Every model of a price list is an object.")
    return head


def _rate(cny_per_usd: str | None) -> Decimal:
    if cny_per_usd is None:
        raise BadRequest("The list is in USD: say what a dollar is worth with --cny-per-usd 7.12.")
    try:
        rate_npt = parse_price_per_unit(cny_per_usd)
    except MoneyError as error:
        raise BadRequest(f"{error}.") from error
    rate = Decimal(cny_per_usd)
    if rate_npt == 0 or rate > 1_000_000 or len(cny_per_usd) > 12:
        raise BadRequest("A rate is a number such as 7.12, with at most 12 digits.")
    return _EXACT.multiply(rate, Decimal(POINTS_PER_CNY))


class _Reader:
    """One row of a list."""

    def __init__(self, row: _Row, money: _Money, cny: _Money, now_us: int) -> None:
        self._row: Final = row
        self._listed_in: Final = money
        self._cny: Final = cny
        self._suffix: Final = f"_{money.currency.lower()}"
        self._now_us: Final = now_us

    def names(self) -> Iterator[str]:
        yield str(self._row.get("name", ""))[:300]
        aliases = self._row.get("aliases")
        if isinstance(aliases, list):
            for alias in cast("list[Any]", aliases):
                yield str(alias)[:300]

    def listed(self, model: str, source_name: str) -> ListedModel:
        row = self._row
        self._refuse_what_cannot_be_said()
        remarks = [] if model == row["name"] else [f"another name of {row['name']}"]
        if row.get("confidence") == "low":
            remarks.append("the list is not sure of it")
        native = not self._tells(row)
        price = self._native() if native else self._price(row)
        price = self._by_time_of_day(price, remarks)
        prices = self._dated(price, remarks)
        for dated in prices:
            check_priced_model(model, dated.price)
        remarks += _unstated(price)
        money = self._cny if native else self._listed_in
        return ListedModel(model, prices, money.source(source_name), tuple(remarks))

    def _refuse_what_cannot_be_said(self) -> None:
        priced = {f"{name}_per_million{self._suffix}" for name in _RATES}
        priced |= {f"{name}{self._suffix}" for name in ("per_image", "per_second")}
        priced.add(f"per_million_characters{self._suffix}")
        for field, value in self._row.items():
            reason = _CANNOT_SAY.get(field.removesuffix(self._suffix))
            if reason is not None and value is not None:
                raise _CannotSay(reason)
            if field not in _FACTS and field not in priced and reason is None:
                raise _CannotSay(f"it says {field[:60]!r}, which is not understood")

    def _tells(self, row: _Row) -> bool:
        """Whether it has a price in the list's own currency."""
        return any(
            value is not None and field.endswith(self._suffix) for field, value in row.items()
        )

    def _price(self, row: _Row) -> Price:
        units = self._units(row)
        amounts = [row.get(f"{name}_per_million{self._suffix}") for name in _RATES]
        if amounts == [None] * len(_RATES):
            return PerUnit(units)
        if amounts[1] is None and row.get("mode") == "embedding":
            amounts[1] = 0
        rates = self._rates(amounts, self._listed_in)
        tiers = tuple(self._tier(tier) for tier in row.get("tiers") or ())
        return _freed(PerToken(*_fields(rates), tiers=tiers, units=units))

    def _units(self, row: _Row) -> Units:
        money, images = self._listed_in, row.get(f"per_image{self._suffix}")
        if images is not None and (not isinstance(images, dict) or list(images) != ["any"]):
            raise _CannotSay("a picture's price depends on its size or quality")
        second = row.get(f"per_second{self._suffix}")
        characters = row.get(f"per_million_characters{self._suffix}")
        return Units(
            image_npt=0 if images is None else money.per_unit(images["any"]),
            second_npt=0 if second is None else money.per_unit(second),
            character_npt=0 if characters is None else money.per_unit(characters, of_million=True),
        )

    def _rates(self, amounts: list[Any], money: _Money) -> Rates:
        if amounts[0] is None or amounts[1] is None:
            raise _CannotSay("only a part of its price is stated")
        return Rates(*(None if a is None else money.per_token(a) for a in amounts))  # pyright: ignore[reportArgumentType]

    def _tier(self, tier: _Row) -> Tier:
        above = tier.get("above_input_tokens")
        if isinstance(above, bool) or not isinstance(above, int):
            raise _CannotSay("a tier does not say where it begins")
        amounts = [tier.get(f"{name}_per_million{self._suffix}") for name in _RATES]
        return Tier(above, self._rates(amounts, self._listed_in))

    def _native(self) -> Price:
        """What the provider asks for at home, where the list's own currency has no price."""
        native = self._row.get("native")
        if not isinstance(native, dict):
            raise _CannotSay("no price is stated")
        native = cast("_Row", native)
        if native.get("currency") != CNY or self._row.get("tiers"):
            raise _CannotSay("its price is in another currency than the list")
        if native.get("per_call") is not None:
            return PerCall(self._cny.per_unit(native["per_call"]))
        rates = self._rates([native.get(name) for name in _NATIVE_RATES], self._cny)
        return _freed(PerToken(*_fields(rates)))

    def _by_time_of_day(self, price: Price, remarks: list[str]) -> Price:
        """The list's own price is the one at peak times; windows are kept where they are exact."""
        if self._row.get("off_peak") is None:
            return price
        windowed = self._windowed(price)
        if windowed is None:
            remarks.append("the price at peak times, all day: its off-peak hours cannot be kept")
            return price
        return windowed

    def _windowed(self, price: Price) -> Price | None:
        peak = cast("_Row", self._row.get("peak_window") or {})
        if peak.get("weekdays") or peak.get("excludes") or not isinstance(price, PerToken):
            return None
        low = self._price({**self._row["off_peak"], "mode": self._row.get("mode")})
        zone = "Z" if peak.get("timezone") in ("UTC", "Z") else peak.get("timezone")
        if not isinstance(low, PerToken) or price.tiers:
            return None
        factor = _one_factor(_fields(price.rates), _fields(low.rates))
        if factor is None:
            return None
        times = cast("list[list[str]]", peak.get("windows") or [])
        windows = tuple(_window(begin, end, zone, factor) for begin, end in times)
        return msgspec.structs.replace(low, windows=windows)

    def _dated(self, price: Price, remarks: list[str]) -> tuple[DatedPrice, ...]:
        """The price, from its day on if that is still to come, and the next one if it is named."""
        row = self._row
        begins_us = self._moment(row.get("valid_from"))
        first = DatedPrice(price, begins_us if begins_us > self._now_us else 0)
        if row.get("next_price") is None:
            if row.get("valid_until") is not None:
                if self._moment(row["valid_until"]) + 86_400_000_000 <= self._now_us:
                    raise _CannotSay(f"its price ended on {row['valid_until']}")
                remarks.append(f"the list says this price ends after {row['valid_until']}")
            return (first,)
        following = cast("_Row", row["next_price"])
        later_us = self._moment(following.get("from"))
        later = self._price({**following, "mode": row.get("mode")})
        if later_us <= self._now_us:
            return (DatedPrice(later),)
        remarks += [f"from {following['from']}: {words}" for words in _less_stated(price, later)]
        return first, DatedPrice(later, later_us)

    def _moment(self, day: object) -> int:
        """Microseconds since 1970 of the first moment of a day, UTC; 0 for none."""
        if day is None:
            return 0
        try:
            begins = date.fromisoformat(str(day)[:32])
        except ValueError as error:
            raise _CannotSay("one of its dates cannot be read") from error
        moment = datetime(begins.year, begins.month, begins.day, tzinfo=UTC)
        return int(moment.timestamp()) * 1_000_000


def _fields(rates: Rates) -> tuple[Any, ...]:
    return msgspec.structs.astuple(rates)


def _freed(price: PerToken) -> Price:
    """A model that costs nothing at all is free."""
    amounts = [n for one in (price.rates, *(t.rates for t in price.tiers)) for n in _fields(one)]
    return price if any(amounts) or price.units != Units() else Free()


def _one_factor(peak: tuple[Any, ...], low: tuple[Any, ...]) -> int | None:
    """How many parts per million of every low amount make the one at peak times, if one does."""
    factors: set[int] = set()
    for high_npt, low_npt in zip(peak, low, strict=True):
        if (high_npt is None) != (low_npt is None) or (low_npt == 0) != (high_npt == 0):
            return None
        if not low_npt:
            continue
        factor, rest = divmod(high_npt * PPM, low_npt)
        if rest:
            return None
        factors.add(factor)
    return factors.pop() if len(factors) == 1 else None


def _window(begin: str, end: str, zone: object, factor_ppm: int) -> Window:
    try:
        window = parse_window(f"{begin}-{end}@{zone}=1")
    except BadRequest as error:
        raise _CannotSay("its peak times cannot be read") from error
    return msgspec.structs.replace(window, factor_ppm=factor_ppm)


def _unstated(price: Price) -> list[str]:
    """Where the longer inputs' price leaves out what the shorter ones' says."""
    if not isinstance(price, PerToken):
        return []
    return [
        f"above {tier.above_input_tokens} input tokens: {words}"
        for tier in price.tiers
        for words in _less_stated(price, tier.rates)
    ]


def _less_stated(price: Price, other: Price | Rates) -> list[str]:
    if not isinstance(price, PerToken) or not isinstance(other, PerToken | Rates):
        return []
    words: list[str] = []
    if price.cached_input_npt is not None and other.cached_input_npt is None:
        words.append("cached input is not stated and costs what input costs")
    if price.cache_write_npt is not None and other.cache_write_npt is None:
        words.append("cache writes are not stated and cost what input costs")
    return words
