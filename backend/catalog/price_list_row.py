"""One model of a price list: its amounts per million tokens, or per unit, as a price. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from decimal import Context, Decimal
from typing import Any, Final, cast

import msgspec

from backend.catalog.price_checks import check_priced_model
from backend.catalog.price_list_shape import Amounts, ModelRow, NativeRow
from backend.catalog.price_text import parse_window
from schemas.catalog import PriceSource
from schemas.errors import BadRequest
from schemas.money import POINTS_PER_CNY, parse_price_per_1k, parse_price_per_unit
from schemas.prices import PPM, Free, PerCall, PerToken, PerUnit, Price, Rates, Tier, Units, Window

CNY: Final = "CNY"
DAY_US: Final = 86_400_000_000
_NAME_CHARS_MAX: Final = 300
_EXACT: Final = Context(prec=60)
_NO_UNITS: Final = Units()
_PICTURE_TOKENS: Final = "tokens of pictures cost other than tokens of text"


class CannotSay(ValueError):
    """Why no price version can hold what a row says."""


class DatedPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    price: Price
    effective_us: int = 0
    """0: at once."""


class ListMoney(msgspec.Struct, frozen=True):
    """One currency at its rate."""

    currency: str
    points: Decimal
    """Per unit of the currency."""

    @property
    def points_per_unit(self) -> str:
        return f"{self.points.normalize(_EXACT):f}"

    def per_token(self, amount: Decimal) -> int:
        """Nano-points per token of an amount per million tokens, rounded up."""
        return parse_price_per_1k(self._text(amount, -3))

    def per_unit(self, amount: Decimal) -> int:
        """Nano-points per unit of an amount per unit, rounded up."""
        return parse_price_per_unit(self._text(amount, 0))

    def per_unit_of_million(self, amount: Decimal) -> int:
        """Nano-points per unit of an amount per million units, rounded up."""
        return parse_price_per_unit(self._text(amount, -6))

    def source(self, list_name: str) -> PriceSource:
        return PriceSource(list_name, self.currency, self.points_per_unit)

    def _text(self, amount: Decimal, shift: int) -> str:
        if not amount.is_finite() or abs(amount.adjusted()) > 15:
            raise CannotSay("one of its prices is no amount")
        product = _EXACT.multiply(amount, self.points)
        return f"{_EXACT.scaleb(product, shift).normalize(_EXACT):f}"


def money_of_cny() -> ListMoney:
    return ListMoney(CNY, Decimal(POINTS_PER_CNY))


def money_of_usd(cny_per_usd: Decimal) -> ListMoney:
    return ListMoney("USD", _EXACT.multiply(cny_per_usd, Decimal(POINTS_PER_CNY)))


class Listed(msgspec.Struct, frozen=True):
    prices: tuple[DatedPrice, ...]
    """By rising time."""
    money: ListMoney
    remarks: tuple[str, ...]


class RowReader:
    """One row, with the currency taken off the names of its fields."""

    def __init__(self, wire: dict[str, Any], money: ListMoney, now_us: int) -> None:
        self._wire: Final = wire
        self._money: Final = money
        self._now_us: Final = now_us

    def names(self) -> Iterator[str]:
        """The model's name and its other names, whatever they are."""
        yield str(self._wire.get("name", ""))[:_NAME_CHARS_MAX]
        aliases = self._wire.get("aliases")
        if isinstance(aliases, list):
            for alias in cast("list[Any]", aliases):
                yield str(alias)[:_NAME_CHARS_MAX]

    def listed(self, model: str) -> Listed:
        """Its prices in points. Raises CannotSay, MoneyError, BadRequest."""
        try:
            row = msgspec.convert(self._wire, ModelRow)
        except msgspec.ValidationError as error:
            raise CannotSay(f"it cannot be read: {error}") from error
        _refuse_what_cannot_be_said(row)
        remarks = [] if model == row.name else [f"another name of {row.name}"]
        if row.confidence == "low":
            remarks.append("the list is not sure of it")
        money, price = self._price(row)
        if row.off_peak is not None:
            price = self._by_time_of_day(row, row.off_peak, price, remarks)
        if isinstance(price, PerToken):
            for tier in price.tiers:
                where = f"above {tier.above_input_tokens} input tokens"
                remarks += _unstated(where, price, tier.rates)
        prices = self._dated(row, price, remarks)
        for dated in prices:
            check_priced_model(model, dated.price)
        return Listed(prices, money, tuple(remarks))

    def _price(self, row: ModelRow) -> tuple[ListMoney, Price]:
        units = self._units(row)
        if any(amount is not None for amount in _amounts(row)):
            tiers = tuple(
                Tier(tier.above_input_tokens, _rates(self._money, _amounts(tier)))
                for tier in row.tiers
            )
            rates = _rates(self._money, _amounts(row), embeds=row.mode == "embedding")
            return self._money, _priced(rates, tiers, units)
        if units != _NO_UNITS:
            return self._money, PerUnit(units)
        if row.native is None:
            raise CannotSay("no price is stated")
        return money_of_cny(), _native(row.native)

    def _units(self, row: ModelRow) -> Units:
        image = 0
        if row.per_image is not None:
            if list(row.per_image) != ["any"]:
                raise CannotSay("a picture's price depends on its size or quality")
            image = self._money.per_unit(row.per_image["any"])
        second, characters = row.per_second, row.per_million_characters
        return Units(
            image_npt=image,
            second_npt=0 if second is None else self._money.per_unit(second),
            character_npt=0 if characters is None else self._money.per_unit_of_million(characters),
        )

    def _by_time_of_day(
        self, row: ModelRow, off_peak: Amounts, price: Price, remarks: list[str]
    ) -> Price:
        """A list's own price is the one at peak times; windows are kept where they are exact."""
        peak = row.peak_window
        low = _rates(self._money, _amounts(off_peak))
        if isinstance(price, PerToken) and not price.tiers and peak is not None:
            factor = _one_factor(_amounts_npt(price.rates), _amounts_npt(low))
            if factor is not None and not peak.weekdays and not peak.excludes:
                zone = "Z" if peak.timezone == "UTC" else peak.timezone
                windows = tuple(_window(times, zone, factor) for times in peak.windows)
                return PerToken(*_amounts_npt(low), windows=windows)
        remarks.append("the price at peak times all day: its cheaper hours cannot be kept")
        return price

    def _dated(self, row: ModelRow, price: Price, remarks: list[str]) -> tuple[DatedPrice, ...]:
        """The price, from its day on if that is still to come, and the next one if it is named."""
        begins_us = 0 if row.valid_from is None else _moment_us(row.valid_from)
        first = DatedPrice(price, begins_us if begins_us > self._now_us else 0)
        following = row.next_price
        if following is not None:
            later = _priced(_rates(self._money, _amounts(following)))
            later_us = _moment_us(following.since)
            if later_us <= self._now_us:
                return (DatedPrice(later),)
            if isinstance(price, PerToken) and isinstance(later, PerToken):
                remarks += _unstated(f"from {following.since}", price, later.rates)
            return first, DatedPrice(later, later_us)
        if row.valid_until is not None:
            if _moment_us(row.valid_until) + DAY_US <= self._now_us:
                raise CannotSay(f"its price ended on {row.valid_until}")
            remarks.append(f"the list says that this price ends on {row.valid_until}")
        return (first,)


def _refuse_what_cannot_be_said(row: ModelRow) -> None:
    if row.thinking_output_per_million is not None:
        raise CannotSay("its output costs more while it thinks")
    pictures = (
        row.image_input_per_million,
        row.image_output_per_million,
        row.text_output_per_million,
    )
    if pictures != (None, None, None):
        raise CannotSay(_PICTURE_TOKENS)


def _native(native: NativeRow) -> Price:
    if native.currency != CNY:
        raise CannotSay("its price is in another currency than the list")
    money = money_of_cny()
    if native.per_call is not None:
        return PerCall(money.per_unit(native.per_call))
    return _priced(_rates(money, (native.input, native.output, native.cached)))


def _amounts(row: Amounts) -> tuple[Decimal | None, ...]:
    """In the order of the fields of `Rates`."""
    return (
        row.input_per_million,
        row.output_per_million,
        row.cached_input_per_million,
        row.cache_write_per_million,
        row.cache_write_1h_per_million,
    )


def _rates(money: ListMoney, amounts: Sequence[Decimal | None], *, embeds: bool = False) -> Rates:
    """`amounts` in the order of the fields of `Rates`; an embedding has no output to pay for."""
    read, written, *optional = amounts
    if written is None and embeds:
        written = Decimal(0)
    if read is None or written is None:
        raise CannotSay("only a part of its price is stated")
    given = (None if amount is None else money.per_token(amount) for amount in optional)
    return Rates(money.per_token(read), money.per_token(written), *given)


def _priced(rates: Rates, tiers: tuple[Tier, ...] = (), units: Units = _NO_UNITS) -> Price:
    """A model that costs nothing at all is free."""
    price = PerToken(*_amounts_npt(rates), tiers=tiers, units=units)
    amounts = [n for one in (rates, *(tier.rates for tier in tiers)) for n in _amounts_npt(one)]
    return price if any(amounts) or units != _NO_UNITS else Free()


def _amounts_npt(rates: Rates) -> tuple[Any, ...]:
    """The fields of `Rates`, which are the first ones of `PerToken`."""
    return msgspec.structs.astuple(rates)


def _one_factor(peak: tuple[Any, ...], low: tuple[Any, ...]) -> int | None:
    """How many parts per million of every low amount make the one at peak times, if one does."""
    factors: set[int] = set()
    for high_npt, low_npt in zip(peak, low, strict=True):
        if high_npt is None and low_npt is None:
            continue
        if not high_npt or not low_npt or high_npt * PPM % low_npt:
            return None
        factors.add(high_npt * PPM // low_npt)
    return factors.pop() if len(factors) == 1 else None


def _window(times: tuple[str, str], zone: str, factor_ppm: int) -> Window:
    try:
        window = parse_window(f"{times[0]}-{times[1]}@{zone}=1")
    except BadRequest as error:
        raise CannotSay("its peak times cannot be read") from error
    return msgspec.structs.replace(window, factor_ppm=factor_ppm)


def _moment_us(day: str) -> int:
    """Microseconds since 1970 of the first moment of a day, UTC."""
    try:
        begins = date.fromisoformat(day[:32])
    except ValueError as error:
        raise CannotSay("one of its dates cannot be read") from error
    return int(datetime(begins.year, begins.month, begins.day, tzinfo=UTC).timestamp()) * 1_000_000


def _unstated(where: str, price: PerToken, rates: Rates) -> list[str]:
    """What the model's price says and this part of it leaves out."""
    words: list[str] = []
    if price.cached_input_npt is not None and rates.cached_input_npt is None:
        words.append(f"{where} cached input is not stated and costs what input costs")
    if price.cache_write_npt is not None and rates.cache_write_npt is None:
        words.append(f"{where} cache writes are not stated and cost what input costs")
    return words
