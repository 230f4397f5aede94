"""Prices as people write and read them: points in decimal, times of day, factors. Pure."""

from __future__ import annotations

import re
from typing import Any, Final

from schemas.errors import BadRequest
from schemas.money import (
    NPT_PER_POINT,
    MoneyError,
    format_points,
    format_price_per_1k,
    parse_points,
    parse_price_per_1k,
)
from schemas.prices import Free, PerCall, PerToken, PerUnit, Price, Rates, Tier, Units, Window

_WINDOW: Final = re.compile(
    r"([0-9]{2}):([0-9]{2})-([0-9]{2}):([0-9]{2})@(Z|[+-][0-9]{2}:[0-9]{2})=([0-9.]{1,20})"
)
_MINUTES: Final = 60
_DAY_MINUTES: Final = 1_440
_UNIT_NAMES: Final = ("image", "second", "character", "search")
_RATE_NAMES: Final = ("input", "output", "cached_input", "cache_write", "cache_write_1h")


def parse_tier(text: str) -> Tier:
    """`ABOVE:IN:OUT[:CACHED[:WRITE[:WRITE_1H]]]`: tokens, then points per 1,000 tokens; an empty
    part is not given. Raises BadRequest.
    """
    above, *amounts = text.split(":")
    if not above.isdecimal() or len(above) > 10 or not 2 <= len(amounts) <= len(_RATE_NAMES):
        raise BadRequest(f"{text[:80]!r} is no tier; write ABOVE:INPUT:OUTPUT[:CACHED].")
    try:
        prices = [parse_price_per_1k(part) if part else None for part in amounts]
    except MoneyError as error:
        raise BadRequest(f"{error}.") from error
    if prices[0] is None or prices[1] is None:
        raise BadRequest("A tier says what input and output cost.")
    return Tier(int(above), Rates(prices[0], prices[1], *prices[2:]))


def parse_window(text: str) -> Window:
    """`22:00-06:00@+08:00=0.5`: a time of day at an offset, and the factor. Raises BadRequest."""
    found = _WINDOW.fullmatch(text.strip())
    if found is None:
        raise BadRequest(f"{text[:80]!r} is no window; write 22:00-06:00@+08:00=0.5.")
    begin = _minutes(found[1], found[2])
    end = _minutes(found[3], found[4])
    if begin >= _DAY_MINUTES or end > _DAY_MINUTES:
        raise BadRequest("A window is between 00:00 and 24:00.")
    offset = found[5]
    minutes = 0 if offset == "Z" else _minutes(offset[1:3], offset[4:6])
    # The day's end is written either way.
    return Window(
        begin, end or _DAY_MINUTES, -minutes if offset[0] == "-" else minutes, parse_ppm(found[6])
    )


def parse_ppm(text: str) -> int:
    """Whole parts per million of a factor such as `0.8`. Raises BadRequest."""
    try:
        ppm = int(parse_points(text))
    except MoneyError as error:
        raise BadRequest(f"{text[:40]!r} is no factor; write a number such as 0.8.") from error
    if ppm < 0:
        raise BadRequest("A factor is not negative.")
    return ppm


def format_ppm(ppm: int) -> str:
    """A factor as a plain decimal."""
    return format_points(ppm)


def format_per_unit(price_npt: int) -> str:
    """Points per one unit of a price in nano-points, exactly."""
    whole, rest = divmod(price_npt, NPT_PER_POINT)
    return f"{whole}.{rest:09d}".rstrip("0").rstrip(".")


def window_text(window: Window) -> str:
    """The form that `parse_window` reads."""
    offset = window.utc_offset_minutes
    sign, minutes = "-" if offset < 0 else "+", abs(offset)
    return (
        f"{_clock(window.from_minute)}-{_clock(window.to_minute)}"
        f"@{sign}{_clock(minutes)}={format_ppm(window.factor_ppm)}"
    )


def price_data(price: Price) -> dict[str, Any]:
    """A price for machines: points as decimal strings, per 1,000 tokens or per unit."""
    match price:
        case Free():
            return {"unit": "free"}
        case PerCall(call_npt):
            return {"unit": "call", "per_call": format_per_unit(call_npt)}
        case PerUnit(units):
            return {"unit": "unit", **_units_data(units)}
        case PerToken():
            data: dict[str, Any] = {"unit": "token", **_rates_data(price.rates)}
            if price.tiers:
                data["tiers"] = [
                    {"above_input_tokens": tier.above_input_tokens, **_rates_data(tier.rates)}
                    for tier in price.tiers
                ]
            if price.windows:
                data["windows"] = [window_text(window) for window in price.windows]
            return data | _units_data(price.units)


def price_words(price: Price) -> str:
    """A price for people, in one clause."""
    match price:
        case Free():
            return "nothing"
        case PerCall(call_npt):
            return f"{format_per_unit(call_npt)} points per call"
        case PerUnit(units):
            return " + ".join(_units_words(units))
        case PerToken():
            parts = [_rates_words(price.rates)]
            parts += [
                f"above {tier.above_input_tokens} input tokens {_rates_words(tier.rates)}"
                for tier in price.tiers
            ]
            parts += [f"at {window_text(window)}" for window in price.windows]
            return "; ".join(parts + _units_words(price.units))


def amounts_of(price: Price) -> dict[str, int]:
    """Every amount of a price by a name for it, nano-points; what is not given as it is charged."""
    match price:
        case Free():
            return {}
        case PerCall(call_npt):
            return {"call": call_npt}
        case PerUnit(units):
            return _units_npt(units)
        case PerToken():
            amounts = _rates_npt(price.rates)
            for tier in price.tiers:
                above = f" above {tier.above_input_tokens}"
                amounts |= {name + above: n for name, n in _rates_npt(tier.rates).items()}
            return amounts | _units_npt(price.units)


def _rates_npt(rates: Rates) -> dict[str, int]:
    written = _given(rates.cache_write_npt, rates.input_npt)
    return {
        "input": rates.input_npt,
        "output": rates.output_npt,
        "cached_input": _given(rates.cached_input_npt, rates.input_npt),
        "cache_write": written,
        "cache_write_1h": _given(rates.cache_write_1h_npt, written),
    }


def _rates_data(rates: Rates) -> dict[str, str]:
    amounts = _rates_npt(rates)
    shown = ["input", "output", "cached_input"]
    if rates.cache_write_npt is not None or rates.cache_write_1h_npt is not None:
        shown += ["cache_write", "cache_write_1h"]
    return {f"per_1k_{name}": format_price_per_1k(amounts[name]) for name in shown}


def _rates_words(rates: Rates) -> str:
    data = _rates_data(rates)
    words = (
        f"{data['per_1k_input']} points per 1,000 input tokens, {data['per_1k_output']} per 1,000 "
        f"output tokens and {data['per_1k_cached_input']} per 1,000 cached ones"
    )
    if "per_1k_cache_write" not in data:
        return words
    written, hour = data["per_1k_cache_write"], data["per_1k_cache_write_1h"]
    return f"{words}, {written} per 1,000 written to the cache ({hour} for an hour)"


def _units_npt(units: Units) -> dict[str, int]:
    amounts = (units.image_npt, units.second_npt, units.character_npt, units.search_npt)
    return {name: npt for name, npt in zip(_UNIT_NAMES, amounts, strict=True) if npt}


def _units_data(units: Units) -> dict[str, str]:
    return {f"per_{name}": format_per_unit(npt) for name, npt in _units_npt(units).items()}


def _units_words(units: Units) -> list[str]:
    return [f"{format_per_unit(npt)} points per {name}" for name, npt in _units_npt(units).items()]


def _given(amount: int | None, otherwise: int) -> int:
    return otherwise if amount is None else amount


def _minutes(hours: str, minutes: str) -> int:
    if int(minutes) >= _MINUTES:
        raise BadRequest("A time of day has minutes from 00 to 59.")
    return int(hours) * _MINUTES + int(minutes)


def _clock(minutes: int) -> str:
    return f"{minutes // _MINUTES:02d}:{minutes % _MINUTES:02d}"
